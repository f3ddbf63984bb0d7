"""The command line's fleet: ``tracefleet fleet FLEET``, in this process or over the pools."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

from flows.commands.arguments import add_output, parse_positive
from flows.commands.ending import ending_soon
from flows.engine import settings
from tasks import child

if TYPE_CHECKING:
    from tasks.report.fleet.facts import FleetError, FleetFacts, FleetRow

_EPILOG = """\
With a Prefect server configured (PREFECT_API_URL or the active profile) workers of the pools
convert, in batches that are shared evenly over their places. Without one, or with --jobs, all of it
happens in this process.

What was refused before for the very same commit, versions, options, permissions and limits is not
tried again for a month: it is told as refused, apart from failures.

exit codes: 0 every entry is current, or was refused before; 1 some failed now (the others are
published), or the fleet file is wrong; 2 wrong usage; 130 interrupted.

examples:
  tracefleet fleet examples/fleet.yaml --store ./store --jobs 2
  tracefleet fleet s3://bucket/fleet.yaml --only minilm --only sentiment
"""
_WHY = 100


def add_command(commands: Any) -> None:
    """Add ``fleet`` to the parser's subcommands."""
    fleet = commands.add_parser(
        "fleet",
        help="convert what is stale or missing of a fleet",
        description="Plan a fleet, convert what is stale or missing, and report.",
        epilog=_EPILOG,
    )
    fleet.set_defaults(command=_fleet)
    add = fleet.add_argument
    add("fleet", help="fleet file: a path, or a file:// or s3:// URL")
    add("--store", help="root of the store for all entries, instead of what the file says")
    add(
        "--only",
        action="append",
        metavar="ENTRY",
        help="only this entry, and what it is multiplied into",
    )
    add("--jobs", type=parse_positive, metavar="N", help="convert in this process, N at a time")
    add(
        "--in-flight",
        type=parse_positive,
        default=32,
        metavar="N",
        help="batch runs in the pools at a time (default: 32)",
    )
    add(
        "--places",
        type=parse_positive,
        default=2,
        metavar="N",
        help="runs that one worker of a process pool takes at a time, as its --limit (default: 2)",
    )
    add("--retry-refused", action="store_true", help="try again what was refused before, too")
    add_output(fleet)


def _fleet(options: argparse.Namespace) -> int:
    # Prefect reads its settings when it is imported.
    settings.prepare()
    settings.quieten(quiet=options.quiet)
    child.share_cores(options.jobs or 1)
    facts = None if settings.has_server() else _find_all_fresh(options)
    failure: FleetError | None = None
    if facts is None:
        with ending_soon(pools=settings.has_server() and options.jobs is None):
            facts, failure = _run(options)
    if options.json:
        print(json.dumps(dataclasses.asdict(facts), indent=2, default=str))
    else:
        print(summary(facts, told=not options.quiet))
    if failure is not None:
        print(f"error: {type(failure).__name__}: {failure}", file=sys.stderr)
    return 1 if failure else 0


def _find_all_fresh(options: argparse.Namespace) -> FleetFacts | None:
    """Return what came of a fleet in which there is nothing to do; None: there is.

    Prefect's embedded server takes ten seconds to start, and would keep nothing.

    Raises:
        RequestError: The file can't be meant.
    """
    from flows.engine.clock import now
    from flows.fan_out.plan import choose, list_stores
    from flows.fan_out.rows import make_planned_row
    from tasks.fleet.patterns import Patterns
    from tasks.fleet.spec import read_fleet
    from tasks.plan.fleet import plan
    from tasks.publish.guard import guard_stores
    from tasks.report.fleet.facts import FleetFacts

    started = now()
    spec = read_fleet(options.fleet).with_store(options.store)
    requests = choose(spec.expand(Patterns()), options.only)
    rows = plan(requests)
    if any(row.state != "fresh" for row in rows):
        return None
    guard_stores(list_stores(requests), spec.guarded)
    return FleetFacts(
        name=PurePosixPath(options.fleet).name,
        run="none was needed",
        started=started,
        finished=now(),
        rows=tuple(make_planned_row(row, "fresh") for row in rows),
    )


def _run(options: argparse.Namespace) -> tuple[FleetFacts, FleetError | None]:
    """Run the fleet; one with failures still has its facts."""
    from flows.convert_fleet import convert_fleet
    from tasks.report.fleet.facts import FleetError

    if not settings.has_server():
        logging.getLogger("flows").info("starting Prefect's embedded server (about 20 s)")
    state: Any = convert_fleet(
        fleet=options.fleet,
        store=options.store,
        only=options.only,
        in_flight=options.in_flight,
        places=options.places,
        jobs=options.jobs,
        retry_refused=options.retry_refused,
        return_state=True,
    )
    found = state.result(raise_on_failure=False)
    if isinstance(found, FleetError):
        return found.facts, found
    if isinstance(found, BaseException):
        raise found
    return found, None


def summary(facts: FleetFacts, *, told: bool = False) -> str:
    """Return what came of a fleet for a terminal: what changed or failed, then the counts.

    Args:
        facts: What came of every entry.
        told: Each entry was told when it ended: only what to do about failures is left to say.
    """
    shown = [row for row in facts.rows if row.ending != "fresh"]
    if told:
        lines = [f"{row.name}: {row.next_step}" for row in shown if row.next_step]
    else:
        lines = [_line(row) for row in shown]
    seconds = (facts.finished - facts.started).total_seconds()
    entries = "entry" if len(facts.rows) == 1 else "entries"
    lines.append(f"{len(facts.rows)} {entries}: {', '.join(_counts(facts))} in {seconds:.0f} s")
    if facts.report_url:
        lines.append(f"report   {facts.report_url}")
    return "\n".join(lines)


def _counts(facts: FleetFacts) -> Iterator[str]:
    from tasks.report.fleet.facts import Ending

    for kind in get_args(Ending):
        count = len(facts.ended(kind))
        if count or kind not in ("moved", "cancelled", "refused"):
            yield f"{count} {kind}"


def _line(row: FleetRow) -> str:
    if row.ending == "published":
        error = f"error {row.worst_error:.1e}" if row.worst_error is not None else ""
        return f"published  {row.name}  {error}  {row.seconds or 0:.1f} s  ({row.why})"
    why = row.why if len(row.why) <= _WHY else row.why[:_WHY] + "…"
    since = f" since {row.since[:10]}" if row.since else ""
    reason = f"{row.error}{since}: {why}" if row.error else why
    return "  ".join((f"{row.ending:<9}", row.name, reason, row.next_step)).rstrip()
