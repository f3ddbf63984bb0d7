"""The probes: inputs on which the saved bundle must agree with eager.

A trace that equals eager on its own input can differ everywhere else: it has recorded what one
input did. Each probe is a way in which that was seen to happen (TorchScript facts, section 6):
expert counts baked from the traced ids, masks baked as "no mask", padding that leaks, positions
that depend on content. A probe names its feed at the exact standard length, and the feed whose
eager output is the truth: unpadded where the model allows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tasks.model.facts import ModelFacts
from tasks.model.feeds import (
    cut,
    example_feed,
    feed_of,
    length_axis,
    mirrored,
    pad_right,
    random_feed,
    tokens_of,
    with_mask,
)
from tracefleet.manifest_types import Tolerance

if TYPE_CHECKING:
    from tasks.model.feeds import Feed

FRESH_SEEDS = 8
_FRESH_SEED_BASE = 1000
_SILENCE, _LOUD = 1e-3, 4.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One comparison.

    Attributes:
        name: what it tries, such as ``right-pad-16``.
        length: the standard length whose graph it tests.
        feed: what the bundle gets; shape ``(batch, length)`` when ``dispatch`` is off.
        truth: what eager gets; None: the same feed.
        control: a feed whose eager output must differ clearly from the truth's, else the probe is
            vacuous for this model (right padding of a causal model); None: the plan's first
            probe, which has other ids.
        dispatch: call ``forward``, which routes, pads and slices, and not ``forward_<length>``.
        optional: eager may refuse it, and then it is left out.
        measures: ``length`` or ``batch``: tries the bare graph at another one, which no consumer
            can call, and judges nothing: the manifest tells what came of it.
    """

    name: str
    length: int
    feed: Feed = field(repr=False)
    truth: Feed | None = field(default=None, repr=False)
    control: Feed | None = field(default=None, repr=False)
    dispatch: bool = False
    optional: bool = False
    measures: Literal["length", "batch"] | None = None

    @property
    def key(self) -> str:
        """``length/name``: no two probes of a plan share it."""
        return f"{self.length}/{self.name}"

    @property
    def eager_feed(self) -> Feed:
        """What the eager reference is computed on."""
        return self.feed if self.truth is None else self.truth


def plan_probes(plan: ProbePlan) -> Iterator[Probe]:
    """Yield every probe of a conversion, in the one order that all processes number them by."""
    for below, length in zip((0, *plan.lengths), plan.lengths, strict=False):
        if length in plan.whole:
            example = example_feed(plan.facts, batch=plan.batch, length=length)
            yield Probe(name="traced-input", length=length, feed=example)
        # Where one graph serves all lengths, those between its ends were never traced.
        whole = length in plan.lengths[1:-1] and length not in plan.whole
        yield from _proving_probes(plan.facts, plan.batch, length, below, padded=not whole)
        if length in plan.whole:
            yield from _whole_probes(plan.facts, plan.batch, length)
    yield from _far_padding_probes(plan)


def timed(facts: ModelFacts, probe: Probe, batch: int) -> bool:
    """Tell whether a call of this probe counts as one call at its standard length.

    Eager then sees all tokens but the one that the dispatcher pads.
    """
    if probe.truth is not None or probe.measures:
        return False
    rows = {tensor.shape[0] for tensor in probe.feed.values()}
    tokens = tokens_of(facts, probe.feed).values()
    return rows == {batch} and all(size >= probe.length - 1 for size in tokens)


def _proving_probes(
    facts: ModelFacts, batch: int, length: int, below: int, *, padded: bool
) -> Iterator[Probe]:
    """What every standard length gets: fresh ids through the dispatcher, one short if ``padded``.

    Encoder-decoder models get it again with either side shorter than the other. ``below`` is the
    next smaller standard length: an input must be longer to get to this graph.
    """
    real = max(below + 1, length - 1) if padded and facts.takes_padding else length
    if facts.takes_padding and facts.arguments[0].kind == "values":
        # One sample more or less often makes no frame: padding that leaks would not show.
        part = max(below + 1, 3 * length // 4)
        if part < real:
            short = random_feed(facts, batch=batch, length=part, seed=_FRESH_SEED_BASE + length)
            yield Probe(name=f"dispatch-{part}", length=length, feed=short, dispatch=True)
    fresh = random_feed(facts, batch=batch, length=real, seed=_FRESH_SEED_BASE + length)
    yield Probe(name=f"dispatch-{real}", length=length, feed=fresh, dispatch=True)
    if "decoder_input_ids" not in facts.inputs or real < 2 or not facts.takes_padding:
        return
    for side, axis in (("encoder", "length"), ("decoder", "decoder_length")):
        short = cut(facts, fresh, axis, real // 2)
        yield Probe(name=f"dispatch-short-{side}", length=length, feed=short, dispatch=True)


def _whole_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """What is left to try at one standard length."""
    for seed in range(FRESH_SEEDS):
        feed = random_feed(facts, batch=batch, length=length, seed=_FRESH_SEED_BASE + seed)
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
    yield from _measuring_probes(facts, batch, length)


def _far_padding_probes(plan: ProbePlan) -> Iterator[Probe]:
    """Pad from just over the shortest length to the longest, where that has no probes of its own.

    An architecture that changes at some length in between has changed on one side alone.
    """
    facts, longest, real = plan.facts, plan.lengths[-1], plan.lengths[0] + 1
    if longest in plan.whole or real >= longest or not facts.takes_padding:
        return
    if {"input_ids", "attention_mask"} <= set(facts.inputs):
        short = random_feed(facts, batch=plan.batch, length=real, seed=_FRESH_SEED_BASE + 600)
        padded = pad_right(facts, short, longest)
        yield Probe(name=f"right-pad-{real}", length=longest, feed=padded, truth=short)


def _id_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    import torch

    other = random_feed(facts, batch=batch, length=length, seed=_FRESH_SEED_BASE - 1)
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
        # Every tokenizer gives them, and no other probe has them; alike in all rows, because
        # BART's classifier wants as many end tokens in each.
        turns = torch.tensor(special)[torch.arange(length // 2) % len(special)]
        ids = other["input_ids"].reshape(batch, -1)[:, :length].clone()
        ids[:, 1::2] = turns
        feed = feed_of(facts, ids)
        yield Probe(name="special-ids", length=length, feed=feed, optional=True)


def _value_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Nothing at all, and far more than a processor's normalisation lets through."""
    import torch

    feed = random_feed(facts, batch=batch, length=length, seed=_FRESH_SEED_BASE - 1)
    name, values = next(iter(feed.items()))
    for pattern, changed in (
        ("near-silence", values * _SILENCE),
        ("loud", values * _LOUD),
        ("constant-rows", torch.ones_like(values)),
    ):
        yield Probe(name=pattern, length=length, feed={**feed, name: changed})


def _padding_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    tried = {1, 2, length // 2, length - 1} if "input_ids" in facts.inputs else {3 * length // 4}
    for real in sorted(n for n in tried if 0 < n < length):
        short = random_feed(facts, batch=batch, length=real, seed=_FRESH_SEED_BASE + 100 + real)
        padded = pad_right(facts, short, length)
        yield Probe(
            name=f"right-pad-{real}",
            length=length,
            feed=padded,
            # Where eager minds padding, its truth is what it makes of the padded input.
            truth=short if facts.takes_padding else None,
            control=_all_visible(padded),
        )


def _mask_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    import torch

    if length < 3:
        return
    whole = random_feed(facts, batch=batch, length=length, seed=_FRESH_SEED_BASE + 200)
    positions = torch.arange(length).expand(batch, length)
    masks = {
        "left-pad": positions >= length // 3,
        "hole": (positions < length // 3) | (positions > length // 2),
        "one-token": positions == length // 2,
    }
    for name, mask in masks.items():
        feed = with_mask(facts, whole, mask.long())
        yield Probe(name=name, length=length, feed=feed, control=_all_visible(feed))
    if "decoder_attention_mask" in facts.inputs:
        visible = (positions == 0) | (positions > length // 2)  # its first token must stay
        feed = {**whole, "decoder_attention_mask": visible.long()}
        yield Probe(name="decoder-hole", length=length, feed=feed, control=_all_visible(feed))


def _companion_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Other segments, boxes and the like, one argument at a time, beside the same token ids.

    Segments are alike in every other probe of one length: a graph with those baked in would pass.
    """
    whole = random_feed(facts, batch=batch, length=length, seed=_FRESH_SEED_BASE + 500)
    for one in facts.arguments:
        if one.kind in ("segments", "other-ids", "boxes"):
            axis = length_axis(one)
            assert axis is not None
            # Moved by one as well: XLNet sees only which tokens are of the same type.
            feed = {**whole, one.name: mirrored(one, whole[one.name]).roll(1, axis)}
            yield Probe(name=f"other-{one.name}", length=length, feed=feed, control=whole)


def _row_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """More rows than were traced, through the dispatcher: each must equal its own eager row."""
    rows = random_feed(facts, batch=batch + 1, length=length, seed=_FRESH_SEED_BASE + 300)
    yield Probe(name=f"batch-{batch + 1}", length=length, feed=rows, dispatch=True)


def _measuring_probes(facts: ModelFacts, batch: int, length: int) -> Iterator[Probe]:
    """Does the bare graph hold at other lengths and batches than it was traced at?"""
    longest = facts.max_length or 2 * length
    lengths = [n for n in (length // 2 + 1, min(length + length // 4 + 1, longest)) if n != length]
    shapes: list[tuple[Literal["length", "batch"], int, int]] = [
        ("batch", rows, length) for rows in (batch + 1, batch + 2)
    ]
    if any(length_axis(one) is not None for one in facts.arguments):
        shapes += [("length", batch, other) for other in lengths]
    for measures, rows, tokens in shapes:
        feed = random_feed(facts, batch=rows, length=tokens, seed=_FRESH_SEED_BASE + 400 + tokens)
        name = f"graph-at-{rows}x{tokens}"
        yield Probe(name=name, length=length, feed=feed, measures=measures)


def _all_visible(feed: Feed) -> Feed:
    """The same ids with nothing masked: what a graph that ignores its mask computes."""
    import torch

    return {
        name: torch.ones_like(tensor) if name.endswith("attention_mask") else tensor
        for name, tensor in feed.items()
    }


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """Which probes a conversion gets; the same in the reference's and the gate's process.

    Attributes:
        facts: the model.
        lengths: standard lengths, ascending.
        whole: the lengths that get every probe; the others get the proving ones.
        batch: rows in one traced call.
        tolerance: bound on every difference.
        selects: the program takes the largest of several values (top-k, sort).
        opaque: the artifact's weights can't be reached: a fault is planted in eager instead.
    """

    facts: ModelFacts
    lengths: tuple[int, ...]
    whole: tuple[int, ...]
    batch: int
    tolerance: Tolerance
    selects: bool = False
    opaque: bool = False
