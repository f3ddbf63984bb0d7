"""The Prefect flow of a fleet: plan, hand out what is stale, report.

With a server every conversion is a run of the deployment of its backend, in the pool of its
backend; without one, or with ``jobs``, conversions run as subflows in this process. One failed
entry never stops the others, and a repeat does only what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, cast
from uuid import UUID

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.engine import settings as engine
from flows.engine.cancelled import RunCancelledError, end_cancelled, stop_if_cancelled, under
from flows.engine.clock import now
from flows.engine.failures import telling_failures
from flows.fan_out import progress as fleet_show
from flows.fan_out.assignment import Assignment
from flows.fan_out.batch_runs import end_orphans
from flows.fan_out.convert_entries import convert_entries
from flows.fan_out.plan import choose, look_up, plan_requests, read_spec
from flows.fan_out.pool_runs import RunLostError
from flows.fan_out.rows import make_invalid_row, make_planned_row
from tasks.fleet.spec import FleetSpec
from tasks.plan.fleet import PlanRow
from tasks.report.fleet.facts import FleetError, FleetFacts, FleetRow
from tracefleet.errors import StoreUnavailableError

#: Workers take up a coordinator that was lost with its host as often as it is lost.
_LIVES = 5
IN_FLIGHT = 32
PLACES = 2


def _run_name() -> str:
    parameters = flow_run.parameters
    fleet = PurePosixPath(parameters.get("fleet") or "fleet").stem
    return f"{fleet} {now():%Y-%m-%d %H:%M}"


@flow(name="convert-fleet", flow_run_name=_run_name, validate_parameters=True)
def convert_fleet(
    fleet: str | None = None,
    spec: FleetSpec | None = None,
    store: str | None = None,
    only: list[str] | None = None,
    in_flight: Annotated[int, Field(ge=1)] = IN_FLIGHT,
    places: Annotated[int, Field(ge=1)] = PLACES,
    jobs: Annotated[int, Field(ge=1)] | None = None,
) -> FleetFacts:
    """Convert every entry of a fleet whose published conversion is stale or missing.

    Args:
        fleet: Fleet file as the worker sees it: a path, or a file:// or s3:// URL; neither it nor
            a spec: the run is refused.
        spec: The fleet itself, instead of a file.
        store: Root URL of the store for all entries, instead of what the fleet says.
        only: Names of entries; none: all.
        in_flight: Batch runs in the pools at a time.
        places: Runs that one worker of a process pool takes at a time, as its --limit: batch runs
            are made for so many. A pool's own concurrency limit goes before it.
        jobs: Convert in this process, so many at a time; none: hand out to the pools.

    Returns:
        What came of every entry.

    Raises:
        RequestError: the file can't be meant; every mistake is named, and no work was begun.
        FleetError: some entries failed; all others are current.
    """
    engine.show_progress()
    with telling_failures():
        _check_lives()
        asked = read_spec(fleet, spec).with_store(store or None)
        name = PurePosixPath(fleet).name if fleet else "fleet"
        options: dict[str, Any] = {"in_flight": in_flight, "places": places, "jobs": jobs}
        return _convert(asked, name=name, only=only, options=options)


def _convert(
    asked: FleetSpec, *, name: str, only: list[str] | None, options: dict[str, Any]
) -> FleetFacts:
    own = UUID(str(flow_run.id))
    started = now()
    # What a lost host left running would be joined, and waited for.
    if engine.has_server():
        end_orphans()
    rows = plan_requests(choose(look_up(asked), only))
    work = [
        Assignment(planned=row, fleet=str(own)) for row in rows if row.state in ("stale", "missing")
    ]
    ended = {row.name: row for row in _settle_without_work(rows)}
    shown = fleet_show.Progress(total=len(rows), done=len(ended))
    try:
        with under(own):
            for row in convert_entries(work, fleet=own, **options):
                ended[row.name] = row
                shown.tell(row)
            # The server would refuse "completed" of a run that it was asked to cancel meanwhile.
            stop_if_cancelled(always=True)
    except RunCancelledError as error:
        return cast("FleetFacts", end_cancelled(error))
    # As in the fleet file, whichever ended first: reports of two days can be compared.
    in_order = tuple(ended[row.name] for row in rows)
    facts = FleetFacts(
        name=name,
        run=str(flow_run.name),
        started=started,
        finished=now(),
        rows=in_order,
    )
    return _require_all_current(fleet_show.keep(facts, store=_home(asked, rows), run=str(own)))


def _check_lives() -> None:
    """Let a run that takes every host down with it end, instead of being scheduled for ever."""
    if (lives := int(flow_run.run_count or 1)) > _LIVES:
        raise RunLostError(
            f"convert-fleet: expected to end once, but was lost {lives - 1} times. Look at the "
            "coordinator's host (memory, disk) before you run it again."
        )


def _home(spec: FleetSpec, rows: Iterable[PlanRow]) -> str:
    """Return the store that a fleet's report is written to: its first that answers."""
    asked = (row.request for row in rows if row.error != StoreUnavailableError.__name__)
    return next((request.store for request in asked if request is not None), spec.home)


def _settle_without_work(rows: Iterable[PlanRow]) -> Iterator[FleetRow]:
    for row in rows:
        if row.state == "fresh":
            yield make_planned_row(row, "fresh")
        elif row.state == "invalid":
            yield make_invalid_row(row)


def _require_all_current(facts: FleetFacts) -> FleetFacts:
    """Return the facts of a fleet whose every entry is current.

    Raises:
        FleetError: some are not.
    """
    left = [row for row in facts.rows if row.ending in ("failed", "cancelled")]
    if not left:
        return facts
    names = ", ".join(f"{row.name} ({row.error or row.ending})" for row in left[:5])
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    raise FleetError(
        f"{facts.name}: expected all {len(facts.rows)} entries to be current, got "
        f"{len(facts.rows) - len(left)} ({len(facts.ended('published'))} published now); "
        f"{len(left)} are not: {names}{more}. What was published stays; correct these and run "
        f"again, it does only what is left. Report: {facts.report_url or 'not written'}",
        facts,
    )
