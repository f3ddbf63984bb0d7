"""The way through: request → fetch → trace → reference → validate → publish.

``convert`` is the one order of things. It is handed its steps as callables: plain functions for
the command line and the benchmarks, Prefect tasks over the very same functions for the flow
(``flows.convert_checkpoint``). Only plain data and paths go from step to step.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flows.children import Children, log_of
from flows.proving import Proved, Proving
from flows.records import Records, Show, report_facts
from flows.request import ConversionRequest
from tasks import child
from tasks.backends import programs
from tasks.backends.base import Backend, Compiler, find_backend
from tasks.bundle import TracedFile
from tasks.child import Limits, Outcome
from tasks.errors import NumericsMismatchError, RequestError
from tasks.fetch import Checkpoint, Resolved, fetch, fetch_description, resolve
from tasks.heads import default_task
from tasks.inputs import input_specs
from tasks.key import RECIPE, conversion_key
from tasks.load import ModelFacts, inspect
from tasks.publish import (
    CANDIDATE_CHANNEL,
    Publication,
    collect_files,
    describe_files,
    find_candidate,
    find_published,
    point_channel,
    publish,
    triton_config,
    unvalidated,
    validation_of,
)
from tasks.report.facts import ReportFacts
from tasks.trace import TraceResult
from tasks.verdict import ValidationReport
from tracefleet.channel import conversion_folder
from tracefleet.manifest import VALIDATED, Manifest, Toolchain
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
    show: Show | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """What came of a request.

    Attributes:
        fresh: it was published already; nothing was read or traced.
        manifest: of the conversion.
        publication: where it is.
        report: the gate's record; None when fresh, or when there is no device here.
        facts: sizes, times and versions for the report; None when fresh.
        report_url: the HTML page; None without a report.
    """

    fresh: bool
    manifest: Manifest
    publication: Publication
    report: ValidationReport | None = None
    facts: ReportFacts | None = None
    report_url: str | None = None

    @property
    def validated(self) -> bool:
        """Whether the gate has passed it; else it is a candidate, which a device has to run."""
        return self.manifest.validation.verdict == VALIDATED


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
    return _Conversion(request, steps or Steps(), run_id or _new_run_id()).carry_out()


def validate(
    conversion: str,
    steps: Steps | None = None,
    *,
    run_id: str | None = None,
    channel: str = "latest",
    backend: str | None = None,
) -> ConversionResult:
    """Run a candidate on this host's device, and publish it if the gate passes it.

    Args:
        conversion: URL of its folder, as ``convert`` tells it.
        steps: how each step is called; plain functions by default.
        run_id: names the attestation and the report; drawn if there is none.
        channel: that will point to it.
        backend: the only one that can be run here; None: whatever it was compiled for.

    Raises:
        ConversionError: it is refused, or there is no device here; it stays a candidate.
        ArtifactError: the store can't serve, or there is no such conversion.
    """
    from flows.candidates import candidate_at

    found, request = candidate_at(conversion, channel=channel, backend=backend)
    made = _Conversion(request, steps or Steps(), run_id or _new_run_id())
    return made.carry_out_candidate(found)


class _Conversion:
    """One request on its way; lives in one process and is never passed on."""

    def __init__(self, request: ConversionRequest, steps: Steps, run_id: str) -> None:
        self.request, self.steps = request, steps
        memory = request.memory_limit_mb
        limits = Limits(
            timeout=request.timeout_seconds,
            memory=None if memory is None else memory * 1_000_000,
            threads=request.threads,
        )
        self.children = Children(run=steps.run, limits=limits)
        self.backend: Backend | Compiler = find_backend(request.backend)
        self.store: Store = open_store(request.store)
        self.store.check_writable()
        self.records = Records(store=self.store, run_id=run_id, show=steps.show)

    def carry_out(self) -> ConversionResult:
        toolchain = self.backend.toolchain()
        resolved = self._resolve(self.request.revision)
        if self.request.task is None:
            self.request = self._with_task(resolved)
        request = self.request
        key = conversion_key(
            commit=resolved.commit,
            variant=request.variant,
            lengths=request.lengths,
            options=request.identity_options,
            toolchain=toolchain,
        )
        if (manifest := find_published(self.store, resolved.source, key)) is not None:
            logger.info("already published: %s; no weights were read", key[:12])
            return self._already(manifest, request.channel)
        candidate = None
        if isinstance(self.backend, Compiler):
            candidate = find_candidate(self.store, resolved.source, key)
        child.warm_up()
        with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
            if candidate is not None:
                return self._take_up(Path(work), candidate, resolved)
            return self._convert(Path(work), toolchain, resolved, key)

    def carry_out_candidate(self, candidate: Manifest) -> ConversionResult:
        found = find_published(self.store, candidate.source, candidate.key)
        if found is not None:
            return self._already(found, self.request.channel)
        resolved = self._resolve(self.request.revision)
        if resolved.commit != candidate.commit:
            raise RequestError(
                f"{candidate.source}: expected commit {candidate.commit}, which was compiled, got "
                f"{resolved.commit}. Without its weights the candidate can't be judged: convert "
                "the checkpoint as it is now."
            )
        child.warm_up()
        with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
            return self._validate(Path(work), candidate, resolved)

    def _resolve(self, revision: str | None) -> Resolved:
        request = self.request
        resolved: Resolved = self.children.timed(
            "resolve",
            lambda: self.steps.resolve(
                request.source,
                revision=revision,
                allow_pickle=request.allow_pickle,
                trust_remote_code=request.trust_remote_code,
            ),
        )
        return resolved

    def _already(self, manifest: Manifest, channel: str) -> ConversionResult:
        publication = point_channel(self.store, manifest, channel=channel)
        return ConversionResult(fresh=True, manifest=manifest, publication=publication)

    def _with_task(self, resolved: Resolved) -> ConversionRequest:
        """Ask the checkpoint's own files which task it was made for."""
        folder = self._describe(resolved)
        with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
            task = self.children.child(Path(work), "task", default_task, folder)
        logger.info("task: %s, as the checkpoint's files name it", task)
        return self.request.model_copy(update={"task": task})

    def _describe(self, resolved: Resolved) -> Path:
        folder: Path = self.children.timed("describe", lambda: self.steps.describe(resolved))
        return folder

    def _fetched(self, work: Path, resolved: Resolved) -> tuple[ModelFacts, Checkpoint]:
        """Refuse early what the config alone rules out, then fetch the weights."""
        folder, request = self._describe(resolved), self.request
        facts = self.children.child(
            work, "inspect", inspect, folder, request.load_options, request.lengths
        )
        return facts, self.children.timed("fetch", lambda: self.steps.fetch(resolved))

    def _confirm(self, resolved: Resolved) -> None:
        """Look again at what is used in place: who wrote to it changed what the key stands for."""
        if resolved.source.startswith("file://"):
            self.children.timed("confirm", lambda: self.steps.fetch(resolved))

    def _convert(
        self, work: Path, toolchain: Toolchain, resolved: Resolved, key: str
    ) -> ConversionResult:
        request = self.request
        facts, checkpoint = self._fetched(work, resolved)
        proved = self._proving(work, checkpoint, toolchain).prove(self.backend, facts)
        self._confirm(resolved)
        specs, traced = input_specs(proved.facts), proved.traced
        files = collect_files(traced.files, checkpoint.folder, self._triton(work, specs, traced))
        report = proved.report
        manifest = Manifest(
            key=key,
            source=checkpoint.source,
            commit=checkpoint.commit,
            license=checkpoint.license,
            variant=request.variant,
            lengths=request.lengths,
            options=request.identity_options,
            inputs=specs,
            outputs=traced.outputs,
            tied_groups=traced.tied_groups,
            same_program=traced.same_program,
            files=describe_files(files, traced.files),
            toolchain=toolchain,
            recipe=RECIPE,
            validation=unvalidated(request.tolerance) if report is None else validation_of(report),
        )
        return self._publish(manifest, files, proved, toolchain)

    def _triton(self, work: Path, specs: Any, traced: TraceResult) -> Path | None:
        """Write Triton's config; its PyTorch backend runs nothing of Neuron's."""
        if isinstance(self.backend, Compiler):
            return None
        path = work / "config.pbtxt"
        path.write_bytes(triton_config(specs, traced.outputs))
        return path

    def _take_up(self, work: Path, candidate: Manifest, resolved: Resolved) -> ConversionResult:
        """Go on with what was compiled before: validate it, if there is a device here by now."""
        assert isinstance(self.backend, Compiler)
        if self.children.child(work, "device", self.backend.has_device):
            return self._validate(work, candidate, resolved)
        logger.info("compiled already: %s; it waits for a device", candidate.key[:12])
        return self._already(candidate, CANDIDATE_CHANNEL)

    def _validate(self, work: Path, candidate: Manifest, resolved: Resolved) -> ConversionResult:
        """Run a candidate's own files through the gate, on this host's device."""
        assert isinstance(self.backend, Compiler)
        facts, checkpoint = self._fetched(work, resolved)
        files = self._place(work, candidate)
        proving = self._proving(work, checkpoint, candidate.toolchain)
        job = proving.job(facts, device=True)
        log = log_of(work, "prepare")
        prepared = self.children.child(work, "prepare", programs.prepare, job, log)
        facts, reference = proving.reference_of_programs(facts, prepared.selects)
        if (input_specs(facts), reference.outputs) != (candidate.inputs, candidate.outputs):
            raise NumericsMismatchError(
                f"{candidate.key}: expected the inputs and outputs that were compiled, got others "
                "from eager. Convert the checkpoint again with these versions.",
                None,
            )
        traced = _traced(candidate, files, prepared)
        local = {n: files[file.path] for n, file in candidate.programs.items()}
        report = proving.judge_programs(
            self.backend, local, reference, traced, facts, candidate.toolchain
        )
        self._confirm(resolved)
        manifest = dataclasses.replace(candidate, validation=validation_of(report))
        proved = Proved(facts=facts, traced=traced, report=report)
        return self._publish(manifest, files, proved, candidate.toolchain)

    def _place(self, work: Path, candidate: Manifest) -> dict[str, Path]:
        """Download a candidate's files, every byte checked."""
        folder = conversion_folder(candidate.source, candidate.key)
        files = {file.path: work / "candidate" / file.path for file in candidate.files}
        for file in candidate.files:
            files[file.path].parent.mkdir(parents=True, exist_ok=True)
            self.store.place(
                f"{folder}/{file.path}", files[file.path], size=file.size, sha256=file.sha256
            )
        return files

    def _publish(
        self, manifest: Manifest, files: dict[str, Path], proved: Proved, toolchain: Toolchain
    ) -> ConversionResult:
        channel = CANDIDATE_CHANNEL if proved.report is None else self.request.channel
        publication: Publication = self.children.timed(
            "publish", lambda: self.steps.publish(self.store, manifest, files, channel=channel)
        )
        if publication.manifest_digest != manifest.digest:
            # Another machine published the same bytes first: its manifest is the one that counts.
            manifest = find_published(self.store, manifest.source, manifest.key) or manifest
        about = self._about(manifest.source, manifest.commit, toolchain, proved)
        self.records.attest(manifest, self.request, self.children, proved.report)
        url = None
        if proved.report is not None:
            url = self.records.write_report(about, proved.report)
        return ConversionResult(
            fresh=False,
            manifest=manifest,
            publication=publication,
            report=proved.report,
            facts=about,
            report_url=url,
        )

    def _about(self, source: str, commit: str, toolchain: Toolchain, proved: Proved) -> ReportFacts:
        return report_facts(
            self.request, (source, commit), toolchain, proved.facts, proved.traced, self.children
        )

    def _proving(self, work: Path, checkpoint: Checkpoint, toolchain: Toolchain) -> Proving:
        def refused(traced: TraceResult, facts: ModelFacts, report: ValidationReport) -> None:
            proved = Proved(facts=facts, traced=traced, report=report)
            about = self._about(checkpoint.source, checkpoint.commit, toolchain, proved)
            url = self.records.write_report(about, report)
            logger.warning("the gate's report is kept at %s", url)

        return Proving(
            children=self.children,
            request=self.request,
            folder=checkpoint.folder,
            work=work,
            refused=refused,
        )


def _traced(
    candidate: Manifest, files: dict[str, Path], prepared: programs.Prepared
) -> TraceResult:
    """Return what tracing would have told of a candidate's files."""
    archives = tuple(
        TracedFile(
            path=files[file.path],
            size=file.size,
            sha256=file.sha256,
            weight_bytes=0,
            published=file.path,
        )
        for file in candidate.archives
    )
    return TraceResult(
        files=archives,
        outputs=candidate.outputs,
        tied_groups=candidate.tied_groups,
        same_program=False,
        shared=False,
        selects=prepared.selects,
    )


def _new_run_id() -> str:
    # Not datetime.UTC: Inf1's Python 3.10 has none.
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"  # noqa: UP017
