"""What a fleet run shows while it runs and leaves behind: progress, tables, its report."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, get_args
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client

from flows.engine.names import artifact_key
from flows.fan_out.figures import emit_figures
from tasks.errors import ConversionError
from tasks.plan.fleet import PlanRow, State
from tasks.report.fleet.facts import FleetFacts, FleetRow
from tasks.report.fleet.markdown import (
    failure_table,
    fleet_markdown,
    fleet_table,
    refusal_table,
)
from tasks.report.fleet.page import fleet_report
from tracefleet.errors import ArtifactError
from tracefleet.store import open_writable

logger = logging.getLogger(__name__)

#: Prefect's UI draws every row of a table at once.
_ROWS = 200


def _quietly(show: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Show something in Prefect's UI; what can't be shown costs no conversion."""
    try:
        return show(*arguments, **options)
    except Exception as error:
        traced = not isinstance(error, ConversionError | ArtifactError)
        logger.warning("not shown (%s): %s", show.__name__, error, exc_info=traced)
        return None


@dataclass
class Progress:
    """A bar in the UI and a line in the log for every entry that ends."""

    total: int
    done: int
    _bar: UUID | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Make the bar; a run with nothing to do has none."""
        if self.done < self.total:
            told = _quietly(create_progress_artifact, self._percent, description=self._text)
            self._bar = told

    def tell(self, row: FleetRow) -> None:
        """Count one entry as ended."""
        self.done += 1
        logger.info("%d/%d %s: %s", self.done, self.total, row.name, describe(row))
        if self._bar is not None:
            _quietly(update_progress_artifact, self._bar, self._percent, description=self._text)

    @property
    def _percent(self) -> float:
        return 100 * self.done / self.total

    @property
    def _text(self) -> str:
        return f"{self.done} of {self.total} entries have ended"


def describe(row: FleetRow) -> str:
    """Return what came of an entry, in one line."""
    figures: str = row.ending
    if row.worst_error is not None:
        figures += f", error {row.worst_error:.1e}"
    if row.seconds is not None:
        figures += f", {row.seconds:.1f} s"
    why = f"{row.error}: {row.why}" if row.error else row.why
    return f"{figures}: {why}" if why else figures


def plan_table(rows: list[PlanRow]) -> None:
    """Show what there is to do, before it is done."""
    states = Counter(row.state for row in rows)
    told = [state for state in get_args(State) if state != "refused" or states[state]]
    counts = ", ".join(f"{states[state]} {state}" for state in told)
    logger.info("plan: %d entries: %s", len(rows), counts)
    refused = [row for row in rows if row.state == "invalid"]
    for row in refused[:_ROWS]:
        logger.info("%s: %s: %s", row.name, row.error, row.message)
    work = [row for row in rows if row.state != "fresh"]
    if work:
        table = [
            {"entry": row.name, "state": row.state, "why": "; ".join(row.why) or row.message}
            for row in work[:_ROWS]
        ]
        described = f"The plan: {counts}"
        _quietly(create_table_artifact, table, key="fleet-plan", description=described)


def keep(facts: FleetFacts, *, store: str, run: str, whole: bool = True) -> FleetFacts:
    """Write the report into a store and the tables into Prefect; return the facts with its URL.

    Args:
        facts: What came of every entry.
        store: Root URL of the store.
        run: Identifier of the flow run.
        whole: Whether these are all entries: figures of some would pass for the fleet's.
    """
    url = _quietly(_put_report, facts, store, run)
    facts = replace(facts, report_url=url)
    logger.info("report: %s", url)
    _artifacts(facts)
    if whole:
        _quietly(emit_figures, facts, store)
    return facts


def _put_report(facts: FleetFacts, store: str, run: str) -> str:
    opened = open_writable(store, check=False)
    folder = f"reports/{run}"
    page = fleet_report(facts, base_url=f"{opened.url}/{folder}")
    opened.put_over(f"{folder}/index.html", page.encode())
    return f"{opened.url}/{folder}/index.html"


def ends_for_good(run: str) -> bool:
    """Whether a flow run is being cancelled, or runs under no worker that could resume it."""
    try:
        with get_client(sync_client=True) as client:
            found = client.read_flow_run(UUID(run))
    except Exception:
        logger.warning("whether this run is being cancelled is not known", exc_info=True)
        return False
    cancelling = found.state is not None and (
        found.state.is_cancelling() or found.state.is_cancelled()
    )
    return cancelling or found.deployment_id is None


def _artifacts(facts: FleetFacts) -> None:
    key, run = artifact_key("fleet", facts.name), facts.run
    url = facts.report_url or "not written"
    _quietly(create_markdown_artifact, fleet_markdown(facts, url), key=key, description=run)
    for name, table, described in (
        ("entries", fleet_table(facts), f"What changed and failed in {run}"),
        ("failures", failure_table(facts), f"Failures of {run}"),
        ("refusals", refusal_table(facts), f"Refused before {run}, and not tried"),
    ):
        if table:
            _quietly(create_table_artifact, table, key=f"{key}-{name}", description=described)
    if facts.report_url:
        link = {"link_text": f"Report of {run}", "key": f"{key}-report"}
        _quietly(create_link_artifact, facts.report_url, **link)
