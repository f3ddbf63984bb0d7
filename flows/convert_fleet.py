"""The Prefect flow of a fleet: plan, hand out what is stale, report.

With a server every conversion is a run of the deployment of its backend, in the pool of its
backend; without one, or with ``jobs``, conversions run as subflows in this process. One failed
entry never stops the others, and a repeat does only what is left. What was refused before for the
very same is not tried again, and is no failure of this run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, cast
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.engine import settings as engine
from flows.engine.cancelled import RunCancelledError, end_cancelled, stop_if_cancelled, under
from flows.engine.clock import now
from flows.engine.names import KNOWN_REFUSALS
from flows.engine.release import RELEASE
from flows.engine.remembering import remember_invalid
from flows.engine.retries import PlanIncompleteError, network_task
from flows.fan_out import progress as fleet_show
from flows.fan_out.assignment import Assignment
from flows.fan_out.batch_runs import end_orphans
from flows.fan_out.convert_entries import convert_entries
from flows.fan_out.pool_runs import RunLostError
from flows.fan_out.rows import make_invalid_row, make_planned_row, make_refused_row
from tasks.errors import RequestError
from tasks.fleet.spec import FleetSpec, read_fleet
from tasks.plan.fleet import PlanRow, plan
from tasks.publish.guard import guard_stores
from tasks.report.fleet.facts import FleetError, FleetFacts, FleetRow
from tasks.request.conversion import ConversionRequest

#: Workers take up a coordinator that was lost with its host as often as it is lost.
_LIVES = 5
_NAMED = 5
IN_FLIGHT = 32
PLACES = 2


def _run_name() -> str:
    parameters = flow_run.parameters
    fleet = PurePosixPath(parameters.get("fleet") or "fleet").stem
    return f"{fleet} {now():%Y-%m-%d %H:%M}"


@flow(name="convert-fleet", flow_run_name=_run_name, version=RELEASE, validate_parameters=True)
def convert_fleet(
    fleet: str | None = None,
    spec: FleetSpec | None = None,
    store: str | None = None,
    only: list[str] | None = None,
    in_flight: Annotated[int, Field(ge=1)] = IN_FLIGHT,
    places: Annotated[int, Field(ge=1)] = PLACES,
    jobs: Annotated[int, Field(ge=1)] | None = None,
    retry_refused: bool = False,
) -> FleetFacts:
    """Convert every entry of a fleet whose published conversion is stale or missing.

    Args:
        fleet: Fleet file as the worker sees it: a path, or a file:// or s3:// URL.
        spec: The fleet itself, instead of a file.
        store: Root URL of the store for all entries, instead of what the fleet says.
        only: Names of entries; none: all.
        in_flight: Batch runs in the pools at a time.
        places: Runs that one worker of a process pool takes at a time, as its --limit: batch runs
            are made for so many. A pool's own concurrency limit goes before it.
        jobs: Convert in this process, so many at a time; none: hand out to the pools.
        retry_refused: Try again what was refused before, too.

    Returns:
        What came of every entry. The state's name is ``KnownRefusals`` where all that is not
        current was refused before.

    Raises:
        RequestError: the fleet is wrong; every mistake is named, and no work was begun.
        FleetError: some entries failed; all others are current, or were refused before.
    """
    engine.show_progress()
    _check_lives()
    own = UUID(str(flow_run.id))
    started = now()
    # What a lost host left running would be joined, and waited for.
    if engine.has_server():
        end_orphans()
    wanted = _read(fleet, spec).with_store(store)
    requests = _choose(wanted.requests(), only)
    if wanted.guarded:
        guard_channels([request.store for request in requests.values()], wanted.guarded)
    rows = _plan_requests(requests, retry_refused=retry_refused)
    work = [
        Assignment(planned=row, fleet=str(own)) for row in rows if row.state in ("stale", "missing")
    ]
    ended = {row.name: row for row in _settle_without_work(rows, _find_begin(own, started))}
    shown = fleet_show.Progress(total=len(rows), done=len(ended))
    options: dict[str, Any] = {"in_flight": in_flight, "places": places, "jobs": jobs}
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
        name=PurePosixPath(fleet).name if fleet else "fleet",
        run=str(flow_run.name),
        started=started,
        finished=now(),
        rows=in_order,
    )
    facts = fleet_show.keep(facts, store=rows[0].request.store, run=str(own))
    return cast("FleetFacts", _require_all_current(facts))


def _check_lives() -> None:
    """Let a run that takes every host down with it end, instead of being scheduled for ever."""
    if (lives := int(flow_run.run_count or 1)) > _LIVES:
        raise RunLostError(
            f"convert-fleet: expected to end once, but was lost {lives - 1} times. Look at the "
            "coordinator's host (memory, disk) before you run it again."
        )


def _find_begin(own: UUID, started: datetime) -> datetime:
    """Return when this run began first: what it was refused before its host was lost is new."""
    if int(flow_run.run_count or 1) == 1:
        return started
    with get_client(sync_client=True) as client:
        return client.read_flow_run(own).start_time or started


def _plan_requests(
    requests: dict[str, ConversionRequest], *, retry_refused: bool = False
) -> list[PlanRow]:
    """Plan; what the network hid of a checkpoint is asked again before it counts as a failure."""
    rows: list[PlanRow] = plan_fleet(requests, retry_refused=retry_refused)
    # Asked once more, those alone: a fleet of a thousand is not listed twice.
    hidden = {row.name: row.request for row in rows if row.transient}
    if hidden:
        state = plan_again(hidden, retry_refused=retry_refused, return_state=True)
        found = state.result(raise_on_failure=False)
        known = {row.name: row for row in getattr(found, "rows", found)}
        rows = [known.get(row.name, row) for row in rows]
    fleet_show.plan_table(rows)
    return rows


def _again(requests: dict[str, ConversionRequest], *, retry_refused: bool) -> list[PlanRow]:
    rows = plan(requests, retry_refused=retry_refused)
    # Raised, so that Prefect tries again; the last one still brings the rows.
    if any(row.transient for row in rows):
        raise PlanIncompleteError(rows)
    return rows


plan_fleet = network_task(plan, name="plan")
plan_again = network_task(_again, name="plan again")


guard_channels = network_task(guard_stores, name="guard channels")


def _read(fleet: str | None, spec: FleetSpec | None) -> FleetSpec:
    if (fleet is None) == (spec is None):
        raise RequestError("convert-fleet: expected either fleet or spec, got both or neither.")
    return spec or read_fleet(str(fleet))


def _choose(
    found: dict[str, ConversionRequest], only: list[str] | None
) -> dict[str, ConversionRequest]:
    if not only:
        return found
    chosen: set[str] = set()
    unknown: list[str] = []
    for entry in only:
        names = [name for name in found if _is_of(name, entry)]
        chosen.update(names)
        if not names:
            unknown.append(entry)
    if unknown:
        raise RequestError(
            f"only: expected entries of the fleet ({', '.join(found)}), got {', '.join(unknown)}"
        )
    return {name: request for name, request in found.items() if name in chosen}


def _is_of(name: str, entry: str) -> bool:
    """Whether a request is an entry, or one of those that the entry was multiplied into."""
    return name == entry or name.startswith(f"{entry}/")


def _settle_without_work(rows: Iterable[PlanRow], began: datetime) -> Iterator[FleetRow]:
    for row in rows:
        if row.state == "fresh":
            yield make_planned_row(row, "fresh")
        elif row.state == "invalid":
            remember_invalid(row)
            yield make_invalid_row(row)
        elif row.state == "refused":
            is_new = (row.tried or 0.0) >= began.timestamp()
            yield make_invalid_row(row) if is_new else make_refused_row(row)


def _require_all_current(facts: FleetFacts) -> FleetFacts | State[FleetFacts]:
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
