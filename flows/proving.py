"""Trace a checkpoint and put what came of it through the gate.

Two ways: a jit bundle is traced first, because its programs tell which probes it needs; a device's
programs are compiled last, because a compilation takes longest and a checkpoint that can't be a
reference needs none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.children import Children, log_of
from tasks.backends.base import Backend, Compiler
from tasks.backends.programs import Prepared, ProgramJob
from tasks.errors import NumericsMismatchError, PaddingChangesError
from tasks.model.facts import ModelFacts
from tasks.request.conversion import ConversionRequest
from tasks.trace.bundle import TracedFile
from tasks.trace.record import TraceResult
from tasks.validate.compute import compute_reference
from tasks.validate.gate import validate_bundle
from tasks.validate.probes import ProbePlan
from tasks.validate.reference import Reference
from tasks.validate.verdict import ValidationReport
from tracefleet.manifest import Toolchain
from tracefleet.store.cache import cache_root

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Proved:
    """What was traced, and what the gate found.

    Attributes:
        facts: of the model; without padding where eager minds it.
        traced: files and what is known of them.
        report: the gate's; None: there is no device here that could run the files.
    """

    facts: ModelFacts
    traced: TraceResult
    report: ValidationReport | None


@dataclass(frozen=True, kw_only=True)
class Proving:
    """One checkpoint on its way through trace and gate.

    Attributes:
        children: runs the steps.
        request: what was asked for.
        folder: the checkpoint.
        work: folder for everything that is made.
        refused: keeps the report of a refused artifact, beside its error.
    """

    children: Children
    request: ConversionRequest
    folder: Path
    work: Path
    refused: Callable[[TraceResult, ModelFacts, ValidationReport], None]

    def prove(self, backend: Backend | Compiler, facts: ModelFacts) -> Proved:
        """Make the artifact of one backend and judge it.

        Raises:
            ConversionError: it can't be made, or it is not what eager computes.
        """
        if isinstance(backend, Compiler):
            return self._compile(backend, facts)
        return self._trace(backend, facts, share=True)

    def _trace(self, backend: Backend, facts: ModelFacts, *, share: bool) -> Proved:
        request, options = self.request, self.request.load_options
        # The stem is part of the archive's bytes: always model.pt.
        target = self.work / "model.pt"
        traced: TraceResult = self._child(
            "trace",
            backend.trace,
            self.folder,
            options,
            facts,
            request.lengths,
            request.batch,
            target,
            share,
        )
        lengths = request.lengths
        # What holds at one length says nothing about another where the programs differ.
        whole = lengths[:1] if traced.same_program else lengths
        plan = self._plan(facts, whole=whole, selects=traced.selects)
        try:
            reference = self._reference(plan)
        except PaddingChangesError:
            return self._trace(backend, _exact(facts), share=share)
        try:
            report = self._child("validate", validate_bundle, target, reference)
        except NumericsMismatchError as error:
            if traced.shared:
                logger.info("one graph does not hold at every length: tracing each")
                return self._trace(backend, facts, share=False)
            self._keep_report(traced, facts, error)
            raise
        return Proved(facts=facts, traced=traced, report=report)

    def _compile(self, backend: Compiler, facts: ModelFacts) -> Proved:
        device: bool = self._child("device", backend.has_device)
        job = self.job(facts, device=device)
        prepared: Prepared = self._child("prepare", backend.prepare, job, self._log("prepare"))
        facts, reference = self.reference_of_programs(facts, prepared.selects)
        files = tuple(self._program(backend, job, prepared, n) for n in self.request.lengths)
        traced = TraceResult(
            files=files,
            outputs=prepared.outputs,
            tied_groups=prepared.tied_groups,
            same_program=False,
            shared=False,
            selects=prepared.selects,
        )
        report = None
        if device:
            found = {n: one.path for n, one in zip(self.request.lengths, files, strict=True)}
            report = self.judge_programs(
                backend, found, reference, traced, facts, backend.toolchain()
            )
        return Proved(facts=facts, traced=traced, report=report)

    def reference_of_programs(
        self, facts: ModelFacts, selects: bool
    ) -> tuple[ModelFacts, Reference]:
        """Compute eager's outputs for programs that share nothing but the weights."""
        plan = self._plan(facts, whole=self.request.lengths, selects=selects, opaque=True)
        try:
            return facts, self._reference(plan)
        except PaddingChangesError:
            return self.reference_of_programs(_exact(facts), selects)

    def judge_programs(
        self,
        backend: Compiler,
        programs: dict[int, Path],
        reference: Reference,
        traced: TraceResult,
        facts: ModelFacts,
        compiled_by: Toolchain,
    ) -> ValidationReport:
        """Run the gate on the device.

        Raises:
            ConversionError: the programs don't load, or are not what eager computes.
        """
        target = self.request.target
        try:
            report: ValidationReport = self._child(
                "validate", backend.validate, programs, reference, compiled_by, target
            )
        except NumericsMismatchError as error:
            self._keep_report(traced, facts, error)
            raise
        return report

    def _program(
        self, backend: Compiler, job: ProgramJob, prepared: Prepared, length: int
    ) -> TracedFile:
        step = f"compile-{length}"
        made: TracedFile = self._child(
            step, backend.compile, job, prepared, length, self._log(step)
        )
        return made

    def job(self, facts: ModelFacts, *, device: bool) -> ProgramJob:
        """Return what the backend's steps are told of this request."""
        request = self.request
        assert request.backend_options is not None
        return ProgramJob(
            folder=self.folder,
            options=request.load_options,
            facts=facts,
            lengths=request.lengths,
            batch=request.batch,
            compiling=request.backend_options,
            device=device,
            work=self.work,
            failed=cache_root() / "failed-compilations",
        )

    def _plan(
        self, facts: ModelFacts, *, whole: tuple[int, ...], selects: bool, opaque: bool = False
    ) -> ProbePlan:
        return ProbePlan(
            facts=facts,
            lengths=self.request.lengths,
            whole=whole,
            batch=self.request.batch,
            tolerance=self.request.tolerance,
            selects=selects,
            opaque=opaque,
        )

    def _reference(self, plan: ProbePlan) -> Reference:
        folder, options = self.folder, self.request.load_options
        made: Reference = self._child(
            "reference", compute_reference, folder, options, plan, self.work / "reference"
        )
        return made

    def _keep_report(
        self, traced: TraceResult, facts: ModelFacts, error: NumericsMismatchError
    ) -> None:
        if error.report is not None:
            self.refused(traced, facts, error.report)

    def _child(self, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.children.child(self.work, step, function, *arguments)

    def _log(self, step: str) -> Path:
        return log_of(self.work, step)


def _exact(facts: ModelFacts) -> ModelFacts:
    logger.info("padding changes what this model computes: exact lengths only")
    return facts.exact()
