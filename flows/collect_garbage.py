"""The Prefect flow over ``tasks.publish.gc``: what the deployment ``gc/weekly`` runs."""

from __future__ import annotations

import time

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.engine import settings
from flows.engine.failures import telling_failures
from flows.engine.names import artifact_key, require_store
from flows.engine.release import RELEASE
from flows.engine.retries import network_task
from tasks.publish.gc import Collection, collect
from tracefleet.errors import StoreError
from tracefleet.store import open_writable

_DAY = 86400.0
#: Prefect's UI draws every row of a table at once.
_ROWS = 200


@flow(name="gc", flow_run_name="gc {store}", version=RELEASE, validate_parameters=True)
def collect_garbage(
    store: str | None = None,
    older_than_days: float = 7,
    keep: int | None = None,
    reports_older_than_days: float | None = None,
    dry_run: bool = False,
) -> Collection:
    """Remove what no channel references: conversions, orphaned files, unfinished uploads.

    Args:
        store: Root URL of the store; none: the run is refused.
        older_than_days: Leave alone what is younger; at least an hour (0.042).
        keep: Let only the newest so many numbers of each channel hold their conversions; none: all.
        reports_older_than_days: Remove older reports, but those of conversions that are there;
            none: keep all.
        dry_run: Only say what would be removed.

    Returns:
        What was removed and what was kept.

    Raises:
        RequestError: no store is named.
        StoreError: something could not be judged or removed; it was kept, the rest was done.
    """
    settings.show_progress()
    with telling_failures():
        store = require_store(store, "gc")
        # A publish may take that long between its first file and its channel.
        if older_than_days * _DAY < 3600:
            raise ValueError(f"older_than_days: expected at least an hour, got {older_than_days}")
        days = reports_older_than_days
        reports = None if days is None else days * _DAY
        found: Collection = collect_store(store, older_than_days * _DAY, keep, reports, dry_run)
        _show(store, found, dry_run)
        if found.damaged:
            raise StoreError(
                f"{store}: gc kept what it could not judge: " + "; ".join(found.damaged)
            )
        return found


def _collect(
    store: str, age: float, keep: int | None, reports: float | None, dry_run: bool
) -> Collection:
    now = time.time()
    return collect(
        open_writable(store, check=False),
        before=now - age,
        now=now,
        keep=keep,
        reports_before=None if reports is None else now - reports,
        dry_run=dry_run,
    )


collect_store = network_task(_collect, name="collect")


def _show(store: str, found: Collection, dry_run: bool) -> None:
    freed = sum(one.size for one in found.removed)
    verb = "would be removed" if dry_run else "removed"
    table = [
        {"kind": one.kind, "path": one.path, "files": one.files, "MB": round(one.size / 1e6, 1)}
        for one in found.removed[:_ROWS]
    ]
    create_table_artifact(
        table,
        key=artifact_key("gc", store),
        description=f"{store}: {len(found.removed)} {verb}, {freed / 1e6:.1f} MB, "
        f"{len(found.kept)} kept",
    )
