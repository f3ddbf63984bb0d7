"""Which probes a conversion gets: ``plan_probes``, the same list in every process.

Every standard length gets fresh ids through the dispatcher; lengths in ``ProbePlan.whole`` get each
kind of ``tasks.validate.probes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tasks.model.facts import ModelFacts
from tasks.model.feeds import cut, example_feed, pad_right, random_feed, tokens_of
from tasks.samples.make import Samples, read_feeds
from tasks.samples.texts import PASSAGE
from tasks.validate.general import general_probes, padded_probe
from tasks.validate.left_padding import left_padded_probes
from tasks.validate.probes import (
    FRESH_SEED_BASE,
    FRESH_SEEDS,
    Probe,
    probes_of_one_length,
)
from tasks.validate.real import read_passages, real_probes
from tracefleet.lengths import smallest_fit
from tracefleet.manifest_types import General
from tracefleet.verdict_types import Tolerance

if TYPE_CHECKING:
    from tasks.model.feeds import Feed


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """Probes of a conversion; the same in the reference's and the gate's process.

    Attributes:
        facts: Facts of the model.
        lengths: Standard lengths, ascending.
        whole: Lengths that get every probe; the others get the proving ones.
        batch: Rows in one traced call.
        tolerance: Bound on every difference.
        has_topk_or_sort: Whether the program uses top-k or sort, whose ties padding may break
            differently.
        opaque: Whether the artifact's weights are out of reach; then a weight is corrupted in
            eager instead.
        general: Shapes at which the artifact runs calls as they are, and is to be proved; None: it
            pads them.
        device: Device that eager and the artifact run on.
        samples: Real inputs of the checkpoint; None: none were asked for.
    """

    facts: ModelFacts
    lengths: tuple[int, ...]
    whole: tuple[int, ...]
    batch: int
    tolerance: Tolerance
    has_topk_or_sort: bool = False
    opaque: bool = False
    general: General | None = None
    device: str = "cpu"
    samples: Samples | None = None

    @property
    def is_general(self) -> bool:
        """Whether the artifact runs calls as they are."""
        return self.general is not None

    def pads(self, tokens: int) -> bool:
        """Whether the artifact's ``forward`` pads a call with so many tokens in its rows."""
        return self.general is None or tokens < self.general.shortest


def plan_probes(plan: ProbePlan) -> Iterator[Probe]:
    """Yield every probe of a conversion, in the one order that all processes number them by."""
    for below, length in zip((0, *plan.lengths), plan.lengths, strict=False):
        if length in plan.whole:
            example = example_feed(plan.facts, batch=plan.batch, length=length)
            yield Probe(name="traced-input", length=length, feed=example)
        yield from _proving_probes(plan, length, below)
        if length in plan.whole:
            yield from probes_of_one_length(
                plan.facts,
                plan.batch,
                length,
                measure=not plan.is_general,
                fresh=_count_fresh(plan, length),
            )
    if plan.general is None:
        yield from _far_padding_probes(plan)
    else:
        passages = read_passages(plan.samples, plan.facts)
        yield from general_probes(plan.facts, plan.lengths, plan.general, passages)
    last = plan.lengths[-1] in plan.whole
    yield from left_padded_probes(plan.facts, plan.lengths, last=last, general=plan.is_general)
    yield from real_probes(plan.facts, plan.samples, plan.lengths, plan.whole, plan.general)


def _count_fresh(plan: ProbePlan, length: int) -> int:
    """Return how many inputs are drawn for one length: half of them beside as many real texts."""
    feeds = {} if plan.samples is None else read_feeds(plan.samples, plan.facts.inputs)
    texts = 0
    for name, feed in feeds.items():
        tokens = max(tokens_of(plan.facts, feed).values(), default=0)
        fits = tokens <= plan.lengths[-1] and smallest_fit(plan.lengths, tokens) == length
        texts += fits and not name.startswith(PASSAGE)
    return FRESH_SEEDS // 2 if texts >= FRESH_SEEDS else FRESH_SEEDS


def first_probe(plan: ProbePlan) -> Probe:
    """Return the plan's first probe: the traced input."""
    return next(iter(plan_probes(plan)))


def is_timed(plan: ProbePlan, probe: Probe) -> bool:
    """Tell whether a call of this probe counts as one call at its standard length.

    Eager then gets all tokens but the one that the dispatcher pads.
    """
    short = probe.reference_feed is not None and not probe.general
    if short or probe.measured:
        return False
    rows = {tensor.shape[0] for tensor in probe.feed.values()}
    tokens = tokens_of(plan.facts, probe.feed).values()
    return rows == {plan.batch} and all(size >= probe.length - 1 for size in tokens)


def _proving_probes(plan: ProbePlan, length: int, below: int) -> Iterator[Probe]:
    """Yield fresh ids through the dispatcher, one token short where padding is to be tried.

    Encoder-decoder models get it again with either side shorter than the other. ``below`` is the
    next smaller standard length: an input must be longer to be routed to this graph.
    """
    facts, batch = plan.facts, plan.batch
    # Where one graph serves all lengths, those between its ends were never traced; a general one
    # gets probes of its own that are one token short.
    ends = plan.lengths[-1:] if not plan.is_general else ()
    pads = facts.takes_padding and length in (*plan.whole, *plan.lengths[:1], *ends)
    real = max(below + 1, length - 1) if pads else length
    if facts.takes_padding and facts.arguments[0].kind == "values":
        # One sample more or less often makes no frame: padding that leaks would not show.
        part = max(below + 1, 3 * length // 4)
        if part < real:
            short = random_feed(facts, batch=batch, length=part, seed=FRESH_SEED_BASE + length)
            yield Probe(name=f"dispatch-{part}", length=length, feed=short, dispatch=True)
    fresh = random_feed(facts, batch=batch, length=real, seed=FRESH_SEED_BASE + length)
    passages = read_passages(plan.samples, facts)
    if not _shares_reference(plan, length):
        probe = Probe(name=f"dispatch-{real}", length=length, feed=fresh, dispatch=True)
        # The shortest length gets many texts of its own.
        yield probe if length == plan.lengths[0] else _take_passage(probe, real, passages)
    elif length != plan.lengths[-1]:  # two rows of the longest are tried in any case
        yield padded_probe(facts, length, passages)
    if "decoder_input_ids" not in facts.inputs or real < 2 or not facts.takes_padding:
        return
    for side, axis in (("encoder", "length"), ("decoder", "decoder_length")):
        short = cut(facts, fresh, axis, real // 2)
        yield Probe(name=f"dispatch-short-{side}", length=length, feed=short, dispatch=True)


def _take_passage(probe: Probe, tokens: int, passages: Mapping[int, Feed]) -> Probe:
    """Return a probe with text of so many tokens in its first row, if there is such a text."""
    import torch

    if tokens not in passages:
        return probe
    rows = passages[tokens].items()
    feed = {name: torch.cat([row, probe.feed[name][1:]]) for name, row in rows}
    return replace(probe, feed=feed, sample=f"{PASSAGE}{tokens}")


def _shares_reference(plan: ProbePlan, length: int) -> bool:
    """Tell whether a length is proved with the reference of the one under it, and padding."""
    masks = {"input_ids", "attention_mask"} <= set(plan.facts.inputs) and plan.facts.takes_padding
    if plan.general is None or not masks or plan.batch > 1:
        return False
    return length not in plan.whole and length > plan.general.shortest


def _far_padding_probes(plan: ProbePlan) -> Iterator[Probe]:
    """Pad from the shortest length to the longest, unless that has every probe."""
    facts, longest, real = plan.facts, plan.lengths[-1], plan.lengths[0]
    if longest in plan.whole or real >= longest or not facts.takes_padding:
        return
    # One that changes behind the shortest length, or at any in between, has changed on one side.
    if {"input_ids", "attention_mask"} <= set(facts.inputs):
        short = random_feed(facts, batch=plan.batch, length=real, seed=FRESH_SEED_BASE + 600)
        padded = pad_right(facts, short, longest)
        yield Probe(name=f"right-pad-{real}", length=longest, feed=padded, reference_feed=short)
