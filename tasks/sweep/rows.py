"""What a sweep found, one row for each case, in a file that a later run goes on with."""

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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case.

    Attributes:
        type: the model type.
        task: Hugging Face task name.
        status: ``published`` (and right by the independent comparison), ``refused`` with a typed
            error, ``crashed`` (anything else), ``wrong`` (published, and the independent
            comparison differs), ``untestable`` (eager can't run it from ids and mask).
        error: type of the error; empty where there was none.
        reason: its message, or what differs.
        seconds: wall time of the case.
        worst_gate: the gate's worst relative error; None if there was no gate.
        worst_check: the independent comparison's.
        same_program: one program serves all lengths; False: a graph for each.
        other_lengths: what a graph does at other lengths, as in the manifest.
        other_batches: the same for other batches.
        vacuous: names of probes that can't move this model.
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

    @property
    def name(self) -> str:
        """``type/task``."""
        return f"{self.type}/{self.task}"


@dataclass(kw_only=True)
class Sweep:
    """Rows of one set-up, kept in a file after each case.

    Attributes:
        path: the JSON file.
        setup: toolchain, recipe, dtype, lengths: rows of another set-up are not mixed in.
        rows: by name.
    """

    path: Path
    setup: dict[str, Any]
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, setup: dict[str, Any]) -> Sweep:
        """Open a file, or begin one.

        Raises:
            RequestError: it is no sweep, or one of another set-up.
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
        """Keep a row; the file is whole at every moment."""
        self.rows[row.name] = row
        ordered = [dataclasses.asdict(self.rows[name]) for name in sorted(self.rows)]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"setup": self.setup, "rows": ordered}, indent=1) + "\n")
        temporary.replace(self.path)


def read_sweep(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a sweep's set-up and rows.

    Raises:
        RequestError: it is no sweep.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**{**row, "vacuous": tuple(row["vacuous"])}) for row in raw["rows"]]
        return dict(raw["setup"]), rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path}: expected a file that `python -m flows sweep` wrote, got "
            f"{type(error).__name__}: {error}. Name another file."
        ) from error


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many rows there are of each status."""
    counted = dict.fromkeys((PUBLISHED, REFUSED, CRASHED, WRONG, UNTESTABLE), 0)
    for row in rows:
        counted[row.status] += 1
    return counted


def share_published(rows: Iterable[Row]) -> float:
    """Return the share of cases that are published, of those that eager runs."""
    counted = counts(rows)
    ran = sum(counted.values()) - counted[UNTESTABLE]
    return counted[PUBLISHED] / ran if ran else 0.0
