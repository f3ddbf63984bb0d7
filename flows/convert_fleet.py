"""The Prefect flow of a fleet: plan, hand out what is stale, report.

With a server every conversion is a run of the deployment of its backend, in the pool of its
backend; without one, or with ``jobs``, conversions run as subflows in this process. One failed
entry never stops the others, and a repeat does only what is left.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task, exponential_backoff

from flows import engine, fleet_show
from flows.convert_checkpoint import convert_checkpoint
from flows.fleet_rows import (
    cancelled_row,
    failed_row,
    invalid_row,
    planned_row,
    published_row,
)
from flows.fleet_spec import FleetSpec, read_fleet
from flows.handout import Handout, StoppedError, cancel, hand_out
from flows.naming import run_url
from flows.network import network_task
from flows.planning import wanted_of
from flows.request import ConversionRequest
from tasks import child
from tasks.errors import FleetError, RequestError
from tasks.plan import PlanRow, Wanted, plan
from tasks.report.fleet_facts import FleetFacts, FleetRow

logger = logging.getLogger(__name__)

IN_FLIGHT = 32  # facts: 32-64; each waiting run costs the server a request in 5 s


class EntryFailedError(Exception):
    """One entry did not become current; it fails its task run and nothing else."""

    def __init__(self, row: FleetRow) -> None:
        self.row = row
        super().__init__(f"{row.error or row.ending}: {row.why}")

    def __reduce__(self) -> tuple[object, ...]:
        return EntryFailedError, (self.row,)


def _run_name() -> str:
    parameters = flow_run.parameters
    fleet = PurePosixPath(parameters.get("fleet") or "fleet").stem
    return f"{fleet} {datetime.now(UTC):%Y-%m-%d %H:%M}"


@flow(name="convert-fleet", flow_run_name=_run_name, validate_parameters=True)
def convert_fleet(
    fleet: str | None = None,
    spec: FleetSpec | None = None,
    store: str | None = None,
    only: list[str] | None = None,
    in_flight: int = IN_FLIGHT,
    jobs: int | None = None,
) -> FleetFacts:
    """Convert every entry of a fleet whose published conversion is stale or missing.

    Args:
        fleet: Fleet file as the worker sees it: a path, or a file:// or s3:// URL.
        spec: The fleet itself, instead of a file.
        store: Root URL of the store for all entries, instead of what the fleet says.
        only: Names of entries; none: all.
        in_flight: Conversions handed out to the pools at a time.
        jobs: Convert in this process, so many at a time; none: hand out to the pools.

    Returns:
        What came of every entry.

    Raises:
        RequestError: the fleet is wrong; every mistake is named, and no work was begun.
        FleetError: some entries failed; all others are current.
    """
    engine.tell_progress()
    started = datetime.now(UTC)
    requests = _requests(fleet, spec, store, only)
    rows: list[PlanRow] = plan_fleet(
        [wanted_of(name, request) for name, request in requests.items()]
    )
    work = [
        Handout(request=requests[row.wanted.name], planned=row, fleet=str(flow_run.id))
        for row in rows
        if row.state in ("stale", "missing")
    ]
    ended = {row.name: row for row in _without_work(rows)}
    shown = fleet_show.Progress(total=len(rows), done=len(ended))
    for row in _carried_out(work, in_flight=in_flight, jobs=jobs):
        ended[row.name] = row
        shown.tell(row)
    facts = FleetFacts(
        name=PurePosixPath(fleet).name if fleet else "fleet",
        run=str(flow_run.name),
        started=started,
        finished=datetime.now(UTC),
        rows=tuple(ended[row.wanted.name] for row in rows),
    )
    return _checked(fleet_show.keep(facts, store=rows[0].wanted.store, run=str(flow_run.id)))


def _plan(wanted: list[Wanted]) -> list[PlanRow]:
    """Find out which entries are stale, without reading weights."""
    rows = plan(wanted)
    fleet_show.plan_table(rows)
    return rows


plan_fleet = network_task(_plan, name="plan")


def _requests(
    fleet: str | None, spec: FleetSpec | None, store: str | None, only: list[str] | None
) -> dict[str, ConversionRequest]:
    if (fleet is None) == (spec is None):
        raise RequestError("convert-fleet: expected either fleet or spec, got both or neither.")
    found = (spec or read_fleet(str(fleet))).with_store(store).requests()
    if unknown := sorted(set(only or ()) - set(found)):
        raise RequestError(f"only: expected names of entries, got {', '.join(unknown)}.")
    return {name: request for name, request in found.items() if not only or name in only}


def _without_work(rows: Iterable[PlanRow]) -> Iterator[FleetRow]:
    for row in rows:
        if row.state == "fresh":
            yield planned_row(row, "fresh")
        elif row.state == "invalid":
            yield invalid_row(row)


def _carried_out(work: list[Handout], *, in_flight: int, jobs: int | None) -> Iterator[FleetRow]:
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
    told = f"{type(result).__name__}: {result}"
    return failed_row(handout, told, run=handout.fleet, url=None)


@contextmanager
def _told_to_stop(stopping: threading.Event) -> Iterator[None]:
    """Let no thread go on behind a run that is being ended; children in this process end at once."""
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
    except (EntryFailedError, StoppedError):
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
    told = str(state.message or state.name)
    raise EntryFailedError(failed_row(handout, told, run=run, url=url))


def _checked(facts: FleetFacts) -> FleetFacts:
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
