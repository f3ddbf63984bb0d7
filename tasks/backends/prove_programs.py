"""Compile a device's programs and run them through the gate: the procedure of Neuron's backends.

They are compiled last, because that takes longest, and a checkpoint that can't be a reference needs
none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.backends import programs
from tasks.backends.base import Candidate, Job, Proved
from tasks.backends.generation import compute_answers
from tasks.backends.programs import Prepared, Program
from tasks.backends.shared_steps import (
    add_refused,
    add_samples,
    compute_reference,
    require_exact_lengths,
)
from tasks.errors import (
    CompilationError,
    GenerationError,
    NumericsMismatchError,
    PaddingChangesError,
    TraceError,
)
from tasks.steps import Steps
from tasks.trace.bundle import TracedFile
from tasks.trace.record import TraceResult
from tasks.validate.reference import Reference
from tasks.validate.verdict import ValidationReport
from tracefleet.generation_types import GenerationVerdict
from tracefleet.manifest_types import Toolchain
from tracefleet.program_files import FORWARD, SEARCH, program_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """The steps of a backend that compiles a program for each length, for a device of its own.

    Every function can be pickled and runs in a child; all take and return plain data.

    Attributes:
        toolchain: Reads the versions that shape the artifact.
        has_device: Tells whether this host can run what it compiles.
        prepare: Describes outputs, unties with proof, names operators that can't be compiled.
        compile: Makes one program.
        validate: Runs the gate on the programs, on this host's device.
        validate_search: Runs the gate of generation on those of a search.
    """

    toolchain: Callable[[], Toolchain]
    has_device: Callable[[], bool]
    prepare: Callable[..., Prepared]
    compile: Callable[..., TracedFile]
    validate: Callable[[dict[int, Path], Reference, Toolchain, str], ValidationReport]
    validate_search: Callable[..., GenerationVerdict]


def prove_programs(job: Job, steps: Steps, *, compiler: Compiler) -> Proved:
    """Compile a program for each length, or take a candidate's; run the gate on a device.

    Raises:
        ConversionError: They can't be made, or don't compute what eager computes.
    """
    if job.candidate is not None:
        return _prove_candidate(job, job.candidate, steps, compiler)
    job = replace(add_samples(job, steps), device=steps.child("device", compiler.has_device))
    prepared = steps.child("prepare", compiler.prepare, job, steps.log("prepare"))
    checked, reference = _compute_program_reference(job, steps, prepared)
    prepared = _require_padding(checked, prepared)
    files = _compile_all(job, prepared, (FORWARD,), steps, compiler)
    try:
        files += _compile_all(job, prepared, prepared.programs[1:], steps, compiler)
    except CompilationError as error:
        logger.info("no generation: %s", error)
        prepared = prepared.leaving_generation(str(error))
    traced = _make_trace_result(files, prepared)
    if not job.device:
        return Proved(facts=checked.facts, traced=traced, report=None, samples=job.samples)
    return _judge(checked, traced, reference, compiler.toolchain(), steps, compiler)


def _prove_candidate(job: Job, candidate: Candidate, steps: Steps, compiler: Compiler) -> Proved:
    """Run a candidate's own programs through the gate, on this host's device."""
    job, manifest = replace(add_samples(job, steps), device=True), candidate.manifest
    prepared = steps.child("prepare", programs.prepare, job, steps.log("prepare"))
    checked, reference = _compute_program_reference(job, steps, prepared)
    prepared = _require_padding(checked, prepared)
    if manifest.generation is None:
        prepared = prepared.leaving_generation(manifest.without_generation)
    traced = _describe_candidate(candidate, prepared)
    made = Proved(facts=checked.facts, traced=traced, report=None, samples=job.samples)
    here = (made.inputs, reference.outputs, prepared.generation)
    if here != (manifest.inputs, manifest.outputs, manifest.generation):
        raise NumericsMismatchError(
            f"{manifest.key}: expected the inputs, outputs and search that were compiled, got "
            "others from eager. Convert the checkpoint again with these versions.",
            None,
        )
    return _judge(checked, traced, reference, manifest.toolchain, steps, compiler)


def _compute_program_reference(job: Job, steps: Steps, prepared: Prepared) -> tuple[Job, Reference]:
    """Compute eager's outputs for all probes of every length: the programs have no common graph."""
    plan = job.plan(whole=job.lengths, has_topk_or_sort=prepared.has_topk_or_sort, opaque=True)
    try:
        reference = compute_reference(job, steps, plan)
    except PaddingChangesError:
        return _compute_program_reference(require_exact_lengths(job), steps, prepared)
    return job.requiring(reference.required), reference


def _require_padding(job: Job, prepared: Prepared) -> Prepared:
    """Return the facts without generation for a model that is never padded: its search pads."""
    if prepared.generation is None or job.facts.takes_padding:
        return prepared
    return prepared.leaving_generation(
        "padding changes what this model computes, and a device's programs have fixed lengths"
    )


def _compile_all(
    job: Job, prepared: Prepared, parts: Sequence[str], steps: Steps, compiler: Compiler
) -> tuple[TracedFile, ...]:
    """Return the programs of some parts, for each length."""
    programs = [Program(part=part, length=length) for part in parts for length in job.lengths]
    return tuple(_compile(job, prepared, program, steps, compiler) for program in programs)


def _compile(
    job: Job, prepared: Prepared, program: Program, steps: Steps, compiler: Compiler
) -> TracedFile:
    step = f"compile-{program.name}"
    return steps.child(step, compiler.compile, job, prepared, program, steps.log(step))


def _judge(
    job: Job,
    traced: TraceResult,
    reference: Reference,
    compiled_by: Toolchain,
    steps: Steps,
    compiler: Compiler,
) -> Proved:
    """Run the gate on the device; ``compiled_by`` names the versions that made the programs."""
    programs = {length: _find(traced, length, FORWARD) for length in job.lengths}
    host = (compiled_by, job.target)
    try:
        report = steps.child("validate", compiler.validate, programs, reference, *host)
    except NumericsMismatchError as error:
        raise add_refused(error, job, traced) from None
    if traced.generation is not None:
        traced = _judge_search(job, traced, compiled_by, steps, compiler)
    return Proved(facts=job.facts, traced=traced, report=report, samples=job.samples)


def _judge_search(
    job: Job, traced: TraceResult, compiled_by: Toolchain, steps: Steps, compiler: Compiler
) -> TraceResult:
    """Return the result with the verdict on ``generate``, or without a search that proves little.

    Raises:
        NumericsMismatchError: It generates something else than eager.
    """
    assert traced.generation is not None
    searched = {}
    for part in SEARCH:
        searched[part] = {length: _find(traced, length, part) for length in job.lengths}
    try:
        reference = compute_answers(job, traced.generation, steps)
        arguments = (searched, reference, job.tolerance, job.batch, compiled_by, job.target)
        verdict = steps.child("generation", compiler.validate_search, *arguments)
    except (GenerationError, TraceError) as error:
        logger.info("no generation: %s", error)
        return _leave_search(traced, job.lengths, str(error))
    return replace(traced, generation=replace(traced.generation, verdict=verdict))


def _leave_search(traced: TraceResult, lengths: tuple[int, ...], why: str) -> TraceResult:
    """Return the result without the programs of its search."""
    kept = {program_path(length) for length in lengths}
    files = tuple(file for file in traced.files if file.published in kept)
    return replace(traced, files=files, generation=None, without_generation=why)


def _find(traced: TraceResult, length: int, part: str) -> Path:
    """Return the local file of a program."""
    published = program_path(length, part)
    return next(file.path for file in traced.files if file.published == published)


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
        generation=prepared.generation,
        without_generation=prepared.without_generation,
        **{**made, **known},
    )


def _describe_candidate(candidate: Candidate, prepared: Prepared) -> TraceResult:
    """Return a candidate's files as tracing would have returned them."""
    manifest = candidate.manifest
    entries = {entry.path: entry for entry in manifest.archives}
    files = []
    for published, path in candidate.programs.items():
        entry = entries[published]
        file = TracedFile(
            path=path, size=entry.size, sha256=entry.sha256, weight_bytes=0, published=published
        )
        files.append(file)
    known = {"outputs": manifest.outputs, "tied_groups": manifest.tied_groups}
    return _make_trace_result(tuple(files), prepared, **known)
