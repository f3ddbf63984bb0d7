"""What both procedures of the backends share: real inputs, eager's reference, a refusal."""

from __future__ import annotations

import logging
from dataclasses import replace

from tasks.backends.base import Job, Proved
from tasks.errors import NumericsMismatchError
from tasks.samples.make import make_samples
from tasks.steps import Steps
from tasks.trace.record import TraceResult
from tasks.validate.compute import compute_reference as compute
from tasks.validate.plan import ProbePlan
from tasks.validate.reference import Reference

logger = logging.getLogger(__name__)


def add_samples(job: Job, steps: Steps) -> Job:
    """Return the job with real inputs, made by the checkpoint's own tokenizer or processor."""
    path = job.work / "samples.safetensors"
    arguments = (job.folder, job.options, job.facts, job.lengths, path)
    return replace(job, samples=steps.child("samples", make_samples, *arguments))


def compute_reference(job: Job, steps: Steps, plan: ProbePlan) -> Reference:
    """Return eager's outputs for a plan's probes.

    Raises:
        PaddingChangesError: Padding changes what eager computes.
    """
    folder = job.work / "reference"
    return steps.child("reference", compute, job.folder, job.options, plan, folder)


def require_exact_lengths(job: Job) -> Job:
    """Return the job of a model that is never padded, and say so."""
    logger.info("padding changes what this model computes: it is never padded")
    return job.without_padding()


def add_refused(
    error: NumericsMismatchError, job: Job, traced: TraceResult
) -> NumericsMismatchError:
    """Return the gate's error with the refused artifact, for the report."""
    if error.report is not None:
        error.refused = Proved(
            facts=job.facts, traced=traced, report=error.report, samples=job.samples
        )
    return error
