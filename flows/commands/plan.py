"""``tracefleet plan``: the table of what a fleet's next run would do, and why."""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flows.commands.arguments import add_output

if TYPE_CHECKING:
    from tasks.plan.fleet import PlanRow, State

EXIT_INVALID = 1
#: So many rows are shown whole; of more, the fresh ones are only counted.
_SHORT = 30
#: A store that is away is one error of every entry.
_NAMED = 3
_STATES: tuple[State, ...] = ("fresh", "stale", "missing", "invalid", "refused")
_COLUMNS = ("name", "state", "why", "number", "commit")
_NOT_PRINTED = ("request", "weight_bytes", "attempt", "tried")
#: Fields of the request that a row of the JSON document repeats, beside name and options.
_PRINTED = (
    "source",
    "revision",
    "task",
    "backend",
    "dtype",
    "batch",
    "lengths",
    "store",
    "channel",
    "publish_as",
    "allow_pickle",
    "trust_remote_code",
)
_DESCRIPTION = """\
Say of every entry of a fleet file whether its published conversion is fresh, stale (and why),
missing, the entry invalid, or refused before. Nothing is converted or written, and no weights are
downloaded or loaded; those of local folders are hashed once and remembered. A branch that moved, a
new toolchain, new lengths, new options or a new recipe make an entry stale; nothing else does. What
was refused is tried again when one of these, its permissions or its limits change, after a month,
or with --retry-refused.
"""
_EPILOG = """\
exit codes: 0 all entries are fresh, or there is work to do, or some were refused before; 1 an entry
is invalid, or the fleet file or a store can't be read; 2 wrong usage; 130 interrupted.

examples:
  tracefleet plan examples/fleet.yaml
  tracefleet plan fleet.yaml --store s3://bucket/models --all
  tracefleet plan fleet.yaml --json
"""


def add_command(commands: Any) -> None:
    """Add ``plan`` to the command line."""
    parser = commands.add_parser(
        "plan",
        help="say what of a fleet is fresh, stale, missing, invalid or refused",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(command=_plan)
    add = parser.add_argument
    add("fleet", metavar="FLEET", help="fleet file (YAML or JSON): a path, file:// or s3:// URL")
    add("--store", help="look into this store instead of the entries' own")
    add("--all", action="store_true", help=f"show fresh rows too where there are {_SHORT} or more")
    add("--retry-refused", action="store_true", help="plan as if nothing had been refused before")
    add_output(parser, json="print every row and the counts as JSON")


def table(rows: Sequence[PlanRow], *, whole: bool = False) -> str:
    """Return the rows as a table for a terminal, what refused some, and a line that sums up.

    Args:
        rows: in the order of the fleet file.
        whole: show the fresh rows too, however many there are.
    """
    everything = whole or len(rows) < _SHORT
    shown = [_cells(row) for row in rows if everything or row.state != "fresh"]
    lines = _align([_COLUMNS, *shown]) if shown else []
    errors = [f"{names}: {error}" for error, names in _list_errors(rows).items()]
    return "\n".join([*lines, *errors, summary_line(rows)])


def _list_errors(rows: Sequence[PlanRow]) -> dict[str, str]:
    """Return each error once, with the names of the entries that it concerns."""
    concerned: dict[str, list[str]] = {}
    for row in rows:
        if row.error:
            concerned.setdefault(f"{row.error}: {row.message}", []).append(row.name)
    named: dict[str, str] = {}
    for error, names in concerned.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        named[error] = ", ".join(names[:_NAMED]) + more
    return named


def summary_line(rows: Sequence[PlanRow]) -> str:
    """Return how many entries there are of each state."""
    counts = Counter(row.state for row in rows)
    told = [state for state in _STATES if state != "refused" or counts[state]]
    of_each = ", ".join(f"{counts[state]} {state}" for state in told)
    return f"{len(rows)} {'entry' if len(rows) == 1 else 'entries'}: {of_each}"


def _plan(options: argparse.Namespace) -> int:
    from tasks.fleet.patterns import Patterns
    from tasks.fleet.spec import read_fleet
    from tasks.plan.fleet import plan

    spec = read_fleet(options.fleet).with_store(options.store)
    with _few_lines():
        rows = plan(spec.expand(Patterns()), retry_refused=options.retry_refused)
    print(_as_json(rows) if options.json else table(rows, whole=options.all))
    states = {row.state for row in rows}
    return EXIT_INVALID if "invalid" in states else 0


@contextmanager
def _few_lines() -> Iterator[None]:
    """Silence the line of each source: a thousand of them hide the rest."""
    sources = logging.getLogger("tasks.fetch")
    before = sources.level
    sources.setLevel(logging.WARNING)
    try:
        yield
    finally:
        sources.setLevel(before)


def _as_json(rows: Sequence[PlanRow]) -> str:
    states = Counter(row.state for row in rows)
    counts = {state: states[state] for state in _STATES}
    found = [_row_as_json(row) for row in rows]
    return json.dumps({"counts": counts, "rows": found}, indent=2)


def _row_as_json(row: PlanRow) -> dict[str, Any]:
    plain = {name: value for name, value in vars(row).items() if name not in _NOT_PRINTED}
    request = row.request
    if request is None:
        return {**plain, "wanted": {"name": row.name}}
    fields: dict[str, Any] = {name: getattr(request, name) for name in _PRINTED}
    fields["lengths"] = row.lengths or request.lengths
    fields["options"] = request.identity_options
    return {**plain, "wanted": {"name": row.name, **fields}}


def _cells(row: PlanRow) -> tuple[str, ...]:
    why = "; ".join([*_error(row), *row.why, *_defaults(row)]) or "-"
    number = "-" if row.number is None else str(row.number)
    commit = "-" if row.commit is None else row.commit[:7]
    return row.name, row.state, why, number, commit


def _error(row: PlanRow) -> list[str]:
    """Say for what an entry is refused, and since when."""
    if row.error is None:
        return []
    return [row.error if row.since is None else f"{row.error} since {row.since[:10]}"]


def _defaults(row: PlanRow) -> list[str]:
    """Say which lengths an entry gets that names none."""
    if row.request is None or row.request.lengths is not None or row.error is not None:
        return []
    if row.lengths is None:
        return []
    return [f"lengths {','.join(map(str, row.lengths))} by default"]


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
