"""What a run leaves behind and returns: its attestation, its report page, its ``Conversion``."""

from __future__ import annotations

import getpass
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flows.engine.clock import now
from tasks.backends.base import Proved
from tasks.errors import BackendUnavailableError, NumericsMismatchError
from tasks.publish.conversion import attest
from tasks.publish.find import CANDIDATE_CHANNEL, find_published
from tasks.publish.identity import Identity
from tasks.publish.point import Publication, point_channel
from tasks.report.conversion.facts import Origin, ReportFacts
from tasks.report.conversion.page import render_html
from tasks.request.conversion import ConversionRequest
from tasks.steps import Steps
from tasks.validate.verdict import ValidationReport
from tracefleet.channel import source_slug
from tracefleet.errors import ArtifactError
from tracefleet.manifest import Manifest
from tracefleet.reader.predict import answers_texts
from tracefleet.store import ReadableStore, Store
from tracefleet.verdict_types import VALIDATED

logger = logging.getLogger(__name__)
#: What a report's snippet hands to the tasks that answer a single text.
_TEXTS = {
    **dict.fromkeys(("feature-extraction", "sentence-similarity"), "A sentence."),
    **dict.fromkeys(("text-classification", "token-classification"), "A sentence."),
    "fill-mask": "A {mask} sentence.",
    "text2text-generation": "A sentence.",
}
#: Runs that made one conversion at the same time; the report of any of them will do.
_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What came of a request.

    Attributes:
        fresh: Whether it was published already, so that nothing was read or traced.
        manifest: Manifest of the conversion.
        publication: Where it is.
        report: Report of the gate; None when fresh, or when there is no device here.
        facts: Sizes, times and versions for the report; None when fresh.
        report_url: URL of the HTML page, when fresh of an earlier run's; None without one.
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


def reuse(store: Store, manifest: Manifest, channel: str, name: str | None = None) -> Conversion:
    """Return what was published before, and let the channel point to it, and its name's."""
    if manifest.validation.verdict == VALIDATED:
        logger.info("already published: %s; no weights were read", manifest.key[:12])
    publication = point_channel(store, manifest, channel=channel, name=name)
    return Conversion(
        fresh=True,
        manifest=manifest,
        publication=publication,
        report_url=_find_report(store, manifest),
    )


def _find_report(store: ReadableStore, manifest: Manifest) -> str | None:
    """Return the URL of the page of a run that made a conversion; a link never costs a result."""
    try:
        folder = f"attestations/{source_slug(manifest.source)}/{manifest.key}"
        for attested in store.names(folder)[:_RUNS]:
            run = attested.removesuffix(".json")
            if store.names(f"reports/{run}"):
                return f"{store.url}/reports/{run}/index.html"
    except ArtifactError:
        logger.warning("where the report is is not known", exc_info=True)
    return None


def await_device(
    store: Store, candidate: Manifest, *, required: bool, name: str | None = None
) -> Conversion:
    """Return a candidate that this host has no device for; it stays one.

    Raises:
        BackendUnavailableError: a device is required here, to prove it.
    """
    if required:
        raise BackendUnavailableError(
            f"{candidate.variant.backend}: expected a Neuron device to validate on, got none here. "
            "The conversion stays a candidate. Run on such an instance; the log has what the "
            "runtime said."
        )
    logger.info("compiled already: %s; it waits for a device", candidate.key[:12])
    return reuse(store, candidate, CANDIDATE_CHANNEL, name)


def record(
    request: ConversionRequest,
    store: Store,
    manifest: Manifest,
    publication: Publication,
    proved: Proved,
    steps: Steps,
) -> Conversion:
    """Write the attestation and the report of what was published, and return it."""
    if publication.manifest_digest != manifest.digest:
        # Another machine published the same bytes first: its manifest is the one that counts.
        manifest = find_published(store, manifest.source, manifest.key) or manifest
    _attest(request, store, manifest, proved.report, steps)
    origin = Origin(
        date=now().isoformat(timespec="seconds"),
        host=platform.node(),
        key=manifest.key,
        store=store.url,
        folder=publication.url,
        manifest=manifest.file_name,
        channel=publication.channel,
        name=publication.address,
        text=_write_text(manifest),
    )
    facts, url = report_facts(Identity.of(manifest), proved, steps, origin), None
    if proved.report is not None:
        url = _write_report(store, facts, proved.report, steps)
    return Conversion(
        fresh=False,
        manifest=manifest,
        publication=publication,
        report=proved.report,
        facts=facts,
        report_url=url,
    )


def _write_text(manifest: Manifest) -> str:
    """Return a text for the report's snippet; empty: pairs are wanted, or nothing is answered."""
    spec = manifest.text
    if spec is None or spec.refused is not None or not answers_texts(manifest):
        return ""
    text = _TEXTS.get(manifest.variant.task, "")
    return text.format(mask=spec.special.get("mask", "[MASK]"))


@contextmanager
def keep_refused(store: Store, identity: Identity, steps: Steps) -> Iterator[None]:
    """Keep the report of an artifact that the gate refuses, beside its error."""
    try:
        yield
    except NumericsMismatchError as error:
        if error.refused is not None:
            origin = Origin(
                date=now().isoformat(timespec="seconds"),
                host=platform.node(),
                key=identity.key,
                store=store.url,
            )
            facts = report_facts(identity, error.refused, steps, origin)
            url = _write_report(store, facts, error.refused.report, steps)
            logger.warning("the gate's report is kept at %s", url)
        raise


def report_facts(identity: Identity, proved: Proved, steps: Steps, origin: Origin) -> ReportFacts:
    """Return what a report shows beside the gate's findings."""
    assert identity.toolchain is not None
    traced = proved.traced
    sizes = [file.size for file in traced.files]
    weights = [file.weight_bytes for file in traced.files]
    return ReportFacts(
        source=identity.source,
        commit=identity.commit,
        variant=identity.variant,
        options=identity.options,
        inputs=proved.inputs,
        outputs=traced.outputs,
        shared=traced.shared,
        same_program=traced.same_program,
        toolchain=identity.toolchain,
        tied_groups=traced.tied_groups,
        seconds=steps.seconds,
        peak_bytes=steps.peak_bytes,
        bundle_bytes=sum(sizes),
        weight_bytes=max(weights),
        origin=origin,
    )


def _attest(
    request: ConversionRequest,
    store: Store,
    manifest: Manifest,
    report: ValidationReport | None,
    steps: Steps,
) -> None:
    """Write who, when, where and how fast; what is published stays so if that fails."""
    eager, traced = (report.latency_eager, report.latency_traced) if report else ({}, {})
    facts = {
        "revision": request.revision,
        "finished": now().isoformat(timespec="seconds"),
        "host": platform.node(),
        "user": _user(),
        "seconds": _round(steps.seconds),
        "peak_bytes": steps.peak_bytes,
        "latency_eager_ms": _round(eager),
        "latency_traced_ms": _round(traced),
    }
    try:
        attest(store, manifest, steps.run_id, facts)
    except Exception:
        logger.warning("the attestation could not be written", exc_info=True)


def _write_report(store: Store, facts: ReportFacts, report: ValidationReport, steps: Steps) -> str:
    """Write the page and return its URL; one that can't be made must not hide the verdict."""
    path = f"reports/{steps.run_id}/index.html"
    url = f"{store.url}/{path}"
    try:
        store.put_over(path, render_html(facts, report).encode())
        steps.show(facts, report, url)
    except Exception:
        logger.warning("the report could not be written", exc_info=True)
    return url


def _round(figures: dict[str, float] | dict[int, float]) -> dict[str, float]:
    return {str(name): round(figure, 3) for name, figure in figures.items()}


def _user() -> str:
    # In a container a user may have a number alone.
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
