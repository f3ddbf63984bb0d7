"""Convert the entries of a fleet: in the pools, or as subflows in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows.convert_checkpoint import convert_checkpoint
from flows.engine import settings as engine
from flows.engine.cancelled import RunCancelledError, stop_if_cancelled
from flows.engine.names import run_url
from flows.fan_out import progress as fleet_show
from flows.fan_out.assignment import Assignment
from flows.fan_out.batch_runs import cancel_fleet
from flows.fan_out.pool_runs import run_in_pools
from flows.fan_out.rows import (
    make_cancelled_row,
    make_failed_row,
    make_published_row,
    split_message,
)
from tasks import child
from tasks.report.fleet.facts import FleetRow


class EntryFailedError(Exception):
    """One entry did not become current; it fails its task run and nothing else."""

    def __init__(self, row: FleetRow) -> None:
        self.row = row
        super().__init__(f"{row.error or row.ending}: {row.why}")

    def __reduce__(self) -> tuple[object, ...]:
        return EntryFailedError, (self.row,)


class StoppedError(Exception):
    """This fleet run is being stopped."""


def convert_entries(
    work: list[Assignment], *, fleet: UUID, in_flight: int, places: int, jobs: int | None
) -> Iterator[FleetRow]:
    """Yield the row of each conversion as it ends.

    Args:
        work: what is to be converted.
        fleet: identifier of the fleet's flow run.
        in_flight: batch runs in the pools at a time.
        places: places of one worker of a process pool.
        jobs: conversions at a time in this process; None: the pools convert, if there is a server.
    """
    if not work:
        return
    if jobs is None and engine.has_server():
        with cancelling_runs_on_error(fleet):
            yield from run_in_pools(work, fleet=fleet, places=places, in_flight=in_flight)
    else:
        yield from _convert_in_threads(work, jobs or 1)


def _convert_in_threads(work: list[Assignment], jobs: int) -> Iterator[FleetRow]:
    stopping = threading.Event()
    runner: ThreadPoolTaskRunner[FleetRow] = ThreadPoolTaskRunner(max_workers=jobs)
    with runner, stopping_on_error(stopping):
        futures: dict[PrefectFuture[FleetRow], Assignment] = {
            runner.submit(convert_here, {"assignment": one, "stopping": stopping}): one
            for one in work
        }
        for future in as_completed(list(futures)):
            yield _row(future, futures[future])


def _row(future: PrefectFuture[FleetRow], assignment: Assignment) -> FleetRow:
    result: Any = future.result(raise_on_failure=False)
    if isinstance(result, FleetRow):
        return result
    if isinstance(result, EntryFailedError):
        return result.row
    if isinstance(result, StoppedError):
        return make_cancelled_row(assignment, url=None)
    return make_failed_row(assignment, type(result).__name__, str(result))


@contextmanager
def stopping_on_error(stopping: threading.Event) -> Iterator[None]:
    """Let no thread go on behind a run that ends; children in this process end at once."""
    try:
        yield
    except BaseException:
        stopping.set()
        child.stop()
        raise


@contextmanager
def cancelling_runs_on_error(fleet: UUID) -> Iterator[None]:
    """Cancel runs in the pools if this run is, or if no worker could take it up again.

    Else, as when the host of this run is drained, they go on, and the next run joins them.
    """
    try:
        yield
    except BaseException:
        if fleet_show.ends_for_good(str(fleet)):
            cancel_fleet(fleet)
        raise


@task(name="convert", task_run_name="{assignment.name}", cache_policy=NO_CACHE)
def convert_here(assignment: Assignment, stopping: threading.Event) -> FleetRow:
    """Convert one entry in this process, as a subflow.

    Raises:
        EntryFailedError: it did not end well; the error holds its row.
        StoppedError: the fleet stops: ``stopping`` is set, or it is being cancelled.
    """
    try:
        stop_if_cancelled()
    except RunCancelledError as error:
        raise StoppedError(f"{assignment.name}: not begun: {error}") from error
    if stopping.is_set():
        raise StoppedError(f"{assignment.name}: not begun")
    # Heartbeats tell of a host that was lost: with it this whole run is. They cost a second each.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        state: State[Any] = convert_checkpoint(assignment.pinned, return_state=True)
    run = str(state.state_details.flow_run_id)
    url = run_url(run)
    if state.is_completed():
        return make_published_row(assignment, run=run, url=url)
    if state.is_cancelled() or stopping.is_set():
        raise EntryFailedError(make_cancelled_row(assignment, url=url))
    kind, message = split_message(str(state.message or state.name))
    raise EntryFailedError(make_failed_row(assignment, kind, message, run=run, url=url))
