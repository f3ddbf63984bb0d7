"""How many batch runs the pool of a backend can have under way, now and in all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import (
    TERMINAL_STATES,
    FlowRun,
    WorkerStatus,
    WorkPoolStatus,
)
from prefect.exceptions import ObjectNotFound

from flows.engine.clock import now
from tasks.errors import BackendUnavailableError

#: A run that is scheduled for later takes no place now.
_SOON = timedelta(minutes=1)
_LIVE = FlowRunFilterState(type=FlowRunFilterStateType(not_any_=list(TERMINAL_STATES)))


@dataclass(frozen=True, kw_only=True)
class Places:
    """How many batch runs a pool can have under way.

    Attributes:
        all: in all.
        free: how many more at the moment; not positive where runs wait for a place.
    """

    all: int
    free: int


def read_places(client: SyncPrefectClient, name: str, *, each: int, most: int) -> Places:
    """Return the places of the pool of a deployment.

    Args:
        client: of the server.
        name: of the deployment.
        each: places of one worker of a process pool, as its ``--limit``.
        most: places where neither the pool nor its workers have a limit, and at most anyway.

    Raises:
        BackendUnavailableError: there is no such deployment.
    """
    try:
        pool = client.read_work_pool(str(client.read_deployment_by_name(name).work_pool_name))
    except ObjectNotFound as error:
        raise make_deployment_error(name) from error
    found = most
    if pool.concurrency_limit is not None:
        found = pool.concurrency_limit
    elif pool.type == "process":
        workers = client.read_workers_for_work_pool(pool.name)
        found = each * sum(worker.status == WorkerStatus.ONLINE for worker in workers)
    found = max(1, min(found, most))
    soon = FlowRunFilterExpectedStartTime.model_validate({"before_": now() + _SOON})
    taken = client.count_flow_runs(
        flow_run_filter=FlowRunFilter(state=_LIVE, expected_start_time=soon),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name])),
    )
    return Places(all=found, free=found - taken)


def has_no_worker(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a run waits for a worker in a pool that has none."""
    if run.state is None or not run.state.is_scheduled() or run.work_pool_name is None:
        return False
    return client.read_work_pool(run.work_pool_name).status == WorkPoolStatus.NOT_READY


def make_deployment_error(name: str) -> BackendUnavailableError:
    """Return the error that says that a deployment is not there."""
    return BackendUnavailableError(
        f"deployment {name}: expected it on the Prefect server, got none. Deploy it: `prefect "
        "--no-prompt deploy --all --prefect-file infra/prefect.yaml`."
    )
