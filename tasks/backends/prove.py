"""Make a bundle and run it through the gate: the procedure of the backend ``jit``.

It is traced first, because its programs decide which probes it needs.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from tasks.backends.base import Job, Proved
from tasks.backends.generation import prove_generation
from tasks.backends.shared_steps import (
    add_refused,
    add_samples,
    compute_reference,
    require_exact_lengths,
)
from tasks.errors import GenerationError, NumericsMismatchError, PaddingChangesError
from tasks.steps import Steps
from tasks.trace.record import Reach, TraceResult, trace_checkpoint
from tasks.validate.gate import validate_bundle
from tasks.validate.plan import ProbePlan
from tasks.validate.verdict import ValidationReport

logger = logging.getLogger(__name__)
#: A wrong graph is further from eager than so many tolerances; other kernels' rounding is not.
#: Of the sweep's nine cases that oneDNN's took over 1e-5, the worst was at 1.8e-5.
_ROUNDING = 10.0


def prove_bundle(job: Job, steps: Steps) -> Proved:
    """Trace one bundle for all lengths and run the gate on it.

    Raises:
        ConversionError: It can't be made, or does not compute what eager computes.
    """
    reach = Reach.GENERAL if job.may_be_general else Reach.SHARED
    job, failed = add_samples(job, steps), None
    lacking: str | None = None
    while True:
        traced = _trace(job, steps, reach)
        try:
            reference = compute_reference(job, steps, _plan_bundle(job, traced))
        except PaddingChangesError:
            job = require_exact_lengths(job)
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
                raise add_refused(error, job, traced) from None
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
