"""Carry out the conversions of a fleet: in the pools, or as subflows in this process.

One task run for each entry, in threads that wait: Prefect's task runner bounds how many, Prefect's
retries bring back what was lost, and a stop ends them all.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task, exponential_backoff

from flows.convert_checkpoint import convert_checkpoint
from flows.engine import settings as engine
from flows.engine.names import run_url
from flows.fan_out import progress as fleet_show
from flows.fan_out.assignment import Handout
from flows.fan_out.pool_runs import StoppedError, cancel, hand_out
from flows.fan_out.rows import cancelled_row, failed_row, joined_row, published_row, split_message
from tasks import child
from tasks.errors import ConversionError
from tasks.report.fleet.facts import FleetRow
from tracefleet.errors import ArtifactError, StoreUnavailableError


class EntryFailedError(Exception):
    """One entry did not become current; it fails its task run and nothing else."""

    def __init__(self, row: FleetRow) -> None:
        self.row = row
        super().__init__(f"{row.error or row.ending}: {row.why}")

    def __reduce__(self) -> tuple[object, ...]:
        return EntryFailedError, (self.row,)


def carried_out(work: list[Handout], *, in_flight: int, jobs: int | None) -> Iterator[FleetRow]:
    """Yield the row of each conversion as it ends; those that a stop leaves behind too."""
    if not work:
        return
    here = jobs if engine.has_server() else jobs or 1
    carry_out: Any = convert_here if here else convert_there
    stopping = threading.Event()
    runner: ThreadPoolTaskRunner[FleetRow] = ThreadPoolTaskRunner(max_workers=here or in_flight)
    # From the inside: threads are told to stop, waited for, and then what they left is cancelled.
    with _runs_cancelled(work[0].fleet), runner, _told_to_stop(stopping):
        futures: dict[PrefectFuture[FleetRow], Handout] = {
            runner.submit(carry_out, {"handout": one, "stopping": stopping}): one for one in work
        }
        for future in as_completed(list(futures)):
            yield _row(future, futures[future])


def _row(future: PrefectFuture[FleetRow], handout: Handout) -> FleetRow:
    result: Any = future.result(raise_on_failure=False)
    if isinstance(result, FleetRow):
        return result
    if isinstance(result, EntryFailedError):
        return result.row
    if isinstance(result, StoppedError):
        return cancelled_row(handout, url=None)
    return failed_row(handout, type(result).__name__, str(result))


@contextmanager
def _told_to_stop(stopping: threading.Event) -> Iterator[None]:
    """Let no thread go on behind a run that ends; children in this process end at once."""
    try:
        yield
    except BaseException:
        stopping.set()
        child.stop()
        raise


@contextmanager
def _runs_cancelled(fleet: str) -> Iterator[None]:
    """Cancel runs in the pools if this run is, or if no worker could take it up again.

    Else, as when the host of this run is drained, they go on, and the next run joins them.
    """
    try:
        yield
    except BaseException:
        if engine.has_server() and fleet_show.ends_for_good(fleet):
            cancel(fleet)
        raise


def _is_lost(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    """A lost run and a server that does not answer are worth another try, a verdict is not."""
    try:
        state.result()
    except StoreUnavailableError:
        return True
    except (EntryFailedError, StoppedError, ConversionError, ArtifactError):
        return False
    except Exception:
        return True
    return False


_entry = functools.partial(task, task_run_name="{handout.name}", cache_policy=NO_CACHE)


@_entry(
    name="hand out",
    retries=4,
    retry_delay_seconds=exponential_backoff(5),
    retry_jitter_factor=0.5,
    retry_condition_fn=_is_lost,
)
def convert_there(handout: Handout, stopping: threading.Event) -> FleetRow:
    """Have a worker of the backend's pool convert one entry."""
    run = hand_out(handout, stopping)
    if run is None:
        return joined_row(handout)
    assert run.state is not None
    return _ended(handout, run.state, str(run.id), cancelled=run.state.is_cancelled())


@_entry(name="convert")
def convert_here(handout: Handout, stopping: threading.Event) -> FleetRow:
    """Convert one entry in this process, as a subflow."""
    if stopping.is_set():
        raise StoppedError(handout.name)
    # Heartbeats tell of a host that was lost: with it this whole run is. They cost a second each.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        state: State[Any] = convert_checkpoint(handout.pinned, return_state=True)
    run = str(state.state_details.flow_run_id)
    return _ended(handout, state, run, cancelled=stopping.is_set())


def _ended(handout: Handout, state: State[Any], run: str, *, cancelled: bool) -> FleetRow:
    """Return the row of a run that ended well.

    Raises:
        EntryFailedError: it did not; the error holds its row.
    """
    url = run_url(run)
    if state.is_completed():
        return published_row(handout, run=run, url=url)
    if cancelled:
        raise EntryFailedError(cancelled_row(handout, url=url))
    error, message = split_message(str(state.message or state.name))
    raise EntryFailedError(failed_row(handout, error, message, run=run, url=url))
