"""``tracefleet sweep``: the whole conversion over every architecture, one row for each case."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.sweep.rows import Row

#: The sweep's own logger, and those of its conversions.
_LOGGERS = ("tasks.sweep", "tasks", "flows", "tracefleet")

_DESCRIPTION = """\
Put every architecture of the installed transformers through the whole conversion.

Tiny random checkpoints stand in for real ones: architectures differ in their code, not in their
weights. Each case is built, converted and compared once more by an independent program, every step
in a child process of its own, so that no case can hurt another. A sweep that was stopped goes on
where it was.
"""
_EPILOG = """\
exit codes: 0 every case has an answer; 1 one crashed or is wrong; 2 wrong usage; 130 interrupted.

examples:
  tracefleet sweep --tiny --out sweep.json --table docs/architectures.md
  tracefleet sweep --tiny --out sweep.json --types bert,t5 --again crashed
"""


def add_command(commands: Any) -> None:
    """Add ``sweep`` to the command line."""
    parser = commands.add_parser(
        "sweep",
        help="try every architecture of the installed transformers",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--tiny", action="store_true", required=True, help="build tiny random checkpoints")
    add("--out", type=Path, required=True, help="JSON file of rows; a sweep that stopped goes on")
    add("--types", help="model types, such as bert,t5 (default: all)")
    add("--tasks", help="tasks, such as fill-mask,question-answering (default: all)")
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", default="float32", choices=dtypes, help="of the artifacts (default: float32)")
    add("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    add("--again", help="statuses to try again, such as crashed,refused (default: none)")
    add("--table", type=Path, help="write the table of all rows as Markdown (default: no)")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(command=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from flows.convert import convert
    from tasks.sweep.rows import CRASHED, WRONG
    from tasks.sweep.run import SweepOptions, run_sweep
    from tasks.sweep.table import make_support_page

    types = options.types.split(",") if options.types else None
    tasks = options.tasks.split(",") if options.tasks else None
    again = options.again.split(",") if options.again else ()
    with _conversions_silent():
        sweep = run_sweep(
            options.out,
            types=types,
            tasks=tasks,
            options=SweepOptions(dtype=options.dtype),
            jobs=options.jobs,
            again=again,
            convert=convert,
        )
    rows = list(sweep.rows.values())
    print(summarise(rows))
    if options.table:
        options.table.write_text(make_support_page(sweep.setup, rows))
    return int(any(row.status in (CRASHED, WRONG) for row in rows))


@contextmanager
def _conversions_silent() -> Iterator[None]:
    """A conversion's own progress would drown the sweep's."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [one.level for one in loggers]
    own, *conversions = loggers
    own.setLevel(logging.getLogger("tasks").level)
    for one in conversions:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def summarise(rows: Iterable[Row]) -> str:
    """Return the totals for a terminal."""
    from tasks.sweep.rows import UNTESTABLE, compute_share, count_statuses

    rows = list(rows)
    counted = count_statuses(rows)
    types = {row.type for row in rows if row.status != UNTESTABLE}
    shown = ", ".join(f"{number} {status}" for status, number in counted.items() if number)
    return (
        f"{len(rows)} cases: {shown or 'none'}\n"
        f"{compute_share(rows):.1%} of what eager runs is published ({len(types)} model types)"
    )
