"""The Prefect flow of a batch: several small conversions, one after another, in one process.

What a process costs, its start, its imports and its fork server, is paid once for all of them. Each
conversion is a run of ``convert-checkpoint`` of its own all the same, with its name, logs,
artifact, retries and its own end: a batch never fails because a conversion does.

The batch run carries a tag for each conversion that it is to make. Between conversions it looks
which of them are left: a fleet takes conversions back by taking their tags away.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal
from uuid import UUID

from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed, Crashed
from pydantic import BaseModel, ConfigDict

from flows.convert_checkpoint import convert_checkpoint
from flows.engine import settings as engine
from flows.engine.cancelled import RunCancelledError, end_cancelled, stop_if_cancelled, under
from flows.engine.names import fleet_tag
from flows.engine.release import RELEASE
from tasks.request.conversion import ConversionRequest
from tracefleet.channel import channel_folder, read_current, slug_folder
from tracefleet.errors import ArtifactError
from tracefleet.store import open_store

_LIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
_POLL_SECONDS = 2.0


class BatchEntry(BaseModel):
    """One conversion of a batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Name of its run."""
    tag: str
    """Tag of every run of this conversion; the batch run carries it as long as it is to make it."""
    request: ConversionRequest
    """What to convert: commit and task as planned."""
    key: str | None = None
    """Conversion key as planned; none: only the worker knows its toolchain."""


@flow(name="convert-batch", version=RELEASE, validate_parameters=True)
def convert_batch(entries: list[BatchEntry], backend: str, fleet: UUID | None = None) -> State[Any]:
    """Convert several checkpoints one after another; each has a run of its own.

    Args:
        entries: What to convert; a fleet makes them.
        backend: The one that this deployment's workers have; set by the deployment.
        fleet: Flow run that asked for this batch: when it is cancelled, this one stops too.

    Returns:
        How many conversions ended how; what became of each is its own run's state.
    """
    engine.show_progress()
    if int(flow_run.run_count or 1) > 1:
        # Prefect would take runs of the first time, by their number, for those of other entries.
        return Crashed(message="It was interrupted. Its fleet hands out what is left in a new run.")
    own = UUID(str(flow_run.id))
    above = [own] if fleet is None else [own, fleet]
    # Heartbeats tell of a lost host, and this run's do; a conversion's would cost it a second.
    with under(*above), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            with tags(*([] if fleet is None else [fleet_tag(fleet)])):
                ends = Counter(_convert_all(entries, backend, own))
            # As in a fleet: "completed" would be refused.
            stop_if_cancelled(always=True)
        except RunCancelledError as error:
            return end_cancelled(error)
    counts = ", ".join(f"{number} {end}" for end, number in ends.items())
    return Completed(message=f"{len(entries)} conversions: {counts}")


def _convert_all(entries: list[BatchEntry], backend: str, own: UUID) -> Iterator[str]:
    """Convert one after another, last what another run converts now; yield how each ended."""
    elsewhere: list[BatchEntry] = []
    for entry in entries:
        # Always: what the conversion before has seen a moment ago may be for the batch too.
        stop_if_cancelled(always=True)
        place = _place(entry, own)
        if place == "elsewhere":
            elsewhere.append(entry)
        else:
            yield _convert(entry, backend) if place == "here" else "taken back"
    for entry in elsewhere:
        while (place := _place(entry, own)) == "elsewhere":
            time.sleep(_POLL_SECONDS)
            stop_if_cancelled()
        yield _convert(entry, backend) if place == "here" else "taken back"


def _place(entry: BatchEntry, own: UUID) -> Literal["here", "elsewhere", "nowhere"]:
    """Return where a conversion is to be made, as the runs say that carry its tag and are not over.

    Where a conversion runs whose batch is over, its host was lost: nobody makes it.
    """
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[entry.tag]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_LIVE)),
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=wanted)
    # Runs of conversions carry the tag too, but belong to no deployment.
    batches = {run.id for run in runs if run.deployment_id is not None}
    if own not in batches:
        return "nowhere"
    runs_now = len(runs) > len(batches)
    return "elsewhere" if runs_now and len(batches) > 1 else "here"


def _convert(entry: BatchEntry, backend: str) -> str:
    """Convert one entry unless it is published by now; return how that ended."""
    if is_current(entry.request, entry.key):
        return "published before"
    named = convert_checkpoint.with_options(flow_run_name=lambda: entry.name)
    with tags(entry.tag):
        state: Any = named(entry.request, backend=backend, return_state=True)
    return str(state.name).lower()


def is_current(request: ConversionRequest, key: str | None) -> bool:
    """Whether the channel points to the very conversion that was planned, as far as can be read."""
    if key is None:
        return False
    folders = [channel_folder(request.source, request.variant, request.channel)]
    if request.publish_as is not None:
        folders.append(slug_folder(request.publish_as, request.variant.label, request.channel))
    try:
        store = open_store(request.store)
        newest = [read_current(store, folder) for folder in folders]
    except ArtifactError:
        return False  # the conversion itself says what is wrong with the store
    return all(found is not None and found[1].key == key for found in newest)
