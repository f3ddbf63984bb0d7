"""Have the pools convert a fleet's entries: batch runs are started, followed and made up for.

One loop looks every few seconds, in a handful of requests however many batch runs there are: which
conversions have ended, which batch runs are over, and whether a place is free that could take work
over from another. What was lost with its process or host is shared out again, five times in all: a
retry of Prefect's begins in the process of its run, which is what was lost, and would begin with
the same company. The server holds the new runs back for a while, longer each time. What failed by
itself is not tried again. A server that does not answer is asked again the next time.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun

from flows.engine.cancelled import stop_if_cancelled
from flows.engine.clock import now
from flows.engine.names import fleet_tag
from flows.fan_out import batch_runs
from flows.fan_out.assignment import Assignment
from flows.fan_out.followed import Followed, tag_of
from flows.fan_out.places import Places, has_no_worker, read_places
from flows.fan_out.rows import make_failed_row
from flows.fan_out.sharing import half_of, share
from tasks.errors import BackendUnavailableError
from tasks.report.fleet.facts import FleetRow
from tracefleet.errors import StoreUnavailableError

logger = logging.getLogger(__name__)

_TRIES = 5
#: How long the server holds back what was lost for the first time; twice as long each time.
_HOLD = timedelta(seconds=10)
#: Soon at first, for what is quick or fails at once.
_POLLS = (2.0,) * 15
_POLL_SECONDS = 5.0
#: A pool whose workers are all gone for longer is taken for one that has none.
_NO_WORKER_SECONDS = 600.0
#: How far clocks may differ: a run's end is the time of its own host.
_CLOCKS = timedelta(minutes=2)


class RunLostError(Exception):
    """A run ended without a verdict: its worker died, or somebody cancelled it for all."""


@dataclass
class Pools:
    """What a fleet has in the pools.

    Attributes:
        fleet: identifier of the fleet's flow run.
        places: places of one worker of a process pool.
        in_flight: batch runs at a time.
        waiting: what is to be shared out.
        ready: batches that wait for one of those in flight to end.
        followed: batch runs under way, by their identifier.
        losses: how often an entry was lost, by its tag.
        looked: when conversions that have ended were read last.
    """

    fleet: UUID
    places: int
    in_flight: int
    waiting: list[list[Assignment]]
    ready: list[list[Assignment]] = field(default_factory=list)
    followed: dict[UUID, Followed] = field(default_factory=dict)
    losses: Counter[str] = field(default_factory=Counter)
    looked: datetime | None = None

    def look(self, client: SyncPrefectClient) -> Iterator[FleetRow]:
        """Do what is to be done now; yield the rows of conversions that have ended."""
        yield from self._read_ends(client)
        # What waits for a place goes first: taking over starts a process more.
        if not self.ready:
            self._take_over(client)
        while self.waiting:
            yield from self._share_out(client, self.waiting[0])
            del self.waiting[0]
        while self.ready and len(self.followed) < self.in_flight:
            self._start(client, self.ready[0])
            del self.ready[0]

    def _start(self, client: SyncPrefectClient, batch: list[Assignment]) -> None:
        # Jitter: what one lost host held must not start again all at once.
        losses = max(self.losses[one.tag] for one in batch)
        held = _HOLD * 2 ** (losses - 1) * random.uniform(0.5, 1.0)  # noqa: S311
        start = now() + held if losses else now()
        self._follow(batch_runs.start(client, batch, self.fleet, not_before=start), batch)

    def _share_out(self, client: SyncPrefectClient, work: list[Assignment]) -> Iterator[FleetRow]:
        """Join what other runs are to make already, and share the rest over the free places."""
        held = {tag: run for run in batch_runs.live_batches(client) for tag in run.tags}
        by_backend: dict[str, list[Assignment]] = {}
        for one in work:
            if one.tag in held:
                self._follow(held[one.tag], [one])
            else:
                by_backend.setdefault(one.request.backend, []).append(one)
        for group in by_backend.values():
            try:
                places = self._places(client, group[0])
            except BackendUnavailableError as error:
                yield from [make_failed_row(one, type(error).__name__, str(error)) for one in group]
            else:
                self.ready += share(group, places.free if places.free > 0 else places.all)
            work[:] = [one for one in work if one not in group]

    def _places(self, client: SyncPrefectClient, one: Assignment) -> Places:
        name = batch_runs.deployment(one)
        return read_places(client, name, each=self.places, most=self.in_flight)

    def _follow(self, run: FlowRun, work: list[Assignment]) -> None:
        is_ours = fleet_tag(self.fleet) in run.tags
        followed = self.followed.setdefault(run.id, Followed(run=run, left={}, is_ours=is_ours))
        followed.left |= {one.tag: one for one in work}
        self.looked = None  # what another fleet's run has ended before counts too

    def _read_ends(self, client: SyncPrefectClient) -> Iterator[FleetRow]:
        """Read what has ended since the last look."""
        looking, since = now(), self.looked and self.looked - _CLOCKS
        if not self.followed:
            return
        runs = batch_runs.runs_by_id(client, self.followed)
        ended = batch_runs.conversions(client, self.followed, over=True, since=since)
        for followed in list(self.followed.values()):
            followed.run = runs[followed.run.id]
            yield from followed.settle(ended)
            if followed.is_over:
                yield from self._close(client, followed)
            elif self._has_no_worker(client, followed):
                yield from self._give_up(client, followed)
        self.looked = looking

    def _close(self, client: SyncPrefectClient, followed: Followed) -> Iterator[FleetRow]:
        """Settle what a batch run that is over did not convert."""
        batch_runs.end_conversions(client, followed.run)
        # Read again: some had ended by themselves since the last look.
        begun = batch_runs.conversions(client, [followed.run.id])
        yield from followed.settle(begun)
        suspects = {tag_of(run) for run in begun}
        again: list[Assignment] = []
        for one in followed.left.values():
            row = followed.row_of_unconverted(one, begun=one.tag in suspects)
            if row is None and one.tag in followed.run.tags:  # else another fleet took it back
                row = self._count_loss(one, followed.run)
            if row is None:
                again.append(one)
            else:
                yield row
        del self.followed[followed.run.id]
        self._try_again(again, suspects)

    def _count_loss(self, one: Assignment, batch: FlowRun) -> FleetRow | None:
        """Return the row of what was lost too often; None: it is to be tried again."""
        self.losses[one.tag] += 1
        if self.losses[one.tag] < _TRIES or batch.state is None:
            return None
        message = f"{batch.name}: {batch.state.name}: {batch.state.message or 'no message'}"
        return make_failed_row(one, RunLostError.__name__, message)

    def _try_again(self, work: list[Assignment], suspects: set[str]) -> None:
        """Let what was under way when a run was lost go alone: it may have been the cause."""
        together = [one for one in work if one.tag not in suspects]
        alone = [[one] for one in work if one.tag in suspects]
        self.waiting += [group for group in (together, *alone) if group]

    def _has_no_worker(self, client: SyncPrefectClient, followed: Followed) -> bool:
        if not has_no_worker(client, followed.run):
            followed.alone_since = None
            return False
        followed.alone_since = followed.alone_since or time.monotonic()
        return time.monotonic() - followed.alone_since > _NO_WORKER_SECONDS

    def _give_up(self, client: SyncPrefectClient, followed: Followed) -> Iterator[FleetRow]:
        batch_runs.cancel(client, followed.run)
        pool = followed.run.work_pool_name
        for one in followed.left.values():
            yield make_failed_row(
                one,
                BackendUnavailableError.__name__,
                f"pool {pool}: expected a worker, got none for {_NO_WORKER_SECONDS / 60:g} "
                f"minutes. Start one: `prefect worker start --pool {pool}`.",
            )
        del self.followed[followed.run.id]

    def _take_over(self, client: SyncPrefectClient) -> None:
        """Let a place that is free take half of what another has not begun."""
        longest: dict[str, Followed] = {}
        for followed in self.followed.values():
            if followed.is_ours and followed.left:
                backend = next(iter(followed.left.values())).request.backend
                other = longest.get(backend)
                if other is None or len(other.left) < len(followed.left):
                    longest[backend] = followed
        for followed in longest.values():
            if half_of(list(followed.left)):
                self._take_half(client, followed)

    def _take_half(self, client: SyncPrefectClient, followed: Followed) -> None:
        # Without a free place the half would only wait somewhere else.
        if self._places(client, next(iter(followed.left.values()))).free < 1:
            return
        begun = {tag_of(run) for run in batch_runs.conversions(client, [followed.run.id])}
        half = half_of([tag for tag in followed.left if tag not in begun])
        if half:
            taken = batch_runs.take_back(client, followed.run, set(half))
            self.waiting.append([followed.left.pop(tag) for tag in half if tag in taken])


def run_in_pools(
    work: list[Assignment], *, fleet: UUID, places: int, in_flight: int
) -> Iterator[FleetRow]:
    """Yield the row of each conversion as it ends.

    Args:
        work: what is to be converted.
        fleet: identifier of the fleet's flow run.
        places: places of one worker of a process pool.
        in_flight: batch runs at a time.

    Raises:
        RunCancelledError: the fleet is being cancelled; its runs go on.
    """
    pools = Pools(fleet=fleet, places=places, in_flight=in_flight, waiting=[list(work)])
    for pause in itertools.chain(_POLLS, itertools.repeat(_POLL_SECONDS)):
        stop_if_cancelled()
        try:
            with get_client(sync_client=True) as client:
                yield from pools.look(client)
        except (httpx.HTTPError, StoreUnavailableError) as error:
            # A refusal would be the same the next time.
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise
            logger.warning("no answer, asked again in %g s: %s", pause, error)
        if not (pools.waiting or pools.ready or pools.followed):
            return
        time.sleep(pause)
