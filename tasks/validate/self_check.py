"""Does eager agree with itself? Nothing can be compared with a reference that does not.

A second run, another attention implementation, and padded against unpadded.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tasks.errors import PaddingChangesError, UnsupportedCheckpointError
from tasks.model.feeds import pad_right, random_feed, tokens_of
from tasks.model.state import restoring_module_state
from tasks.model.versions import eager_attention
from tasks.validate.difference import is_within
from tasks.validate.plan import ProbePlan, first_probe, plan_probes
from tasks.validate.probes import Probe
from tasks.validate.reference import as_run, compare_outputs, load_outputs
from tasks.validate.reference_pass import ReferencePass

if TYPE_CHECKING:
    from tasks.validate.reference import Outputs

_TOPK_SEEDS, _TOPK_SEED_BASE = 16, 5000


def check_itself(eager: ReferencePass) -> None:
    """Refuse a reference that is constant, keeps state, or depends on how it is computed.

    Args:
        eager: A pass that has run.

    Raises:
        UnsupportedCheckpointError: It does.
        PaddingChangesError: Its outputs depend on right padding.
    """
    for spec, moved in zip(eager.specs, eager.ever_moved, strict=True):
        if not moved:
            raise eager.refusal(f"output {spec.name} never moves, whatever the inputs are")
    check_second_run(eager)
    _check_attention(eager)
    _check_padding(eager)


def check_second_run(eager: ReferencePass) -> None:
    """Require the same bits from a second and a third call.

    Raises:
        UnsupportedCheckpointError: They differ.
    """
    probe = first_probe(eager.plan)
    # Nothing is restored between the two calls: state that a model keeps shows in the second.
    with restoring_module_state(eager.model):
        eager.run_eager(probe)
        again = eager.run_eager(probe)
    complaint = "a second run gives another result (state or chance)"
    _require_agreement(eager, probe, again, load_outputs(eager.path(0)), complaint, 0.0)


def _check_attention(eager: ReferencePass) -> None:
    if getattr(eager.model.config, "_attn_implementation", None) != "sdpa":
        return
    probe = first_probe(eager.plan)
    with eager_attention(eager.model):
        outputs = eager.call(probe)
    complaint = "sdpa and eager attention disagree"
    rtol = eager.plan.tolerance.rtol
    _require_agreement(eager, probe, outputs, load_outputs(eager.path(0)), complaint, rtol)


def _check_padding(eager: ReferencePass) -> None:
    """Require that eager's outputs don't depend on right padding: dispatcher and readers pad."""
    if not eager.plan.facts.takes_padding:
        return
    for index, probe in _find_short_probes(eager).items():
        _check_padded(eager, probe, load_outputs(eager.path(index)))
    if eager.plan.has_topk_or_sort:
        _check_ties(eager)


def _find_short_probes(eager: ReferencePass) -> dict[int, Probe]:
    """Return probes that are shorter than their standard length, by index.

    Every probe with padding; where the shortest or the longest length has none, one that the
    dispatcher pads: sparse attention may depend on padding in long inputs alone. A general graph's
    callers pad as far as they like: from just under the shortest length to the longest, over a
    change at any length in between.
    """
    plan = eager.plan
    probes = {}
    for index, probe in enumerate(plan_probes(plan)):
        # Those with padding on their left may depend on it; eager may have refused an optional one.
        if not probe.left_padded and eager.path(index).exists():
            probes[index] = as_run(probe, eager.padded)
    short = {}
    for index, probe in probes.items():
        if probe.reference_feed and not probe.general:
            short[index] = probe
    lacking = {plan.lengths[0], plan.lengths[-1]} - {probe.length for probe in short.values()}
    if plan.is_general:
        lacking.discard(plan.lengths[-1])
        short |= _pad_far(plan, probes)
    for index, probe in probes.items():
        tokens = max(tokens_of(plan.facts, probe.feed).values(), default=probe.length)
        if probe.dispatch and tokens < probe.length and probe.length in lacking:
            lacking.remove(probe.length)
            short[index] = probe
    return short


def _pad_far(plan: ProbePlan, probes: dict[int, Probe]) -> dict[int, Probe]:
    """Return the probe one token under the shortest length, or the next, padded to the longest."""
    tokens = {}
    for index, probe in probes.items():
        size = max(tokens_of(plan.facts, probe.feed).values(), default=0)
        if probe.general and plan.lengths[0] - 1 <= size < plan.lengths[-1] - 1:
            tokens[index] = size
    if not tokens:
        return {}
    index = min(tokens, key=tokens.__getitem__)
    return {index: dataclasses.replace(probes[index], length=plan.lengths[-1])}


def _check_ties(eager: ReferencePass) -> None:
    """Pad many inputs: which of several equal values a top-k takes depends on what follows."""
    # AXK2's and DeepSeek V3.2's sparse attention has such ties between positions; a few inputs
    # show nothing, the next one is off by half.
    facts, batch = eager.plan.facts, eager.plan.batch
    for length in eager.plan.lengths:
        for real in sorted({length - 1, 3 * length // 4} - {0}):
            for seed in range(_TOPK_SEEDS):
                feed = random_feed(facts, batch=batch, length=real, seed=_TOPK_SEED_BASE + seed)
                probe = Probe(name=f"ties-{real}-{seed}", length=length, feed=feed)
                _check_padded(eager, probe, eager.outputs(feed))


def _check_padded(eager: ReferencePass, probe: Probe, unpadded: Outputs) -> None:
    outputs = eager.outputs(pad_right(eager.plan.facts, probe.eager_feed, probe.length))
    complaint, rtol = "padding on the right changes the outputs", eager.plan.tolerance.rtol
    try:
        _require_agreement(eager, probe, outputs, unpadded, complaint, rtol)
    except UnsupportedCheckpointError as error:
        raise PaddingChangesError(str(error)) from None


def _require_agreement(
    eager: ReferencePass,
    probe: Probe,
    judged: Outputs,
    reference: Outputs,
    complaint: str,
    bound: float,
) -> None:
    found = compare_outputs(
        eager.specs, eager.plan.tolerance, judged, reference, probe.eager_feed, eager.scales
    )
    if not all(is_within(difference, bound) for difference in found):
        worst = max(difference.max_rel for difference in found)
        raise eager.refusal(
            f"{complaint}: relative difference expected at most {bound:g}, got {worst:.3g}"
        )
