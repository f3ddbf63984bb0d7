"""Batch runs on a Prefect server: start one, read what became of it, take work back, cancel.

A conversion is known by what it makes and where that goes (`Assignment.identity`): a batch run
carries a tag for each that it is to make, and so does the run of the conversion itself.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterId,
)
from prefect.client.schemas.objects import (
    TERMINAL_STATES,
    FlowRun,
    State,
    StateType,
)
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Crashed

from flows.engine.cancelled import asking_once
from flows.engine.names import fleet_tag
from flows.fan_out.assignment import Assignment
from flows.fan_out.places import make_deployment_error

logger = logging.getLogger(__name__)

FLOW = "convert-batch"
CONVERSION = "convert-checkpoint"
_LIVE = FlowRunFilterState(type=FlowRunFilterStateType(not_any_=list(TERMINAL_STATES)))
_OVER = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES)))
_GOING = FlowRunFilterState(
    type=FlowRunFilterStateType(not_any_=[*TERMINAL_STATES, StateType.CANCELLING])
)
_BATCHES = FlowFilter(name=FlowFilterName(any_=[FLOW]))
_CONVERSIONS = FlowFilter(name=FlowFilterName(any_=[CONVERSION]))
#: So many runs a server returns at a time.
_PAGE = 200


def start(
    client: SyncPrefectClient, batch: Sequence[Assignment], fleet: UUID, *, not_before: datetime
) -> FlowRun:
    """Start a batch run, or return the one that another fleet started for the very same work.

    Args:
        client: of the server.
        batch: what is to be converted, all by one backend.
        fleet: identifier of the fleet's flow run.
        not_before: the server holds the run back until then.

    Raises:
        BackendUnavailableError: there is no deployment for the backend.
    """
    tags = {one.tag for one in batch}
    alike = FlowRunFilter(tags=FlowRunFilterTags(all_=sorted(tags)), state=_OVER)
    ended = client.count_flow_runs(flow_filter=_BATCHES, flow_run_filter=alike)
    identities = "".join(sorted(one.identity for one in batch))
    identity = hashlib.sha256(identities.encode()).hexdigest()
    # A key that was used before brings the run of that time, which may be over.
    for number in itertools.count(ended):
        run = _create(batch, fleet, f"{identity}-{number}", not_before)
        if run.state is None or not run.state.is_final():
            return run
    raise AssertionError("unreachable")


def _create(batch: Sequence[Assignment], fleet: UUID, key: str, not_before: datetime) -> FlowRun:
    entries = [one.entry for one in batch]
    others = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
    parameters = {"entries": [entry.model_dump(mode="json") for entry in entries]}
    tags = [entry.tag for entry in entries]
    name = deployment(batch[0])
    try:
        run: Any = run_deployment(
            name,
            parameters={**parameters, "fleet": str(fleet)},
            flow_run_name=f"{entries[0].name}{others}",
            tags=[*tags, batch[0].fleet_tag],
            idempotency_key=key,
            scheduled_time=not_before,
            timeout=0,
        )
    except ObjectNotFound as error:
        raise make_deployment_error(name) from error
    return cast("FlowRun", run)


def deployment(one: Assignment) -> str:
    """Return the name of the deployment that converts batches of an entry's backend."""
    return f"{FLOW}/{one.request.backend}"


def live_batches(client: SyncPrefectClient) -> list[FlowRun]:
    """Return every batch run that is not over, of any fleet."""
    return list(_read(client, FlowRunFilter(state=_LIVE), flow_filter=_BATCHES))


def runs_by_id(client: SyncPrefectClient, ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
    """Return runs as they are now."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(ids)))
    return {run.id: run for run in _read(client, wanted)}


def conversions(
    client: SyncPrefectClient,
    batches: Iterable[UUID],
    *,
    over: bool | None = None,
    since: datetime | None = None,
) -> list[FlowRun]:
    """Return the runs of conversions that belong to batch runs.

    Args:
        client: of the server.
        batches: identifiers of the batch runs.
        over: only those that are over, or that are not; None: all.
        since: only those that ended after this moment.
    """
    states = {True: _OVER, False: _LIVE, None: None}
    wanted = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=list(batches)),
        state=states[over],
        end_time=FlowRunFilterEndTime.model_validate({"after_": since}) if since else None,
    )
    return list(_read(client, wanted, flow_filter=_CONVERSIONS))


def end_conversions(client: SyncPrefectClient, batch: FlowRun) -> None:
    """End the runs that a batch run left behind when its process was lost."""
    state: State[Any] = Crashed(message=f"Its batch, {batch.name}, was lost.")
    if batch.state is not None and batch.state.is_cancelled():
        state = Cancelled(message=f"Its batch, {batch.name}, was cancelled.")
    for run in conversions(client, [batch.id], over=False):
        client.set_flow_run_state(run.id, state, force=True)


def end_orphans() -> None:
    """End the runs of conversions whose batch run is over, whichever fleet they were of.

    What goes wrong with the server is logged and stops nothing else.
    """
    try:
        with get_client(sync_client=True) as client:
            running = _read(client, FlowRunFilter(state=_LIVE), flow_filter=_CONVERSIONS)
            tasks = [run.parent_task_run_id for run in running if run.parent_task_run_id]
            for first in range(0, len(tasks), _PAGE):
                _end_orphans_of(client, tasks[first : first + _PAGE])
    except Exception:
        logger.warning("runs that lost batches left behind could not be ended", exc_info=True)


def _end_orphans_of(client: SyncPrefectClient, tasks: list[UUID]) -> None:
    """End what batch runs that are over left behind; in a batch, a task stands for each run."""
    wanted = TaskRunFilter(id=TaskRunFilterId(any_=tasks))
    over = FlowRunFilter(state=_OVER)
    for batch in _read(client, over, flow_filter=_BATCHES, task_run_filter=wanted):
        end_conversions(client, batch)


def take_back(client: SyncPrefectClient, batch: FlowRun, tags: set[str]) -> set[str]:
    """Take conversions away from a batch run that has not begun them.

    Returns:
        The tags of those that it will not make; one that it began meanwhile stays with it.
    """
    client.update_flow_run(batch.id, tags=[tag for tag in batch.tags if tag not in tags])
    begun = {tag for run in conversions(client, [batch.id]) for tag in run.tags} & tags
    if begun:
        client.update_flow_run(batch.id, tags=[t for t in batch.tags if t not in tags - begun])
    return tags - begun


def cancel_fleet(fleet: UUID) -> None:
    """Ask for the end of every batch run that a fleet run started and that is not over.

    What goes wrong with one run or with the server is logged and stops nothing else: somebody
    waits for a prompt, and the runs look for themselves whether their fleet is cancelled.
    """
    try:
        with asking_once() as client:
            wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[fleet_tag(fleet)]), state=_GOING)
            for run in list(_read(client, wanted, flow_filter=_BATCHES)):
                cancel(client, run)
    except Exception:
        logger.warning("the runs of this fleet could not be cancelled", exc_info=True)


def cancel(client: SyncPrefectClient, run: FlowRun) -> None:
    """Ask for the end of a run; what goes wrong is logged."""
    # What has not begun has nobody who would end it; a process that starts all the same looks.
    running = run.state is not None and run.state.is_running()
    wanted: State[Any] = Cancelling() if running else Cancelled(message="It was not begun.")
    try:
        client.set_flow_run_state(run.id, wanted)
        # A batch looks for itself too: the server lets one that has ended begin to end again.
        ended = [state for state in client.read_flow_run_states(run.id) if state.is_final()]
        now = client.read_flow_run(run.id).state
        if ended and now is not None and not now.is_final():
            client.set_flow_run_state(run.id, Cancelled(message=ended[-1].message), force=True)
    except Exception:
        logger.warning("%s could not be cancelled", run.name, exc_info=True)


def _read(client: SyncPrefectClient, wanted: FlowRunFilter, **filters: Any) -> Iterator[FlowRun]:
    for offset in itertools.count(0, _PAGE):
        page = client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=offset, **filters)
        yield from page
        if len(page) < _PAGE:
            return
