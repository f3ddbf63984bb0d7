"""Print for people and for programs: a table page by page, sizes, one JSON document.

Used by the commands of ``tracefleet``.
"""

from __future__ import annotations

import json
import sys
from typing import Any


class Table:
    """Rows in columns, printed page by page; a later page can only widen the columns."""

    def __init__(self) -> None:
        self._rows: list[list[str]] = []
        self._widths: list[int] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add one row, after a heading if it is the first."""
        shown = {
            **row,
            "lengths": ",".join(map(str, row["lengths"])),
            "size": format_size(row["size"]),
            "key": row["key"][:12],
        }
        # A line has no room for the reason, and a withdrawn verdict holds no longer.
        if shown.pop("withdrawn") is not None:
            shown["verdict"] = "withdrawn"
        # An address is one column: the name, or the source itself.
        named = shown.pop("name")
        if named is not None:
            shown["source"] = f"{named} = {shown['source']}"
        if not self._widths:
            self._rows.append(list(shown))
            self._widths = [0] * len(shown)
        self._rows.append([str(cell) for cell in shown.values()])

    def flush(self) -> None:
        """Print the rows that were added since the last flush."""
        for row in self._rows:
            self._widths = [max(w, len(cell)) for w, cell in zip(self._widths, row, strict=True)]
        for row in self._rows:
            cells = [cell.ljust(w) for w, cell in zip(self._widths, row, strict=True)]
            print("  ".join(cells).rstrip())
        self._rows.clear()
        sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 thread, 2 threads."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_size(size: int) -> str:
    """Return a number of bytes in kB or MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
