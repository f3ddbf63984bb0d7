"""The Prefect flow of a fleet: plan, hand out what is stale, report.

With a server every conversion is a run of the deployment of its backend, in the pool of its
backend; without one, or with ``jobs``, conversions run as subflows in this process. One failed
entry never stops the others, and a repeat does only what is left. What was refused before for the
very same is not tried again, and is no failure of this run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, cast
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.engine import settings as engine
from flows.engine.cancelled import RunCancelledError, end_cancelled, stop_if_cancelled, under
from flows.engine.clock import now
from flows.engine.failures import telling_failures
from flows.engine.release import RELEASE
from flows.engine.retries import network_task
from flows.fan_out import progress as fleet_show
from flows.fan_out.assignment import Assignment
from flows.fan_out.batch_runs import end_orphans
from flows.fan_out.convert_entries import convert_entries
from flows.fan_out.ends import find_begin, require_all_current, settle_without_work
from flows.fan_out.plan import choose, list_stores, look_up, plan_requests, read_spec
from flows.fan_out.pool_runs import RunLostError
from tasks import child
from tasks.fleet.spec import FleetSpec
from tasks.plan.fleet import PlanRow
from tasks.publish.guard import guard_stores
from tasks.report.fleet.facts import FleetFacts, FleetRow
from tracefleet.errors import StoreUnavailableError

logger = logging.getLogger(__name__)
#: Workers take up a coordinator that was lost with its host as often as it is lost.
_LIVES = 5
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
        fleet: Fleet file as the worker sees it: a path, or a file:// or s3:// URL; neither it nor
            a spec: the run is refused.
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
        RequestError: the file can't be meant; every mistake is named, and no work was begun.
        FleetError: some entries failed; all others are current, or were refused before.
    """
    engine.show_progress()
    # Before the plan, whose children begin the fork server.
    child.share_cores(jobs or 1)
    started = now()
    with telling_failures():
        _check_lives()
        asked = read_spec(fleet, spec).with_store(store or None)
        # What a lost host left running would be joined, and waited for.
        if engine.has_server():
            end_orphans()
        requests = choose(look_up(asked), only)
        if asked.guarded:
            _guard(list_stores(requests), asked.guarded)
        rows = plan_requests(requests, retry_refused=retry_refused)
        known = settle_without_work(rows, find_begin(started))
        ended = {row.name: row for row in known}
        try:
            _convert(rows, ended, in_flight=in_flight, places=places, jobs=jobs)
        except RunCancelledError as error:
            return cast("FleetFacts", end_cancelled(error))
        name = PurePosixPath(fleet).name if fleet else "fleet"
        facts = FleetFacts(
            name=name,
            run=str(flow_run.name),
            started=started,
            finished=now(),
            # As in the fleet file, whichever ended first: reports of two days can be compared.
            rows=tuple(ended[row.name] for row in rows),
        )
        run, home = str(flow_run.id), _find_home(asked, rows)
        facts = fleet_show.keep(facts, store=home, run=run, whole=not only)
        return cast("FleetFacts", require_all_current(facts))


guard_channels = network_task(guard_stores, name="guard channels")


def _guard(stores: list[str], channels: tuple[str, ...]) -> None:
    """Guard channels; a store that stays away is told, and its entries are rows of their own."""
    state: State[Any] = guard_channels(stores, channels, return_state=True)
    if not state.is_completed():
        logger.warning("not every store could be guarded: %s", state.message)


def _convert(rows: Sequence[PlanRow], ended: dict[str, FleetRow], **options: Any) -> None:
    """Convert what is stale or missing; add each row to what has ended, and tell it."""
    own = UUID(str(flow_run.id))
    work = []
    for row in rows:
        if row.state in ("stale", "missing"):
            work.append(Assignment(planned=row, fleet=str(own)))
    shown = fleet_show.Progress(total=len(rows), done=len(ended))
    with under(own):
        for done in convert_entries(work, fleet=own, **options):
            ended[done.name] = done
            shown.tell(done)
        # The server would refuse "completed" of a run that it was asked to cancel meanwhile.
        stop_if_cancelled(always=True)


def _check_lives() -> None:
    """Let a run that takes every host down with it end, instead of being scheduled for ever."""
    if (lives := int(flow_run.run_count or 1)) > _LIVES:
        raise RunLostError(
            f"convert-fleet: expected to end once, but was lost {lives - 1} times. Look at the "
            "coordinator's host (memory, disk) before you run it again."
        )


def _find_home(spec: FleetSpec, rows: Iterable[PlanRow]) -> str:
    """Return the store that a fleet's report is written to: its first that answers."""
    asked = (row.request for row in rows if row.error != StoreUnavailableError.__name__)
    return next((request.store for request in asked if request is not None), spec.home)
