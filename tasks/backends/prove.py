"""Make an artifact and run it through the gate: the two procedures of the backends.

A jit bundle is traced first, because its programs decide which probes it needs. A device's programs
are compiled last, because that takes longest, and a checkpoint that can't be a reference needs
none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.backends import programs
from tasks.backends.base import Candidate, Job, Proved
from tasks.backends.generation import prove_generation
from tasks.backends.programs import Prepared
from tasks.errors import GenerationError, NumericsMismatchError, PaddingChangesError
from tasks.samples.make import make_samples
from tasks.steps import Steps
from tasks.trace.bundle import TracedFile
from tasks.trace.record import Reach, TraceResult, trace_checkpoint
from tasks.validate.compute import compute_reference
from tasks.validate.gate import validate_bundle
from tasks.validate.plan import ProbePlan
from tasks.validate.reference import Reference
from tasks.validate.verdict import ValidationReport
from tracefleet.manifest import program_path
from tracefleet.manifest_types import Toolchain

logger = logging.getLogger(__name__)
#: A wrong graph is further from eager than so many tolerances; other kernels' rounding is not.
#: Of the sweep's nine cases that oneDNN's took over 1e-5, the worst was at 1.8e-5.
_ROUNDING = 10.0


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """The steps of a backend that compiles a program for each length, for a device of its own.

    Every function can be pickled and runs in a child; all take and return plain data.

    Attributes:
        toolchain: Reads the versions that shape the artifact.
        has_device: Tells whether this host can run what it compiles.
        prepare: Describes outputs, unties with proof, names operators that can't be compiled.
        compile: Makes the program of one length.
        validate: Runs the gate on the programs, on this host's device.
    """

    toolchain: Callable[[], Toolchain]
    has_device: Callable[[], bool]
    prepare: Callable[..., Prepared]
    compile: Callable[..., TracedFile]
    validate: Callable[[dict[int, Path], Reference, Toolchain, str], ValidationReport]


def prove_bundle(job: Job, steps: Steps) -> Proved:
    """Trace one bundle for all lengths and run the gate on it.

    Raises:
        ConversionError: It can't be made, or does not compute what eager computes.
    """
    reach = Reach.GENERAL if job.may_be_general else Reach.SHARED
    job, failed = _add_samples(job, steps), None
    lacking: str | None = None
    while True:
        traced = _trace(job, steps, reach)
        try:
            reference = _compute_reference(job, steps, _plan_bundle(job, traced))
        except PaddingChangesError:
            job = _require_exact_lengths(job)
            continue
        try:
            report = steps.child("validate", validate_bundle, traced.file.path, reference)
        except NumericsMismatchError as error:
            if job.fast_linear and _is_rounding(error.report):
                logger.info("oneDNN rounds this model's layers too far from eager: torch's own")
                job = replace(job, fast_linear=False)
                continue
            narrower = _narrow(reach, traced)
            if narrower is None:
                raise _refusal(error, job, traced) from None
            reach, failed = narrower, failed or _name_failures(error)
        else:
            routed = failed or traced.routed
            traced = replace(traced, routed=routed, follows_device=report.follows_device)
            try:
                traced = prove_generation(job, traced, steps)
            except GenerationError as error:
                logger.info("no generation: %s", error)
                job, lacking = replace(job, generation="none"), str(error)
                continue
            traced = replace(traced, without_generation=lacking or traced.without_generation)
            facts = job.requiring(reference.required).facts
            return Proved(facts=facts, traced=traced, report=report, samples=job.samples)


def _is_rounding(report: ValidationReport | None) -> bool:
    """Tell whether a bundle failed by little alone: some models make much of the last bits."""
    if report is None:
        return False
    failed = [one.difference for one in report.probes if not one.difference.passed]
    # A check that is no probe failed too: a weight, or a planted fault that was not seen.
    if not failed or len(failed) != len(report.failures):
        return False
    most = _ROUNDING * report.tolerance.rtol
    return all(one.max_rel <= most and not one.reason for one in failed)


def _narrow(reach: Reach, traced: TraceResult) -> Reach | None:
    """Return what one graph may serve after it failed the gate; None: it was not asked for more."""
    if traced.general is not None and reach > Reach.SHARED:
        logger.info("the graph does not hold at every shape: padding to standard lengths")
        return Reach.SHARED
    if traced.shared and reach > Reach.EACH:
        logger.info("one graph does not hold at every length: tracing each")
        return Reach.EACH
    return None


def _name_failures(error: NumericsMismatchError) -> str:
    """Say which checks a graph did not pass; no figures, which differ from host to host."""
    failures = error.report.failures if error.report is not None else ()
    names = [failure.partition(":")[0] for failure in failures[:3]]
    return f"the programs are equal, and these checks did not pass: {', '.join(names)}"


def prove_programs(job: Job, steps: Steps, *, compiler: Compiler) -> Proved:
    """Compile a program for each length, or take a candidate's; run the gate on a device.

    Raises:
        ConversionError: They can't be made, or don't compute what eager computes.
    """
    if job.candidate is not None:
        return _prove_candidate(job, job.candidate, steps, compiler)
    job = replace(_add_samples(job, steps), device=steps.child("device", compiler.has_device))
    prepared = steps.child("prepare", compiler.prepare, job, steps.log("prepare"))
    checked, reference = _compute_program_reference(job, steps, prepared)
    files = tuple(_compile(job, prepared, length, steps, compiler) for length in job.lengths)
    traced = _make_trace_result(files, prepared)
    if not job.device:
        return Proved(facts=checked.facts, traced=traced, report=None, samples=job.samples)
    paths = {length: file.path for length, file in zip(job.lengths, files, strict=True)}
    return _judge(checked, traced, paths, reference, compiler.toolchain(), steps, compiler)


def _prove_candidate(job: Job, candidate: Candidate, steps: Steps, compiler: Compiler) -> Proved:
    """Run a candidate's own programs through the gate, on this host's device."""
    job, manifest = replace(_add_samples(job, steps), device=True), candidate.manifest
    prepared = steps.child("prepare", programs.prepare, job, steps.log("prepare"))
    checked, reference = _compute_program_reference(job, steps, prepared)
    traced = _describe_candidate(candidate, prepared)
    made = Proved(facts=checked.facts, traced=traced, report=None, samples=job.samples)
    if (made.inputs, reference.outputs) != (manifest.inputs, manifest.outputs):
        raise NumericsMismatchError(
            f"{manifest.key}: expected the inputs and outputs that were compiled, got others "
            "from eager. Convert the checkpoint again with these versions.",
            None,
        )
    paths, compiled_by = candidate.programs, manifest.toolchain
    return _judge(checked, traced, paths, reference, compiled_by, steps, compiler)


def _add_samples(job: Job, steps: Steps) -> Job:
    """Return the job with real inputs, made by the checkpoint's own tokenizer or processor."""
    path = job.work / "samples.safetensors"
    arguments = (job.folder, job.options, job.facts, job.lengths, path)
    return replace(job, samples=steps.child("samples", make_samples, *arguments))


def _trace(job: Job, steps: Steps, reach: Reach) -> TraceResult:
    return steps.child(
        "trace",
        trace_checkpoint,
        job.folder,
        job.options,
        job.facts,
        job.lengths,
        job.batch,
        # The stem is part of the archive's bytes: always model.pt.
        job.work / "model.pt",
        reach,
        job.generation,
        job.fast_linear,
    )


def _plan_bundle(job: Job, traced: TraceResult) -> ProbePlan:
    # What holds at one length shows nothing of another where the programs differ.
    whole = job.lengths[:1] if traced.same_program else job.lengths
    return job.plan(whole=whole, has_topk_or_sort=traced.has_topk_or_sort, general=traced.general)


def _compute_program_reference(job: Job, steps: Steps, prepared: Prepared) -> tuple[Job, Reference]:
    """Compute eager's outputs for all probes of every length: the programs have no common graph."""
    plan = job.plan(whole=job.lengths, has_topk_or_sort=prepared.has_topk_or_sort, opaque=True)
    try:
        reference = _compute_reference(job, steps, plan)
    except PaddingChangesError:
        return _compute_program_reference(_require_exact_lengths(job), steps, prepared)
    return job.requiring(reference.required), reference


def _compute_reference(job: Job, steps: Steps, plan: ProbePlan) -> Reference:
    folder = job.work / "reference"
    return steps.child("reference", compute_reference, job.folder, job.options, plan, folder)


def _compile(
    job: Job, prepared: Prepared, length: int, steps: Steps, compiler: Compiler
) -> TracedFile:
    step = f"compile-{length}"
    return steps.child(step, compiler.compile, job, prepared, length, steps.log(step))


def _judge(
    job: Job,
    traced: TraceResult,
    paths: dict[int, Path],
    reference: Reference,
    compiled_by: Toolchain,
    steps: Steps,
    compiler: Compiler,
) -> Proved:
    """Run the gate on the device; ``compiled_by`` names the versions that made the programs."""
    arguments = (paths, reference, compiled_by, job.target)
    try:
        report = steps.child("validate", compiler.validate, *arguments)
    except NumericsMismatchError as error:
        raise _refusal(error, job, traced) from None
    return Proved(facts=job.facts, traced=traced, report=report, samples=job.samples)


def _make_trace_result(
    files: tuple[TracedFile, ...], prepared: Prepared, **known: Any
) -> TraceResult:
    made: dict[str, Any] = {"outputs": prepared.outputs, "tied_groups": prepared.tied_groups}
    return TraceResult(
        files=files,
        same_program=False,
        shared=False,
        routed="a program has one length",
        device="neuroncore",
        has_topk_or_sort=prepared.has_topk_or_sort,
        **{**made, **known},
    )


def _describe_candidate(candidate: Candidate, prepared: Prepared) -> TraceResult:
    """Return a candidate's files as tracing would have returned them."""
    manifest = candidate.manifest
    entries = {entry.path: entry for entry in manifest.archives}
    files = []
    for length, path in candidate.programs.items():
        entry = entries[program_path(length)]
        file = TracedFile(
            path=path, size=entry.size, sha256=entry.sha256, weight_bytes=0, published=entry.path
        )
        files.append(file)
    known = {"outputs": manifest.outputs, "tied_groups": manifest.tied_groups}
    return _make_trace_result(tuple(files), prepared, **known)


def _require_exact_lengths(job: Job) -> Job:
    logger.info("padding changes what this model computes: it is never padded")
    return job.without_padding()


def _refusal(error: NumericsMismatchError, job: Job, traced: TraceResult) -> NumericsMismatchError:
    """Return the gate's error with the refused artifact, for the report."""
    if error.report is not None:
        error.refused = Proved(
            facts=job.facts, traced=traced, report=error.report, samples=job.samples
        )
    return error
