"""What the gate said of a store's current conversions: rows, and tables of them for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.errors import ConversionError

State = Literal["passed", "failed", "untried", "skipped"]
_WORDS: dict[State, str] = {
    "passed": "passed",
    "failed": "failed",
    "untried": "could not be tried",
    "skipped": "skipped",
}
#: Markdown would take these for markup, in a text that comes from errors.
_MARKUP = re.compile(r"([\\`*_\[\]<>|~])")
_LONGEST_WHY = 600


@dataclass(frozen=True, kw_only=True)
class CurrentRow:
    """What came of one current conversion.

    Attributes:
        source: Its source; its slug if the manifest can't be read.
        variant: Label of its variant.
        channel: Channel that points to it.
        number: Number of the channel that was tried.
        state: ``passed`` and ``failed`` are verdicts of the gate; ``untried``: it could not be run,
            which says nothing about the conversion; ``skipped``: it is not for this gate.
        key: Conversion key; None: the channel's entry can't be read.
        error: Type of the error; None: there is none.
        why: First failing probes, or the reason.
        withdrawn: Number that withdraws it now; None: it was not withdrawn by this run.
        seconds: Wall time.
    """

    source: str
    variant: str
    channel: str
    number: int
    state: State
    key: str | None = None
    error: str | None = None
    why: str = ""
    withdrawn: int | None = None
    seconds: float = 0.0

    @property
    def reason(self) -> str:
        """The error's type and its message, and what was done about it, in one line."""
        told = ": ".join(part for part in (self.error, self.why) if part)
        done = f"; withdrawn by number {self.withdrawn}" if self.withdrawn else ""
        return " ".join(told.split())[:_LONGEST_WHY] + done


class CurrentError(ConversionError):
    """Some current conversions failed the gate, or could not be tried.

    Attributes:
        rows: What came of every one.
    """

    def __init__(self, message: str, rows: Sequence[CurrentRow]) -> None:
        self.rows = tuple(rows)
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Carry the rows across the process boundary."""
        return CurrentError, (str(self), self.rows)


def find_unproved(rows: Sequence[CurrentRow]) -> list[CurrentRow]:
    """Return the rows that somebody has to look at."""
    return [row for row in rows if row.state in ("failed", "untried")]


def require_proved(rows: Sequence[CurrentRow]) -> Sequence[CurrentRow]:
    """Return the rows if every conversion passed that was to be tried.

    Raises:
        CurrentError: Some did not, or could not be tried.
    """
    left = find_unproved(rows)
    if not left:
        return rows
    named = "; ".join(f"{row.source} {row.variant} ({row.reason})" for row in left[:3])
    raise CurrentError(
        f"expected every current conversion to pass the gate, got {summarise_rows(rows)}: {named}. "
        "Convert again, or withdraw what is wrong (--withdraw, or `tracefleet withdraw`).",
        rows,
    )


def summarise_rows(rows: Sequence[CurrentRow]) -> str:
    """Return how many rows have which state."""
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {word}" for state, word in _WORDS.items())


def format_rows(rows: Sequence[CurrentRow]) -> str:
    """Return a table for a terminal, with a line that sums it up."""
    cells = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([*lines, summarise_rows(rows)])


def render_rows(rows: Sequence[CurrentRow]) -> str:
    """Return the same in markdown, for Prefect's UI."""
    heading = ("verdict", "source", "variant", "number", "seconds", "why")
    lines = [_line(heading), _line(["---"] * len(heading))]
    for row in rows:
        lines.append(_line(_MARKUP.sub(r"\\\1", cell) for cell in _cells(row)))
    return "\n".join([f"{summarise_rows(rows)}.", "", *lines])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: CurrentRow) -> tuple[str, ...]:
    where = f"{row.channel} #{row.number}"
    return (
        _WORDS[row.state],
        row.source,
        row.variant,
        where,
        f"{row.seconds:.1f} s",
        row.reason,
    )
