"""Runs of conversions on a Prefect server: start or join one, wait for it, cancel a fleet's.

A run is identified by what it makes and where that goes: whoever hands out a conversion that is
under way joins its run. Waiting for a lost run or a server that restarts is Prefect's business: the
task over ``hand_out`` (``flows.fan_out.convert_entries``) retries for `RunLostError` and for
network errors, and each try joins or replaces the run.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import (
    TERMINAL_STATES,
    FlowRun,
    StateType,
    WorkPoolStatus,
)
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.engine.names import run_name
from flows.fan_out.assignment import Handout, fleet_tag
from tasks.errors import BackendUnavailableError
from tracefleet.channel import channel_folder, current
from tracefleet.store import open_store

logger = logging.getLogger(__name__)

FLOW = "convert-checkpoint"
#: The queue that fleets hand out to in every pool; ad hoc runs come before it (infra/pools.yaml).
QUEUE = "fleet"
#: Soon at first, for what is quick or fails at once; then so that hundreds in flight are bearable
#: for a server that answers about a hundred requests a second.
_POLLS = (3.0, 5.0, 8.0)
_POLL_SECONDS = 15.0
#: A pool whose workers are all gone for longer is taken for one that has none.
_NO_WORKER_SECONDS = 600.0
_PAGE = 200


class RunLostError(Exception):
    """A run ended without a verdict: its worker died, or somebody cancelled it for all."""


class StoppedError(Exception):
    """This fleet run is being stopped."""


def hand_out(handout: Handout, stopping: threading.Event) -> FlowRun | None:
    """Start or join the run of a conversion; return it when it is over.

    Returns:
        The run; None if the conversion turned out to be current already: another fleet's run ended
        since this one planned.

    Raises:
        RunLostError: it crashed, or was cancelled by somebody else.
        StoppedError: ``stopping`` was set; the run goes on.
        BackendUnavailableError: nobody can take it: no deployment, or no worker for ten minutes.
    """
    if stopping.is_set():
        raise StoppedError(f"{handout.name}: not begun")
    with get_client(sync_client=True) as client:
        started = _started(client, handout)
        if started is None:
            return None
        run = _finished(client, started, stopping)
    assert run.state is not None
    ours = handout.fleet_tag in run.tags
    if run.state.is_crashed() or (run.state.is_cancelled() and not ours):
        raise RunLostError(f"{run.name}: {run.state.name}: {run.state.message or 'no message'}")
    return run


def cancel(fleet: str) -> None:
    """Ask for the end of every run that a fleet run started and that is not over.

    What goes wrong with one run or with the server is logged and stops nothing else.
    """
    asked: set[UUID] = set()
    going = FlowRunFilterStateType(not_any_=[*TERMINAL_STATES, StateType.CANCELLING])
    try:
        with get_client(sync_client=True) as client:
            # The list shrinks as they are cancelled; what could not be is not asked for again.
            while left := [
                r for r in _page(client, [fleet_tag(fleet)], going) if r.id not in asked
            ]:
                for run in left:
                    asked.add(run.id)
                    _cancel(client, run)
    except Exception:
        logger.warning("the runs of this fleet could not be cancelled", exc_info=True)


def _cancel(client: SyncPrefectClient, run: FlowRun) -> None:
    try:
        client.set_flow_run_state(run.id, Cancelling())
    except Exception:
        logger.warning("%s could not be cancelled", run.name, exc_info=True)


def _started(client: SyncPrefectClient, handout: Handout) -> FlowRun | None:
    """Return a run of the conversion: a new one, or one to join; None if it is not needed.

    The key of the nth try is the same for all that hand out the conversion at the same time. A run
    that ended since the tries were counted is found by its key, and what it did in the store.
    """
    ended = sum(1 for _ in _over(client, [handout.tag]))
    for number in itertools.count(ended):
        if _is_current(handout):
            return _own(client, handout)
        run = _asked_for(handout, number)
        if run.state is None or not run.state.is_final():
            return run
    raise AssertionError("unreachable")


def _asked_for(handout: Handout, number: int) -> FlowRun:
    name = f"{FLOW}/{handout.request.backend}"
    try:
        run: Any = run_deployment(
            name,
            parameters={"request": handout.pinned.model_dump(mode="json")},
            flow_run_name=run_name(handout.pinned, handout.planned.commit),
            tags=[handout.tag, handout.fleet_tag],
            idempotency_key=f"{handout.identity}-{number}",
            work_queue_name=QUEUE,
            timeout=0,
        )
    except ObjectNotFound as error:
        raise BackendUnavailableError(
            f"deployment {name}: expected it on the Prefect server, got none. Deploy it: `prefect "
            "--no-prompt deploy --all --prefect-file infra/prefect.yaml`."
        ) from error
    return cast("FlowRun", run)


def _own(client: SyncPrefectClient, handout: Handout) -> FlowRun | None:
    """Return the run by which this fleet made the conversion current, if an earlier try did."""
    ours = _over(client, [handout.tag, handout.fleet_tag])
    return next((run for run in ours if run.state and run.state.is_completed()), None)


def _is_current(handout: Handout) -> bool:
    """Whether the channel points to the very conversion that was planned."""
    request = handout.pinned
    folder = channel_folder(request.source, request.variant, request.channel)
    newest = current(open_store(request.store), folder)
    return newest is not None and newest[1].key == handout.planned.key


def _finished(client: SyncPrefectClient, run: FlowRun, stopping: threading.Event) -> FlowRun:
    """Wait; ``run_deployment`` waits too, but can't be stopped in a thread."""
    alone = 0.0
    pauses = itertools.chain(_POLLS, itertools.repeat(_POLL_SECONDS))
    while run.state is None or not run.state.is_final():
        pause = next(pauses)
        if stopping.wait(pause):
            raise StoppedError(f"{run.name}: left under way")
        run = client.read_flow_run(run.id)
        alone = alone + pause if _has_no_worker(client, run) else 0.0
        if alone > _NO_WORKER_SECONDS:
            _cancel(client, run)
            raise BackendUnavailableError(
                f"pool {run.work_pool_name}: expected a worker, got none for "
                f"{_NO_WORKER_SECONDS / 60:g} minutes. Start one: `prefect worker start --pool "
                f"{run.work_pool_name}`."
            )
    return run


def _has_no_worker(client: SyncPrefectClient, run: FlowRun) -> bool:
    if run.state is None or not run.state.is_scheduled() or run.work_pool_name is None:
        return False
    return client.read_work_pool(run.work_pool_name).status == WorkPoolStatus.NOT_READY


def _over(client: SyncPrefectClient, tags: list[str]) -> Iterator[FlowRun]:
    """Yield every run with these tags that is over; a server tells 200 at a time."""
    kind = FlowRunFilterStateType(any_=list(TERMINAL_STATES))
    for offset in itertools.count(0, _PAGE):
        page = _page(client, tags, kind, offset)
        yield from page
        if len(page) < _PAGE:
            return


def _page(
    client: SyncPrefectClient, tags: list[str], kind: FlowRunFilterStateType, offset: int = 0
) -> list[FlowRun]:
    wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=tags), state=FlowRunFilterState(type=kind))
    return client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=offset)
