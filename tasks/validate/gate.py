"""The gate: does the saved file compute what the untouched checkpoint computes?

Judges the bytes on disk, loaded in a process that never traced anything, against stored eager
outputs. A mismatch stops the line. The gate also judges itself: it corrupts the loaded copy and
has to catch that with the same probes, else it is blind and nothing is published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.errors import NumericsMismatchError, TraceError, UnsafeCheckpointError
from tasks.model.feeds import random_feed
from tasks.model.weights import digests, list_tensors
from tasks.validate.artifact import Artifact
from tasks.validate.controls import run_controls
from tasks.validate.devices import follows_device, use_full_precision
from tasks.validate.difference import all_passed
from tasks.validate.plan import ProbePlan, first_probe, plan_probes
from tasks.validate.probes import Probe
from tasks.validate.reference import Reference, as_run
from tasks.validate.verdict import ProbeResult, ValidationReport
from tracefleet.verdict_types import DIFFERS, HOLDS, RAISES

if TYPE_CHECKING:
    import torch

    from tasks.model.feeds import Feed

#: The first call records a profile, the second rewrites the graph by it, the third just runs.
_EXECUTOR_CALLS = ("first", "second", "third")
_SHOWN_FAILURES = 6
_GENERATION = ("generate",)


def validate_bundle(bundle: Path, reference: Reference) -> ValidationReport:
    """Run the whole gate on a saved bundle; the whole job of one child.

    Args:
        bundle: Archive as it will be published.
        reference: Eager's weights, and its outputs for every probe of its plan.

    Raises:
        TraceError: The saved file does not load.
        UnsafeCheckpointError: A weight in the bundle differs from eager's.
        NumericsMismatchError: A probe failed, or the gate missed a negative control.
    """
    report_progress("loading the saved bundle")
    device = reference.plan.device
    module = _load(bundle)
    matched = _check_weights(module, reference)
    use_full_precision(device)
    module.to(device)
    report = judge(module, reference, weights_matched=matched)
    methods = ["forward", *(f"forward_{length}" for length in reference.plan.lengths)]
    methods += [name for name in _GENERATION if hasattr(module, name)]
    return dataclasses.replace(report, follows_device=follows_device(module, methods))


def judge(module: Any, reference: Reference, *, weights_matched: int = 0) -> ValidationReport:
    """Run every probe on a loaded module that has a bundle's methods.

    Args:
        module: Artifact, loaded from the bytes that will be published.
        reference: Eager's outputs for every probe of its plan.
        weights_matched: Number of the artifact's tensors that were compared with the checkpoint's.

    Raises:
        NumericsMismatchError: A probe failed, or the gate missed a negative control.
    """
    import torch

    artifact = Artifact(module, reference)
    with torch.no_grad():
        # The default executor spends seconds on the first two calls of every method, to rewrite
        # what it has watched. It gets one graph to show that its rewriting is right; every probe
        # then runs the graphs as they were recorded, as the reader, C++ and Triton do.
        failures = [*_check_profiled(artifact)]
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            findings = _run_probes(artifact)
            failures += findings.failures
            failures += _check_every_length_counts(artifact, findings)
            failures += _check_refusals(artifact)
            controls, missed = run_controls(artifact)
            failures += missed
    report = ValidationReport(
        tolerance=reference.plan.tolerance,
        probes=tuple(findings.results),
        negative_controls=controls,
        weights_matched=weights_matched,
        latency_eager=reference.latency,
        latency_traced=artifact.latency,
        failures=tuple(failures),
        measured=tuple(findings.measured),
        accuracy=reference.accuracy,
        general=reference.plan.general,
        golden=reference.golden,
    )
    if not report.passed:
        raise NumericsMismatchError(_summary(report), report)
    return report


def _load(bundle: Path) -> torch.jit.ScriptModule:
    import torch

    try:
        module: torch.jit.ScriptModule = torch.jit.load(bundle).eval()
        return module
    except RuntimeError as error:
        raise TraceError(
            f"{bundle.name}: expected the saved bundle to load, got: {error}. "
            "The archive is not what was traced; nothing is published. Report it with the "
            "checkpoint's config.",
            lasting=False,
        ) from error


def _check_weights(module: torch.jit.ScriptModule, reference: Reference) -> int:
    """Compare every name in the bundle, untied copies and fused tensors included."""
    # Probes read few rows of an embedding: a wrong value in another one changes no output.
    for name, digest in digests(list_tensors(module)).items():
        inner = name.removeprefix("model.")
        if reference.weights.get(inner) != digest:
            raise UnsafeCheckpointError(
                f"{inner}: expected the bundle to hold the reference's value bit for bit, got "
                "another one. Nothing was published; trace again, and report it if it stays.",
                lasting=False,
            )
    return len(reference.weights)


@dataclass(kw_only=True)
class _Findings:
    """Results of the probes.

    Attributes:
        results: Verdict of each judged probe.
        measured: Length, what was measured and the result of each probe that is not judged.
        failures: Sentence for each probe that failed.
    """

    results: list[ProbeResult] = field(default_factory=list)
    measured: list[tuple[int, str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def _run_probes(artifact: Artifact) -> _Findings:
    """Compare every probe, after a failure too: the report shows them all."""
    findings, reference = _Findings(), artifact.reference
    announced = ""
    for index, planned in enumerate(plan_probes(artifact.plan)):
        if planned.place != announced:
            announced = planned.place
            report_progress(f"validating {announced}")
        # Eager stored nothing for an optional probe or another shape that it refuses.
        without_reference = not artifact.path(index).exists()
        if planned.measured and not without_reference:
            measured = _measure(artifact, index, as_run(planned, reference.padded))
            findings.measured.append((planned.length, planned.measured, measured))
        if planned.measured or (planned.optional and without_reference):
            continue
        if planned.general and without_reference:
            findings.failures.append(f"{planned.name}: eager refuses it, so that nothing is proved")
            continue
        if planned.key in reference.refused:
            what = f"{planned.name} (which eager refuses)"
            method = f"forward_{planned.length}"
            findings.failures += _must_raise(artifact, method, planned.feed, what)
            continue
        result = _judge(artifact, index, as_run(planned, reference.padded))
        findings.results.append(result)
        if not result.difference.passed:
            findings.failures.append(_describe_failure(result))
    return findings


def _judge(artifact: Artifact, index: int, probe: Probe) -> ProbeResult:
    return ProbeResult(
        name=probe.name,
        length=probe.length,
        vacuous=probe.key in artifact.reference.vacuous,
        outputs=artifact.outputs,
        differences=tuple(artifact.compare(index, probe, probe.feed)),
    )


def _measure(artifact: Artifact, index: int, probe: Probe) -> str:
    """Run the bare graph as no consumer can, or left-padded rows as one may; return the word."""
    import torch

    if probe.key in artifact.reference.moved_by_both:
        return DIFFERS
    try:
        outputs = artifact.call_measured(probe)
    except (torch.jit.Error, RuntimeError):
        return RAISES
    found = artifact.compare_with(artifact.path(index), probe, outputs)
    return HOLDS if all_passed(found) else DIFFERS


def _check_profiled(artifact: Artifact) -> Iterator[str]:
    """Compare the first graph under the default executor, which C++ and Triton use."""
    probe = first_probe(artifact.plan)
    for attempt in _EXECUTOR_CALLS:
        found = artifact.compare(0, probe, probe.feed)
        if not all_passed(found):
            worst = max(found, key=lambda difference: difference.max_rel)
            yield (
                f"{probe.name} at length {probe.length}, {attempt} call with the default "
                f"executor: {worst.reason or f'relative error {worst.max_rel:.3g}'}"
            )


def _check_every_length_counts(artifact: Artifact, findings: _Findings) -> Iterator[str]:
    """Require a probe that moves the model at each length: agreement of others proves nothing."""
    counting = {result.length for result in findings.results if not result.vacuous}
    for length in artifact.plan.lengths:
        if length not in counting:
            yield f"length {length}: expected a probe that counts, got none"


def _check_refusals(artifact: Artifact) -> Iterator[str]:
    """Require that other shapes than were traced raise, and inputs that are too long."""
    # Longformer, LED, Funnel and BigBird compute nonsense at other lengths without an error: only
    # the bundle's guards can refuse them.
    plan, facts = artifact.plan, artifact.plan.facts
    varies = facts.varies_in_length
    if varies:
        longer = plan.lengths[-1] + 1
        yield from _must_raise(artifact, "forward", _feed_of_shape(artifact, 1, longer))
    for length in plan.lengths:
        if not varies:
            feed = _feed_of_shape(artifact, 1, length)
            yield from _must_raise(artifact, "forward", _narrow(feed))
        elif not facts.takes_padding and _is_refused(plan, length - 1):
            feed = _feed_of_shape(artifact, plan.batch, length - 1)
            yield from _must_raise(artifact, "forward", feed)
        method = f"forward_{length}"
        yield from _must_raise(artifact, method, _feed_of_shape(artifact, plan.batch + 1, length))
        if varies:
            feed = _feed_of_shape(artifact, plan.batch, length + 1)
            yield from _must_raise(artifact, method, feed)


def _is_refused(plan: ProbePlan, tokens: int) -> bool:
    """Tell whether a bundle that pads nothing has to refuse rows of so many tokens."""
    return tokens not in (0, *plan.lengths) and plan.pads(tokens)


def _feed_of_shape(artifact: Artifact, rows: int, length: int) -> Feed:
    return random_feed(artifact.plan.facts, batch=rows, length=length, seed=2)


def _must_raise(artifact: Artifact, method: str, feed: Feed, what: str = "") -> Iterator[str]:
    if not artifact.refuses(method, feed):
        shape = tuple(next(iter(feed.values())).shape)
        yield f"{method}: expected {what or f'shape {shape}'} to be refused, got a result"


def _narrow(feed: Feed) -> Feed:
    """Cut the first input's last axis by one: an image of another size."""
    name, tensor = next(iter(feed.items()))
    return {**feed, name: tensor[..., :-1].contiguous()}


def _describe_failure(result: ProbeResult) -> str:
    difference = result.difference
    got = difference.reason or f"relative error {difference.max_rel:.3g}"
    return f"{result.name} at length {result.length}: {result.output}: {got}"


def _summary(report: ValidationReport) -> str:
    shown = "; ".join(report.failures[:_SHOWN_FAILURES])
    more = len(report.failures) - _SHOWN_FAILURES
    return (
        f"the saved bundle does not compute what eager computes: expected every difference within "
        f"{report.tolerance.rtol:g} of the largest eager value, got {len(report.failures)} "
        f"failure(s): {shown}{f'; and {more} more' if more > 0 else ''}. Nothing was published. "
        "Convert at one length, or with batch 1, to narrow it down; the report lists every probe."
    )
