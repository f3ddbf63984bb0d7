"""Prove a traced bundle's ``generate``, after its ``forward`` was proved."""

from __future__ import annotations

from dataclasses import replace

from tasks.backends.base import Job
from tasks.steps import Steps
from tasks.trace.record import TraceResult
from tasks.validate.generation import validate_generation
from tasks.validate.generation_reference import compute_generation
from tracefleet.generation_types import Generation, GenerationVerdict


def prove_generation(job: Job, traced: TraceResult, steps: Steps) -> TraceResult:
    """Return the result with the verdict on ``generate``; as it is where there is none.

    Raises:
        GenerationError: Eager can't generate, or its answers prove too little.
        NumericsMismatchError: The artifact generates something else.
        ConversionCrashedError: The limits of a child are too small for it.
    """
    if traced.generation is None:
        return traced
    verdict = _run_gate(job, traced, traced.generation, steps)
    return replace(traced, generation=replace(traced.generation, verdict=verdict))


def _run_gate(
    job: Job, traced: TraceResult, generation: Generation, steps: Steps
) -> GenerationVerdict:
    reference = steps.child(
        "generation-reference",
        compute_generation,
        job.folder,
        job.options,
        job.facts,
        generation,
        job.lengths,
        job.generation,
        job.samples,
        job.work / "generation.safetensors",
    )
    arguments = (traced.file.path, reference, job.tolerance)
    return steps.child("generation", validate_generation, *arguments)
