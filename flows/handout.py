"""Hand one conversion of a fleet to the deployment of its backend, and wait for its end.

A run is identified by its conversion key: whoever hands out a conversion that is under way joins
its run. Waiting for a lost run or a server that restarts is Prefect's business: the task over
``hand_out`` (``flows.convert_fleet``) retries for `RunLostError` and for network errors, and each
try joins or replaces the run.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from dataclasses import dataclass
from typing import Any, cast

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.deployments import run_deployment

from flows.naming import TAG, run_name
from flows.request import ConversionRequest
from tasks.plan import PlanRow
from tracefleet.channel import channel_folder, current
from tracefleet.manifest import canonical_json
from tracefleet.store import open_store

FLOW = "convert-checkpoint"
#: The queue that fleets hand out to in every pool; ad hoc runs come before it (infra/pools.yaml).
QUEUE = "fleet"
_SHORT = 16
#: Soon at first, for what is quick or fails at once; then so that hundreds in flight are bearable
#: for a server that answers about a hundred requests a second.
_POLLS = (3.0, 5.0, 8.0)
_POLL_SECONDS = 15.0


class RunLostError(Exception):
    """A run ended without a verdict: its worker died, or somebody cancelled it for all."""


class StoppedError(Exception):
    """This fleet run is being stopped."""


@dataclass(frozen=True, kw_only=True)
class Handout:
    """One entry of a fleet that has work to do.

    Attributes:
        request: as the fleet file has it.
        planned: what the plan found.
        fleet: identifier of the fleet's flow run.
    """

    request: ConversionRequest
    planned: PlanRow
    fleet: str

    @property
    def name(self) -> str:
        """Name of the entry."""
        return self.planned.wanted.name

    @property
    def pinned(self) -> ConversionRequest:
        """The request with the very commit and task that were planned, and an absolute store.

        A worker's working directory is another one.
        """
        found: dict[str, str | None] = {
            "task": self.planned.task,
            "store": open_store(self.request.store).url,
        }
        if self.request.source.startswith("hf://"):
            source, _, _ = self.request.source.partition("@")
            found |= {"source": source, "revision": self.planned.commit}
        return self.request.model_copy(update=found)

    @property
    def identity(self) -> str:
        """The conversion key, or what stands for it where only a worker knows its toolchain."""
        if self.planned.key is not None:
            return self.planned.key
        limits = {"timeout_seconds", "memory_limit_mb", "threads"}
        asked = self.pinned.model_dump(mode="json", exclude=limits)
        return hashlib.sha256(canonical_json({**asked, "commit": self.planned.commit})).hexdigest()

    @property
    def tag(self) -> str:
        """Tag of every run of this conversion."""
        return f"{TAG}{self.identity[:_SHORT]}"

    @property
    def fleet_tag(self) -> str:
        """Tag of the runs that this fleet run started."""
        return _fleet_tag(self.fleet)


def hand_out(handout: Handout, stopping: threading.Event) -> FlowRun | None:
    """Start or join the run of a conversion; return it when it is over.

    Returns:
        The run; None if the conversion turned out to be current already: another fleet's run ended
        since this one planned.

    Raises:
        RunLostError: it crashed, or was cancelled by somebody else.
        StoppedError: ``stopping`` was set; the run goes on.
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
    """Ask for the end of every run that a fleet run started and that is not over."""
    from prefect.states import Cancelling

    with get_client(sync_client=True) as client:
        for run in _runs(client, _fleet_tag(fleet), over=False):
            client.set_flow_run_state(run.id, Cancelling())


def _fleet_tag(fleet: str) -> str:
    # The last part of a flow run's identifier is drawn, the first is the time.
    return f"fleet:{fleet.rpartition('-')[2]}"


def _started(client: SyncPrefectClient, handout: Handout) -> FlowRun | None:
    """Return a run of the conversion that is not over: a new one, or one to join.

    The key of the nth try is the same for all that hand out the conversion at the same time. A run
    that ended since the tries were counted is found by its key, and what it did in the store.
    """
    for number in itertools.count(len(_runs(client, handout.tag, over=True))):
        if _is_current(handout):
            return None
        run: Any = run_deployment(
            f"{FLOW}/{handout.request.backend}",
            parameters={"request": handout.pinned.model_dump(mode="json")},
            flow_run_name=run_name(handout.pinned, handout.planned.commit),
            tags=[handout.tag, handout.fleet_tag],
            idempotency_key=f"{handout.identity}-{number}",
            work_queue_name=QUEUE,
            timeout=0,
        )
        if run.state is None or not run.state.is_final():
            return cast("FlowRun", run)
    raise AssertionError("unreachable")


def _is_current(handout: Handout) -> bool:
    """Whether the channel points to the very conversion that was planned."""
    request = handout.pinned
    folder = channel_folder(request.source, request.variant, request.channel)
    newest = current(open_store(request.store), folder)
    return newest is not None and newest[1].key == handout.planned.key


def _finished(client: SyncPrefectClient, run: FlowRun, stopping: threading.Event) -> FlowRun:
    """Wait; ``run_deployment`` waits too, but can't be stopped in a thread."""
    pauses = itertools.chain(_POLLS, itertools.repeat(_POLL_SECONDS))
    while run.state is None or not run.state.is_final():
        if stopping.wait(next(pauses)):
            raise StoppedError(f"{run.name}: left under way")
        run = client.read_flow_run(run.id)
    return run


def _runs(client: SyncPrefectClient, tag: str, *, over: bool) -> list[FlowRun]:
    types = list(TERMINAL_STATES)
    kind = FlowRunFilterStateType(any_=types) if over else FlowRunFilterStateType(not_any_=types)
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[tag]), state=FlowRunFilterState(type=kind)
        )
    )
