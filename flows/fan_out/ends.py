"""How a fleet ends: what needs no work, and whether all of it is current or was refused before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.engine.names import KNOWN_REFUSALS
from flows.engine.remembering import remember_invalid
from flows.fan_out.rows import make_invalid_row, make_planned_row, make_refused_row
from tasks.plan.fleet import PlanRow
from tasks.report.fleet.facts import FleetError, FleetFacts, FleetRow

_NAMED = 5


def find_begin(started: datetime) -> datetime:
    """Return when this run began first: what it was refused before its host was lost is new."""
    if int(flow_run.run_count or 1) == 1:
        return started
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(str(flow_run.id))).start_time or started


def settle_without_work(rows: Iterable[PlanRow], began: datetime) -> Iterator[FleetRow]:
    """Yield the row of each entry that needs no work, and remember what the plan refused.

    Args:
        rows: Plan of the fleet.
        began: When this run began first: what was refused since then is new.
    """
    for row in rows:
        if row.state == "fresh":
            yield make_planned_row(row, "fresh")
        elif row.state == "invalid":
            remember_invalid(row)
            yield make_invalid_row(row)
        elif row.state == "refused":
            is_new = (row.tried or 0.0) >= began.timestamp()
            yield make_invalid_row(row) if is_new else make_refused_row(row)


def require_all_current(facts: FleetFacts) -> FleetFacts | State[FleetFacts]:
    """Return the facts of a fleet whose every entry is current or was refused before.

    Raises:
        FleetError: some are not.
    """
    left = [row for row in facts.rows if row.ending in ("failed", "cancelled")]
    refused = facts.ended("refused")
    report = facts.report_url or "not written"
    if not left and not refused:
        return facts
    if not left:
        return Completed(
            name=KNOWN_REFUSALS,
            message=f"{len(refused)} of {len(facts.rows)} entries were refused before and not "
            f"tried: {_list_names(refused)}. All others are current. Report: {report}",
            data=facts,
        )
    current = len(facts.rows) - len(left) - len(refused)
    before = f", {len(refused)} were refused before" if refused else ""
    raise FleetError(
        f"{facts.name}: expected all {len(facts.rows)} entries to be current, got {current} "
        f"({len(facts.ended('published'))} published now); {len(left)} are not: "
        f"{_list_names(left)}{before}. What was published stays; correct these and run again, it "
        f"does only what is left. Report: {report}",
        facts,
    )


def _list_names(rows: Sequence[FleetRow]) -> str:
    names = ", ".join(f"{row.name} ({row.error or row.ending})" for row in rows[:_NAMED])
    return f"{names} and {len(rows) - _NAMED} more" if len(rows) > _NAMED else names
