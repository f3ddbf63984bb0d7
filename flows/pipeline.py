"""The way through: request → fetch → trace → reference → validate → publish.

``convert`` is the one order of things. It is handed its steps as callables: plain functions for
the command line and the benchmarks, Prefect tasks over the very same functions for the flow
(``flows.convert_checkpoint``). Only plain data and paths go from step to step.
"""

from __future__ import annotations

import getpass
import logging
import platform
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.request import ConversionRequest
from tasks import child
from tasks.backends.base import Backend, find_backend
from tasks.child import Limits, Outcome
from tasks.eager import compute_reference
from tasks.errors import NumericsMismatchError, PaddingChangesError
from tasks.fetch import Checkpoint, Resolved, fetch, fetch_description, resolve
from tasks.heads import default_task
from tasks.inputs import input_specs
from tasks.key import RECIPE, conversion_key
from tasks.load import ModelFacts, inspect
from tasks.publish import (
    Publication,
    attest,
    collect_files,
    describe_files,
    find_published,
    point_channel,
    publish,
    triton_config,
    validation_of,
)
from tasks.reference import ProbePlan, Reference
from tasks.report.facts import ReportFacts
from tasks.report.page import html_report
from tasks.trace import TraceResult
from tasks.validate import validate_bundle
from tasks.verdict import ValidationReport
from tracefleet.manifest import Manifest, Toolchain
from tracefleet.store import Store, open_store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps that an engine may wrap: name them, retry them, show them.

    Attributes:
        resolve: source and revision to a commit; network.
        describe: fetch config and tokenizer; network.
        fetch: fetch the weights; network.
        run: call a function in a child process (``tasks.child.run``).
        publish: files, manifest, channel; network.
        show: show a report, of a refused bundle too, beside the page at its URL.
    """

    resolve: Callable[..., Resolved] = resolve
    describe: Callable[..., Path] = fetch_description
    fetch: Callable[..., Checkpoint] = fetch
    run: Callable[..., Outcome[Any]] = child.run
    publish: Callable[..., Publication] = publish
    show: Callable[[ReportFacts, ValidationReport, str], None] | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """What came of a request.

    Attributes:
        fresh: it was published already; nothing was read or traced.
        manifest: of the conversion.
        publication: where it is.
        report: the gate's record; None when fresh.
        facts: sizes, times and versions for the report; None when fresh.
        report_url: the HTML page; None when fresh.
    """

    fresh: bool
    manifest: Manifest
    publication: Publication
    report: ValidationReport | None = None
    facts: ReportFacts | None = None
    report_url: str | None = None


def convert(
    request: ConversionRequest, steps: Steps | None = None, *, run_id: str | None = None
) -> ConversionResult:
    """Carry out one request, or find that it was carried out before.

    Args:
        request: what to convert.
        steps: how each step is called; plain functions by default.
        run_id: names the attestation and the report; drawn if there is none.

    Raises:
        ConversionError: refused or failed; nothing was published.
        ArtifactError: the store can't serve.
    """
    conversion = _Conversion(
        request=request, steps=steps or Steps(), run_id=run_id or _new_run_id()
    )
    return conversion.carry_out()


@dataclass(kw_only=True)
class _Conversion:
    """One request on its way; lives in one process and is never passed on."""

    request: ConversionRequest
    steps: Steps
    run_id: str
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def carry_out(self) -> ConversionResult:
        request = self.request
        backend = find_backend(request.backend)
        store = open_store(request.store)
        store.check_writable()
        toolchain = backend.toolchain()
        resolved = self._timed(
            "resolve",
            lambda: self.steps.resolve(
                request.source,
                revision=request.revision,
                allow_pickle=request.allow_pickle,
                trust_remote_code=request.trust_remote_code,
            ),
        )
        if request.task is None:
            request = self.request = self._with_task(resolved)
        key = conversion_key(
            commit=resolved.commit,
            variant=request.variant,
            lengths=request.lengths,
            options=request.identity_options,
            toolchain=toolchain,
        )
        if (manifest := find_published(store, resolved.source, key)) is not None:
            logger.info("already published: %s; no weights were read", key[:12])
            publication = point_channel(store, manifest, channel=request.channel)
            return ConversionResult(fresh=True, manifest=manifest, publication=publication)
        child.warm_up()
        with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
            return self._convert(Path(work), store, backend, toolchain, resolved, key)

    def _with_task(self, resolved: Resolved) -> ConversionRequest:
        """Ask the checkpoint's own files which task it was made for."""
        folder = self._timed("describe", lambda: self.steps.describe(resolved))
        with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
            task = self._child(Path(work), "task", default_task, folder)
        logger.info("task: %s, as the checkpoint's files name it", task)
        return self.request.model_copy(update={"task": task})

    def _convert(
        self,
        work: Path,
        store: Store,
        backend: Backend,
        toolchain: Toolchain,
        resolved: Resolved,
        key: str,
    ) -> ConversionResult:
        request = self.request
        folder = self._timed("describe", lambda: self.steps.describe(resolved))
        facts = self._child(work, "inspect", inspect, folder, request.load_options, request.lengths)
        checkpoint = self._timed("fetch", lambda: self.steps.fetch(resolved))
        facts, traced, report = self._trace_and_validate(
            work, store, backend, toolchain, checkpoint, facts
        )
        if resolved.source.startswith("file://"):
            # Used in place: whoever wrote to it meanwhile changed what the key stands for.
            self._timed("confirm", lambda: self.steps.fetch(resolved))
        triton = work / "config.pbtxt"
        triton.write_bytes(triton_config(input_specs(facts), traced.outputs))
        files = collect_files(traced.file, checkpoint.folder, triton)
        manifest = Manifest(
            key=key,
            source=checkpoint.source,
            commit=checkpoint.commit,
            license=checkpoint.license,
            variant=request.variant,
            lengths=request.lengths,
            options=request.identity_options,
            inputs=input_specs(facts),
            outputs=traced.outputs,
            tied_groups=traced.tied_groups,
            same_program=traced.same_program,
            files=describe_files(files, traced.file),
            toolchain=toolchain,
            recipe=RECIPE,
            validation=validation_of(report),
        )
        publication = self._timed(
            "publish",
            lambda: self.steps.publish(store, manifest, files, channel=request.channel),
        )
        if publication.manifest_digest != manifest.digest:
            # Another machine published the same bytes first: its manifest is the one that counts.
            manifest = find_published(store, manifest.source, key) or manifest
        about = self._report_facts(checkpoint, toolchain, facts, traced)
        url = self._record(store, manifest, about, report)
        return ConversionResult(
            fresh=False,
            manifest=manifest,
            publication=publication,
            report=report,
            facts=about,
            report_url=url,
        )

    def _trace_and_validate(
        self,
        work: Path,
        store: Store,
        backend: Backend,
        toolchain: Toolchain,
        checkpoint: Checkpoint,
        facts: ModelFacts,
        *,
        share: bool = True,
    ) -> tuple[ModelFacts, TraceResult, ValidationReport]:
        request, folder = self.request, checkpoint.folder
        options, lengths = request.load_options, request.lengths
        # The stem is part of the archive's bytes: always model.pt.
        target = work / "model.pt"
        traced: TraceResult = self._child(
            work,
            "trace",
            backend.trace,
            folder,
            options,
            facts,
            lengths,
            request.batch,
            target,
            share,
        )
        plan = ProbePlan(
            facts=facts,
            lengths=lengths,
            # What holds at one length says nothing about another where the programs differ.
            whole=lengths[:1] if traced.same_program else lengths,
            batch=request.batch,
            tolerance=request.tolerance,
            selects=traced.selects,
        )
        try:
            reference: Reference = self._child(
                work, "reference", compute_reference, folder, options, plan, work / "reference"
            )
        except PaddingChangesError:
            logger.info("padding changes what this model computes: exact lengths only")
            return self._trace_and_validate(
                work, store, backend, toolchain, checkpoint, facts.exact(), share=share
            )
        try:
            report = self._child(work, "validate", validate_bundle, target, reference)
        except NumericsMismatchError as error:
            if traced.shared:
                logger.info("one graph does not hold at every length: tracing each")
                return self._trace_and_validate(
                    work, store, backend, toolchain, checkpoint, facts, share=False
                )
            if error.report is not None:
                about = self._report_facts(checkpoint, toolchain, facts, traced)
                url = self._write_report(store, about, error.report)
                logger.warning("the gate's report is kept at %s", url)
            raise
        return facts, traced, report

    def _child(
        self,
        work: Path,
        step: str,
        function: Callable[..., Any],
        *arguments: Any,
    ) -> Any:
        memory = self.request.memory_limit_mb
        limits = Limits(
            timeout=self.request.timeout_seconds,
            memory=None if memory is None else memory * 1_000_000,
            threads=self.request.threads,
        )
        outcome = self.steps.run(
            function, *arguments, limits=limits, log=work / f"{step}.log", step=step
        )
        self.seconds[step], self.peak_bytes[step] = outcome.seconds, outcome.peak_bytes
        return outcome.value

    def _timed(self, step: str, call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        try:
            return call()
        finally:
            self.seconds[step] = time.monotonic() - started

    def _report_facts(
        self, checkpoint: Checkpoint, toolchain: Toolchain, facts: ModelFacts, traced: TraceResult
    ) -> ReportFacts:
        return ReportFacts(
            source=checkpoint.source,
            commit=checkpoint.commit,
            variant=self.request.variant,
            options=self.request.identity_options,
            inputs=input_specs(facts),
            outputs=traced.outputs,
            shared=traced.shared,
            same_program=traced.same_program,
            toolchain=toolchain,
            tied_groups=traced.tied_groups,
            seconds=self.seconds,
            peak_bytes=self.peak_bytes,
            bundle_bytes=traced.file.size,
            weight_bytes=traced.file.weight_bytes,
        )

    def _record(
        self, store: Store, manifest: Manifest, about: ReportFacts, report: ValidationReport
    ) -> str:
        """Write what differs from run to run: the attestation and the page."""
        facts = {
            "revision": self.request.revision,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": platform.node(),
            "user": _user(),
            "seconds": {step: round(took, 3) for step, took in self.seconds.items()},
            "peak_bytes": self.peak_bytes,
            "latency_eager_ms": {str(k): round(v, 3) for k, v in report.latency_eager.items()},
            "latency_traced_ms": {str(k): round(v, 3) for k, v in report.latency_traced.items()},
        }
        try:
            attest(store, manifest, self.run_id, facts)
        except Exception:  # the conversion is published and stays so
            logger.warning("the attestation could not be written", exc_info=True)
        return self._write_report(store, about, report)

    def _write_report(self, store: Store, about: ReportFacts, report: ValidationReport) -> str:
        path = f"reports/{self.run_id}/index.html"
        url = f"{store.url}/{path}"
        try:
            store.put_over(path, html_report(about, report).encode())
            if self.steps.show is not None:
                self.steps.show(about, report, url)
        except Exception:  # a page that can't be made must not hide the verdict
            logger.warning("the report could not be written", exc_info=True)
        return url


def _new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
