"""Facts of a fleet run: plain data, gathered by ``flows``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tasks.errors import ConversionError

#: What came of an entry: ``fresh`` (was published already), ``published`` (now), ``moved`` (was
#: published, but its channel pointed to another conversion and was moved back), ``failed``
#: (refused, crashed, or invalid before it began), ``cancelled`` (stopped before its end),
#: ``refused`` (the very same was refused before, and was not tried).
Ending = Literal["fresh", "published", "moved", "failed", "cancelled", "refused"]


@dataclass(frozen=True, kw_only=True)
class FleetRow:
    """One entry of a fleet run.

    Attributes:
        name: name of the entry in the fleet file.
        source: address of its checkpoint; empty: the entry names none.
        commit: what the source resolved to; None: it could not be resolved.
        variant: label such as ``fill-mask.jit.float32.b1``; the task is ``?`` where unknown,
            and all of it is empty of an entry that is no request.
        lengths: standard lengths.
        ending: what came of the entry.
        why: what made the entry stale or missing, or the failure's reason, in one line.
        error: type of the error, such as ``NumericsMismatchError``; None: it did not fail.
        next_step: what a person should do about the failure.
        since: when it was refused first, in ISO 8601; None: not before this run.
        worst_error: largest relative error over the lengths; None: not measured in this run.
        tolerance: relative tolerance of its gate.
        seconds: wall time of the conversion.
        peak_bytes: largest resident size among its steps.
        bundle_bytes: size of the published bundle, which holds the weights once for all lengths.
        conversion_url: folder of the conversion in the store.
        report_url: page of the conversion.
        run_url: page of the flow run in Prefect's UI.
    """

    name: str
    source: str
    commit: str | None
    variant: str
    lengths: tuple[int, ...]
    ending: Ending
    why: str = ""
    error: str | None = None
    next_step: str = ""
    since: str | None = None
    worst_error: float | None = None
    tolerance: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    bundle_bytes: int | None = None
    conversion_url: str | None = None
    report_url: str | None = None
    run_url: str | None = None

    @property
    def bytes_saved(self) -> int:
        """Bytes that one file for each length would take beyond the bundle."""
        return (self.bundle_bytes or 0) * (len(self.lengths) - 1)


@dataclass(frozen=True, kw_only=True)
class FleetFacts:
    """A whole fleet run.

    Attributes:
        name: name of the fleet, such as its file's name.
        run: name of the flow run.
        started: when the run began.
        finished: when its last entry ended.
        rows: one for each entry, in the fleet file's order.
        report_url: address of the report, once it is written.
    """

    name: str
    run: str
    started: datetime
    finished: datetime
    rows: tuple[FleetRow, ...]
    report_url: str | None = None

    def ended(self, ending: Ending) -> tuple[FleetRow, ...]:
        """Return the rows with one ending."""
        return tuple(row for row in self.rows if row.ending == ending)


class FleetError(ConversionError):
    """Some entries of a fleet are not current; every other one is.

    Attributes:
        facts: what came of every entry.
    """

    def __init__(self, message: str, facts: FleetFacts) -> None:
        self.facts = facts
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Carry the facts across the process boundary."""
        return FleetError, (str(self), self.facts)
