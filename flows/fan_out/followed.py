"""A batch run that a fleet waits for, and the rows of what it has converted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prefect.client.schemas.objects import FlowRun

from flows.convert_batch import is_current
from flows.engine.names import TAG, run_url
from flows.fan_out.assignment import Assignment
from flows.fan_out.rows import (
    make_cancelled_row,
    make_failed_row,
    make_joined_row,
    make_published_row,
    split_message,
)
from tasks.report.fleet.facts import FleetRow
from tracefleet.errors import ArtifactError, StoreUnavailableError


@dataclass
class Followed:
    """A batch run that this fleet waits for, its own or another fleet's.

    Attributes:
        run: The run as it was last seen.
        left: What this fleet wants of it and what is not over, by tag and in its order.
        is_ours: Whether this fleet started it, so that it may take conversions back.
        alone_since: When its pool was first seen without a worker.
    """

    run: FlowRun
    left: dict[str, Assignment]
    is_ours: bool
    alone_since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the batch run has its last state."""
        return self.run.state is not None and self.run.state.is_final()

    def settle(self, conversions: Iterable[FlowRun]) -> Iterator[FleetRow]:
        """Yield the rows of conversions that have a verdict, and wait for them no more."""
        for run in conversions:
            one = self.left.get(tag_of(run))
            row = None if one is None else self._row(one, run)
            if one is not None and row is not None:
                yield row
                del self.left[one.tag]

    def _row(self, one: Assignment, run: FlowRun) -> FleetRow | None:
        """Return the row of a conversion; None: its run was lost, so there is no verdict."""
        state, url = run.state, run_url(run.id)
        assert state is not None
        if state.is_completed():
            return _make_row(one, run)
        if state.is_failed():
            error, message = split_message(str(state.message or state.name))
            return make_failed_row(one, error, message, run=str(run.id), url=url)
        if state.is_cancelled() and self.is_ours:
            return make_cancelled_row(one, url=url)
        return None

    def row_of_unconverted(self, one: Assignment, *, begun: bool) -> FleetRow | None:
        """Return the row of what the batch run ended without; None: it was lost."""
        state = self.run.state
        assert state is not None
        if state.is_cancelled() and self.is_ours:
            return make_cancelled_row(one, url=run_url(self.run.id))
        if state.is_completed() and not begun and is_current(one.pinned, one.planned.key):
            return make_joined_row(one)
        return None


def tag_of(run: FlowRun) -> str:
    """Return the tag of the conversion that a run makes."""
    return next((tag for tag in run.tags if tag.startswith(TAG)), "")


def _make_row(one: Assignment, run: FlowRun) -> FleetRow:
    url = run_url(run.id)
    try:
        return make_published_row(one, run=str(run.id), url=url)
    except StoreUnavailableError:
        raise  # it is looked for again
    except ArtifactError as error:
        return make_failed_row(one, type(error).__name__, str(error), run=str(run.id), url=url)
