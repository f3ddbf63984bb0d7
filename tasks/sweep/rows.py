"""Results of a sweep, one row for each case, in a file that a later run continues."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import RequestError

PUBLISHED, REFUSED, CRASHED, WRONG, UNTESTABLE = (
    "published",
    "refused",
    "crashed",
    "wrong",
    "untestable",
)


#: ``Row.generation`` of a bundle whose ``generate`` passed its gate.
PROVED = "proved"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result of one case.

    Attributes:
        type: Model type.
        task: Hugging Face task name.
        status: ``published`` (and right by the independent comparison), ``refused`` with a typed
            error, ``crashed`` (any other error), ``wrong`` (published, and the independent
            comparison differs), ``untestable`` (eager can't run it from ids and mask).
        error: Type of the error; empty: there was none.
        reason: Message of the error, or the differences.
        seconds: Wall time of the case.
        worst_gate: Largest relative error of the gate; None: it did not run.
        worst_check: Largest relative error of the independent comparison.
        same_program: Whether one program serves all lengths.
        other_lengths: Behaviour of a graph at other lengths, as in the manifest.
        other_batches: Behaviour at other batches, as in the manifest.
        vacuous: Names of probes that can't change this model's outputs.
        left_padding: What padding on both sides does, as in the manifest.
        without_samples: Why there are no golden samples; empty: there are some, or the gate did not
            run.
        generation: What is known of ``generate``: ``PROVED``, or why there is none; empty: the task
            has none.
    """

    type: str
    task: str
    status: str
    error: str = ""
    reason: str = ""
    seconds: float = 0.0
    worst_gate: float | None = None
    worst_check: float | None = None
    same_program: bool = True
    other_lengths: str = ""
    other_batches: str = ""
    vacuous: tuple[str, ...] = ()
    left_padding: str = ""
    without_samples: str = ""
    generation: str = ""

    @property
    def name(self) -> str:
        """``type/task``."""
        return f"{self.type}/{self.task}"


@dataclass(kw_only=True)
class Sweep:
    """Rows of one set-up, written to a file after each case.

    Attributes:
        path: JSON file.
        setup: Toolchain, recipe, dtype, lengths: rows of different set-ups are not mixed.
        rows: Rows by name.
    """

    path: Path
    setup: dict[str, Any]
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, setup: dict[str, Any]) -> Sweep:
        """Read a sweep's file, or begin a new sweep.

        Raises:
            RequestError: the file is no sweep, or one of another set-up.
        """
        if not path.exists():
            return cls(path=path, setup=setup)
        kept, rows = read_sweep(path)
        if kept != json.loads(json.dumps(setup)):
            raise RequestError(
                f"{path}: expected a sweep of {setup}, got one of {kept}. Name another --out, or "
                "remove the file to begin again."
            )
        return cls(path=path, setup=setup, rows={row.name: row for row in rows})

    def add(self, row: Row) -> None:
        """Add a row and write the file."""
        self.rows[row.name] = row
        ordered = [dataclasses.asdict(self.rows[name]) for name in sorted(self.rows)]
        # Renamed into place: a sweep that is killed while it writes loses no rows.
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"setup": self.setup, "rows": ordered}, indent=1) + "\n")
        temporary.replace(self.path)


def read_sweep(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a sweep's set-up and rows.

    Raises:
        RequestError: the file is no sweep.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**{**row, "vacuous": tuple(row["vacuous"])}) for row in raw["rows"]]
        return dict(raw["setup"]), rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path}: expected a file that `tracefleet sweep` wrote, got "
            f"{type(error).__name__}: {error}. Name another file."
        ) from error


def count_statuses(rows: Iterable[Row]) -> dict[str, int]:
    """Return the number of rows of each status."""
    counted = dict.fromkeys((PUBLISHED, REFUSED, CRASHED, WRONG, UNTESTABLE), 0)
    for row in rows:
        counted[row.status] += 1
    return counted


def compute_share(rows: Iterable[Row]) -> float:
    """Return the share of published cases among those that eager runs."""
    counted = count_statuses(rows)
    ran = sum(counted.values()) - counted[UNTESTABLE]
    return counted[PUBLISHED] / ran if ran else 0.0
