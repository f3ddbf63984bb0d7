"""The probes: inputs on which the saved bundle must agree with eager.

A trace that equals eager on its own input can differ everywhere else: it has recorded what one
input did. Each kind of probe is a way in which that was seen to happen (docs/gate.md): expert
counts baked from the traced ids, masks baked as "no mask", padding that leaks, positions that
depend on content. A probe has the artifact's feed, and the feed whose eager output is its
reference: unpadded where the model allows it. ``tasks.validate.plan`` chooses among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tasks.model.facts import ModelFacts
from tasks.model.feeds import (
    feed_of,
    length_axis,
    mirror,
    pad_right,
    random_feed,
    with_mask,
)

if TYPE_CHECKING:
    from tasks.model.feeds import Feed

FRESH_SEEDS = 8
#: Start of the names of probes with real inputs.
REAL = "real-"
LEFT_PADDING = "left_padding"
FRESH_SEED_BASE = 1000
_SILENCE, _LOUD = 1e-3, 4.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One comparison.

    Attributes:
        name: Name of what it tries, such as ``right-pad-16``.
        length: Standard length whose graph it tests.
        feed: Inputs of the artifact; shape ``(batch, length)`` when ``dispatch`` is off.
        reference_feed: Inputs of eager; None: the same feed.
        reference_rows: Inputs of each row by itself, unpadded, whose outputs together are the
            reference; empty: the rows run together.
        control: Feed whose eager output must differ clearly from the reference's, else the probe
            is vacuous for this model (right padding of a causal model); None: the plan's first
            probe, which has other ids.
        dispatch: Whether ``forward`` is called, which routes, pads and slices, and not
            ``forward_<length>``.
        optional: Whether eager may refuse it; then it is left out.
        probes_axis: ``length`` or ``batch``: the bare graph is called at another one, as no
            consumer can, and the result goes into the manifest without being judged.
        general: Whether it is a shape that only a general graph runs unpadded; if eager refuses it
            the graph is not general, unless it is optional.
        sample: Name of the real sample that it runs; empty: its inputs are drawn.
        left_padded: Whether its rows have padding on their left, or a hole. Unless it is general,
            they are padded on their right as well, and the result goes into the manifest without
            being judged.
    """

    name: str
    length: int
    feed: Feed = field(repr=False)
    reference_feed: Feed | None = field(default=None, repr=False)
    reference_rows: tuple[Feed, ...] = field(default=(), repr=False)
    control: Feed | None = field(default=None, repr=False)
    dispatch: bool = False
    optional: bool = False
    probes_axis: Literal["length", "batch"] | None = None
    general: bool = False
    sample: str = ""
    left_padded: bool = False

    @property
    def measured(self) -> str | None:
        """What is measured and not judged: an axis of the bare graph, or ``left_padding``."""
        return LEFT_PADDING if self.left_padded and not self.general else self.probes_axis

    @property
    def key(self) -> str:
        """``length/name``, unique in a plan."""
        return f"{self.length}/{self.name}"

    @property
    def place(self) -> str:
        """Where it runs, for whoever watches."""
        if self.name.startswith(REAL):
            return "real inputs"
        return "other shapes" if self.general else f"length {self.length}"

    @property
    def eager_feed(self) -> Feed:
        """Inputs that the eager reference is computed on."""
        return self.feed if self.reference_feed is None else self.reference_feed


def probes_of_one_length(
    facts: ModelFacts,
    batch: int,
    length: int,
    *,
    measure: bool = True,
    fresh: int = FRESH_SEEDS,
) -> Iterator[Probe]:
    """Yield every kind of probe at one standard length.

    Args:
        facts: Facts of the model.
        batch: Rows in one traced call.
        length: The standard length.
        measure: Whether the bare graph is run at other shapes too, which no consumer can do.
        fresh: Number of drawn inputs.
    """
    for seed in range(fresh):
        feed = random_feed(facts, batch=batch, length=length, seed=FRESH_SEED_BASE + seed)
        yield Probe(name=f"fresh-{seed}", length=length, feed=feed)
    if "input_ids" in facts.inputs:
        yield from _id_probes(facts, batch, length)
    else:
        yield from _value_probes(facts, batch, length)
    if "attention_mask" in facts.inputs:
        yield from _padding_probes(facts, batch, length)
        if "input_ids" in facts.inputs:  # sounds are masked at their end alone
            yield from _mask_probes(facts, batch, length)
    yield from _companion_probes(facts, batch, length)
    yield from _row_probes(facts, batch, length)
    if measure:
        yield from _measuring_probes(facts, batch, length)


def _id_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Yield ids that a graph's constants may depend on: few different ones, edges, special ones."""
    import torch

    other = random_feed(facts, batch=batch, length=length, seed=FRESH_SEED_BASE - 1)
    row = other["input_ids"][0].reshape(-1)
    one, two = row[0], row[length // 2]
    positions = torch.arange(length).expand(batch, length)
    last = facts.vocabulary.size - 1
    patterns = {
        "constant-ids": torch.where(positions >= 0, one, one),
        "repeated-ids": torch.where(positions % 2 == 0, one, two),
        "edge-ids": torch.where(positions % 2 == 0, 0, last),
    }
    for name, ids in patterns.items():
        yield Probe(name=name, length=length, feed=feed_of(facts, ids.contiguous()))
    special = sorted(facts.vocabulary.special - {facts.vocabulary.pad})[: length // 2]
    if special:
        # Every tokenizer adds them, and no other probe has them. The same in all rows, because
        # BART's classifier needs an equal number of end tokens in each.
        turns = torch.tensor(special)[torch.arange(length // 2) % len(special)]
        ids = other["input_ids"].reshape(batch, -1)[:, :length].clone()
        ids[:, 1::2] = turns
        feed = feed_of(facts, ids)
        yield Probe(name="special-ids", length=length, feed=feed, optional=True)


def _value_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Yield near silence, values larger than any processor's, and constant ones."""
    import torch

    feed = random_feed(facts, batch=batch, length=length, seed=FRESH_SEED_BASE - 1)
    name, values = next(iter(feed.items()))
    for pattern, changed in (
        ("near-silence", values * _SILENCE),
        ("loud", values * _LOUD),
        ("constant-rows", torch.ones_like(values)),
    ):
        yield Probe(name=pattern, length=length, feed={**feed, name: changed})


def _padding_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Yield inputs padded on the right, much as well as little."""
    sizes = {1, 2, length // 2, length - 1} if "input_ids" in facts.inputs else {3 * length // 4}
    for real in sorted(size for size in sizes if 0 < size < length):
        short = random_feed(facts, batch=batch, length=real, seed=FRESH_SEED_BASE + 100 + real)
        padded = pad_right(facts, short, length)
        yield Probe(
            name=f"right-pad-{real}",
            length=length,
            feed=padded,
            # Where padding changes eager's outputs, the reference is the padded input's.
            reference_feed=short if facts.takes_padding else None,
            control=_unmask(padded),
        )


def _mask_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Yield masks that hide other positions than the end's."""
    import torch

    if length < 3:
        return
    whole = random_feed(facts, batch=batch, length=length, seed=FRESH_SEED_BASE + 200)
    positions = torch.arange(length).expand(batch, length)
    masks = {
        "left-pad": positions >= length // 3,
        "hole": (positions < length // 3) | (positions > length // 2),
        "one-token": positions == length // 2,
    }
    for name, mask in masks.items():
        feed = with_mask(facts, whole, mask.long())
        yield Probe(name=name, length=length, feed=feed, control=_unmask(feed))
    if "decoder_attention_mask" in facts.inputs:
        visible = (positions == 0) | (positions > length // 2)  # its first token must stay
        feed = {**whole, "decoder_attention_mask": visible.long()}
        yield Probe(name="decoder-hole", length=length, feed=feed, control=_unmask(feed))


def _companion_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Yield other segments, boxes and the like, one argument at a time, beside the same ids."""
    # Segments are equal in every other probe of one length: a graph that baked them would pass.
    whole = random_feed(facts, batch=batch, length=length, seed=FRESH_SEED_BASE + 500)
    for one in facts.arguments:
        if one.kind in ("segments", "other-ids", "boxes"):
            axis = length_axis(one)
            assert axis is not None
            # Rolled by one as well: XLNet sees only which tokens are of the same type.
            feed = {**whole, one.name: mirror(one, whole[one.name]).roll(1, axis)}
            yield Probe(name=f"other-{one.name}", length=length, feed=feed, control=whole)


def _row_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Yield more rows than were traced, through the dispatcher."""
    rows = random_feed(facts, batch=batch + 1, length=length, seed=FRESH_SEED_BASE + 300)
    yield Probe(name=f"batch-{batch + 1}", length=length, feed=rows, dispatch=True)


def _measuring_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Yield other lengths and batches than the bare graph was traced at."""
    shapes: list[tuple[Literal["length", "batch"], int, int]] = [
        ("batch", batch + 1, length),
        ("batch", batch + 2, length),
    ]
    if any(length_axis(one) is not None for one in facts.arguments):
        longest = facts.max_length or 2 * length
        for other in (length // 2 + 1, min(length + length // 4 + 1, longest)):
            if other != length:
                shapes.append(("length", batch, other))
    for axis, rows, tokens in shapes:
        feed = random_feed(facts, batch=rows, length=tokens, seed=FRESH_SEED_BASE + 400 + tokens)
        name = f"graph-at-{rows}x{tokens}"
        yield Probe(name=name, length=length, feed=feed, probes_axis=axis)


def _unmask(feed: Feed) -> Feed:
    """Return the same ids with nothing masked: the inputs of a graph that ignores its mask."""
    import torch

    shown = dict(feed)
    for name in feed:
        if name.endswith("attention_mask"):
            shown[name] = torch.ones_like(feed[name])
    return shown
