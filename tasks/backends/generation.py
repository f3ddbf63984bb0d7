"""Prove ``generate``, after ``forward`` was proved: a bundle's here, programs' beside theirs."""

from __future__ import annotations

from dataclasses import replace

from tasks.backends.base import Job
from tasks.errors import GenerationError, NumericsMismatchError
from tasks.steps import Steps
from tasks.trace.record import TraceResult
from tasks.validate.generation import validate_generation
from tasks.validate.generation_reference import GenerationReference, compute_generation
from tracefleet.generation_types import Generation, GenerationVerdict
from tracefleet.manifest_types import INT8


def prove_generation(job: Job, traced: TraceResult, steps: Steps) -> TraceResult:
    """Return the result with the verdict on ``generate``; as it is where there is none.

    Raises:
        GenerationError: Eager can't generate, its answers prove too little, or int8 rounds its
            steps to other levels than eager's.
        NumericsMismatchError: The artifact generates something else.
        ConversionCrashedError: The limits of a child are too small for it.
    """
    if traced.generation is None:
        return traced
    try:
        verdict = _run_gate(job, traced, traced.generation, steps)
    except NumericsMismatchError as error:
        if job.options.dtype != INT8:
            raise
        # A value between two levels goes to either by its last bit, which no tolerance can bound.
        raise GenerationError(
            "int8: expected steps with the levels of eager's pass over all tokens, got others; "
            "nothing shows that its answers are right. Convert with float32 to generate."
        ) from error
    return replace(traced, generation=replace(traced.generation, verdict=verdict))


def _run_gate(
    job: Job, traced: TraceResult, generation: Generation, steps: Steps
) -> GenerationVerdict:
    reference = compute_answers(job, generation, steps)
    arguments = (traced.file.path, reference, job.tolerance)
    return steps.child("generation", validate_generation, *arguments)


def compute_answers(job: Job, generation: Generation, steps: Steps) -> GenerationReference:
    """Return what eager generates.

    Raises:
        GenerationError: Eager can't generate.
    """
    return steps.child(
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
