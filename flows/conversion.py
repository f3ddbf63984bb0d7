"""What every conversion does on its way, whether it starts from a request or from a candidate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.children import Children
from flows.proving import Proved, Proving
from flows.records import Records, Show, report_facts
from tasks import child
from tasks.backends.base import Backend, Compiler
from tasks.backends.registry import find_backend
from tasks.child import Limits, Outcome
from tasks.fetch.checkpoint import Checkpoint, Resolved, fetch, fetch_description, resolve
from tasks.model.facts import ModelFacts
from tasks.model.preflight import inspect
from tasks.publish.conversion import Publication, point_channel, publish
from tasks.publish.find import CANDIDATE_CHANNEL, find_published
from tasks.report.conversion.facts import ReportFacts
from tasks.request.conversion import ConversionRequest
from tasks.trace.record import TraceResult
from tasks.validate.verdict import ValidationReport
from tracefleet.manifest import VALIDATED, Manifest, Toolchain
from tracefleet.store import Store, open_writable

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


class Conversion:
    """One request on its way; lives in one process and is never passed on.

    Attributes:
        request: what was asked for.
        steps: how each step is called.
        children: runs steps in child processes and keeps what they took.
        backend: makes the artifact.
        store: where it goes.
        records: where the run writes about itself.
    """

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
        self.store: Store = open_writable(request.store)
        self.records = Records(store=self.store, run_id=run_id, show=steps.show)

    def resolve(self, revision: str | None) -> Resolved:
        """Resolve the request's source to a commit."""
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

    def already(self, manifest: Manifest, channel: str) -> ConversionResult:
        """Return what was published before, and let the channel point to it."""
        publication = point_channel(self.store, manifest, channel=channel)
        return ConversionResult(fresh=True, manifest=manifest, publication=publication)

    def describe(self, resolved: Resolved) -> Path:
        """Fetch config and tokenizer; return their folder."""
        folder: Path = self.children.timed("describe", lambda: self.steps.describe(resolved))
        return folder

    def fetched(self, work: Path, resolved: Resolved) -> tuple[ModelFacts, Checkpoint]:
        """Refuse early what the config alone rules out, then fetch the weights."""
        folder, request = self.describe(resolved), self.request
        facts = self.children.child(
            work, "inspect", inspect, folder, request.load_options, request.lengths
        )
        return facts, self.children.timed("fetch", lambda: self.steps.fetch(resolved))

    def confirm(self, resolved: Resolved) -> None:
        """Look again at what is used in place: who wrote to it changed what the key stands for."""
        if resolved.source.startswith("file://"):
            self.children.timed("confirm", lambda: self.steps.fetch(resolved))

    def publish(
        self, manifest: Manifest, files: dict[str, Path], proved: Proved, toolchain: Toolchain
    ) -> ConversionResult:
        """Publish what was made, and write what the run tells about itself."""
        channel = CANDIDATE_CHANNEL if proved.report is None else self.request.channel
        publication: Publication = self.children.timed(
            "publish", lambda: self.steps.publish(self.store, manifest, files, channel=channel)
        )
        if publication.manifest_digest != manifest.digest:
            # Another machine published the same bytes first: its manifest is the one that counts.
            manifest = find_published(self.store, manifest.source, manifest.key) or manifest
        about = self.about(manifest.source, manifest.commit, toolchain, proved)
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

    def about(self, source: str, commit: str, toolchain: Toolchain, proved: Proved) -> ReportFacts:
        """Return what a report tells beside the gate's findings."""
        return report_facts(
            self.request, (source, commit), toolchain, proved.facts, proved.traced, self.children
        )

    def proving(self, work: Path, checkpoint: Checkpoint, toolchain: Toolchain) -> Proving:
        """Return the way through trace and gate for a checkpoint that was fetched."""

        def refused(traced: TraceResult, facts: ModelFacts, report: ValidationReport) -> None:
            proved = Proved(facts=facts, traced=traced, report=report)
            about = self.about(checkpoint.source, checkpoint.commit, toolchain, proved)
            url = self.records.write_report(about, report)
            logger.warning("the gate's report is kept at %s", url)

        return Proving(
            children=self.children,
            request=self.request,
            folder=checkpoint.folder,
            work=work,
            refused=refused,
        )
