"""What came of each entry of a fleet, gathered from the store and from flow runs."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

from flows.fan_out.assignment import Assignment
from tasks.plan.fleet import PlanRow
from tasks.plan.freshness import MOVED_AWAY
from tasks.publish.find import CANDIDATE_CHANNEL, find_candidate, find_published
from tasks.report.fleet.facts import Ending, FleetRow
from tasks.report.fleet.steps import split_step
from tasks.request.conversion import ConversionRequest
from tracefleet.channel import channel_folder, conversion_folder, read_current, source_slug
from tracefleet.errors import ManifestError
from tracefleet.manifest import Manifest
from tracefleet.store import ReadableStore, open_store
from tracefleet.verdict_types import UNVALIDATED_ON_DEVICE

logger = logging.getLogger(__name__)

#: How Prefect words the state of a flow that raised: "… exception: Type: message".
_RAISED = re.compile(r"(?:^|exception: )(?:\w+\.)*(\w+(?:Error|Exception|Exit)): (.*)", re.DOTALL)
_MEANWHILE = "published since the plan"
#: Of what no device has run yet.
WAITS = "compiled into channel candidate; a device has to validate it"
_LONGEST_WHY = 600


def make_planned_row(row: PlanRow, ending: Ending) -> FleetRow:
    """Return what is known of an entry from its plan."""
    request = row.request
    if request is None:
        return FleetRow(
            name=row.name, source="", commit=None, variant="", lengths=(), ending=ending
        )
    variant = f"{row.task or '?'}.{request.backend}.{request.dtype}.b{request.batch}"
    url = None
    if row.key is not None:
        store = open_store(request.store).url
        url = f"{store}/{conversion_folder(_source(row, request), row.key)}"
    return FleetRow(
        name=row.name,
        source=request.source,
        commit=row.commit,
        variant=variant,
        lengths=row.lengths or (),
        ending=ending,
        why="; ".join(row.why),
        conversion_url=url if ending in ("fresh", "published", "moved") else None,
    )


def make_invalid_row(row: PlanRow) -> FleetRow:
    """Return the row of an entry that the plan refused."""
    failed, error = make_planned_row(row, "failed"), row.error or "ConversionError"
    return _add_failure(failed, error, row.message, transient=row.transient)


def make_refused_row(row: PlanRow) -> FleetRow:
    """Return the row of an entry that was refused before, and was not tried."""
    refused = _add_failure(make_planned_row(row, "refused"), row.error or "", row.message)
    return replace(refused, since=row.since)


def make_failed_row(
    assignment: Assignment,
    error: str,
    message: str,
    *,
    run: str | None = None,
    url: str | None = None,
) -> FleetRow:
    """Return the row of a conversion that failed.

    Args:
        assignment: what was to be converted.
        error: type of the error.
        message: what it says.
        run: identifier of the conversion's flow run, if it had one.
        url: of its page.
    """
    row = _add_failure(make_planned_row(assignment.planned, "failed"), error, message)
    report = None if run is None else _report(assignment.request.store, run)
    return replace(row, run_url=url, report_url=report)


def make_cancelled_row(assignment: Assignment, *, url: str | None) -> FleetRow:
    """Return the row of a conversion that was stopped before its end."""
    return replace(make_planned_row(assignment.planned, "cancelled"), run_url=url)


def make_joined_row(assignment: Assignment) -> FleetRow:
    """Return the row of a conversion that another fleet published since this one planned."""
    return replace(make_planned_row(assignment.planned, "fresh"), why=_MEANWHILE)


def make_published_row(assignment: Assignment, *, run: str, url: str | None) -> FleetRow:
    """Return the row of a conversion that a run ended well, from what the run left in the store.

    A run that found the conversion published already left no attestation: the row is fresh, or
    the channel had been moved elsewhere and was moved back.

    Raises:
        ManifestError: the store does not have the conversion that the run says it published.
    """
    store = open_store(assignment.request.store)
    manifest = _manifest(store, assignment)
    attested = _attestation(store, manifest, run)
    row = make_planned_row(replace(assignment.planned, key=manifest.key), "published")
    row = replace(row, run_url=url)
    candidate = manifest.validation.verdict == UNVALIDATED_ON_DEVICE
    if attested is None:
        return _describe_reuse(row, assignment, candidate=candidate)
    report = None if candidate else _report(store.url, run)
    if candidate:
        row = replace(row, why=f"{row.why}; {WAITS}")
    errors = [one.max_rel_error for one in manifest.validation.lengths]
    sizes = [archive.size for archive in manifest.archives]
    return replace(
        row,
        worst_error=max(errors, default=None),
        tolerance=manifest.validation.tolerance.rtol,
        seconds=sum(attested["seconds"].values()),
        peak_bytes=max(map(int, attested["peak_bytes"].values()), default=None),
        bundle_bytes=sum(sizes),
        report_url=report,
    )


def _describe_reuse(row: FleetRow, assignment: Assignment, *, candidate: bool) -> FleetRow:
    """Return the row of a run that found it published already: at most it moved the channel."""
    planned = assignment.planned
    if MOVED_AWAY not in planned.why:
        return replace(row, ending="fresh", why=WAITS if candidate else _MEANWHILE)
    differences = [why for why in planned.why if why != MOVED_AWAY]
    why = (
        f"channel {assignment.request.channel} was moved back: since number {planned.number} it "
        f"pointed to another conversion; {'; '.join(differences)}"
    )
    return replace(row, ending="moved", why=why)


def split_message(told: str) -> tuple[str, str]:
    """Return the type of the error and its message from the message of a failed state."""
    match = _RAISED.search(told)
    return (match[1], match[2]) if match else ("RunLostError", told)


def _add_failure(row: FleetRow, error: str, message: str, *, transient: bool = False) -> FleetRow:
    reason, step = split_step(error, message, transient=transient)
    why = " ".join(reason.split())[:_LONGEST_WHY]
    return replace(row, error=error, why=why, next_step=" ".join(step.split()))


def _source(row: PlanRow, request: ConversionRequest) -> str:
    source = row.source or request.source
    return source.partition("@")[0] if source.startswith("hf://") else source


def _manifest(store: ReadableStore, assignment: Assignment) -> Manifest:
    """Return what a run published.

    It is under the planned key; where the worker's toolchain was another one, the channel knows.
    """
    source, key = _source(assignment.planned, assignment.request), assignment.planned.key
    manifest = _either(store, source, key) if key else None
    for channel in (assignment.request.channel, CANDIDATE_CHANNEL):
        if manifest is None:
            newest = read_current(store, channel_folder(source, assignment.pinned.variant, channel))
            manifest = _either(store, source, newest[1].key) if newest else None
    if manifest is None:
        raise ManifestError(
            f"{store.url}: expected the conversion of {source} that a run says it published, got "
            "none. Look whether the worker and this run mean the same store."
        )
    return manifest


def _either(store: ReadableStore, source: str, key: str) -> Manifest | None:
    """Return what is published under a key: validated, or still a candidate."""
    return find_published(store, source, key) or find_candidate(store, source, key)


def _attestation(
    store: ReadableStore, manifest: Manifest, run: str
) -> dict[str, dict[str, float]] | None:
    path = f"attestations/{source_slug(manifest.source)}/{manifest.key}/{run}.json"
    try:
        found: dict[str, dict[str, float]] = json.loads(store.read(path))
    except FileNotFoundError:
        return None
    return found


def _report(store: str, run: str) -> str | None:
    """Return the URL of a run's report, if it wrote one; a link never costs a row."""
    try:
        opened = open_store(store)
        written = opened.names(f"reports/{run}")
    except Exception:
        logger.warning("whether run %s left a report is not known", run, exc_info=True)
        return None
    return f"{opened.url}/reports/{run}/index.html" if written else None
