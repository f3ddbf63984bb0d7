"""The command line's upkeep of a store: ``gc``, ``limit-schema``, and moving channels by hand.

``tracefleet.program`` parses the arguments and calls one of these; each prints for a person, or one
JSON document with ``--json``, and returns the exit code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.commands.arguments import add_output, add_place, parse_positive
from tracefleet.program import KEEP, Commands
from tracefleet.spelling import option, read_backend, read_dtype, read_task

if TYPE_CHECKING:
    from tracefleet.finding import Selection

_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
#: The shortest grace time: a publish may take that long between its first file and its channel.
_SHORTEST_HOURS = 1
_EXIT_CODES = "exit codes: 0 done; 1 refused or failed; 2 wrong usage; 130 interrupted."
_STORE = {"store": "root of the store"}
_SOURCE = {"source": "name, org/name, folder, s3://… or slug"}
_SUMMARIES = {
    "gc": "remove what no channel references: conversions, orphaned files, unfinished uploads",
    "promote": "make what one channel points to current in another one too",
    "rollback": "make an earlier number of a channel current again, as its next number",
    "withdraw": "withdraw what a channel points to: readers refuse it from then on, and say why",
    "reinstate": "make a withdrawn conversion current again, as the channel's next number",
    "guard": "guard a channel: only what a person confirms enters it",
    "limit-schema": "limit the schema of a store's next manifests, for earlier readers",
}


def add_command(commands: Commands) -> None:
    """Add the commands to the program."""
    _add_gc(commands)
    promote = _add(commands, "promote", _promote, "tracefleet promote ./store org/name")
    promote.add_argument("--channel", default="candidate", help="from this (default: candidate)")
    promote.add_argument("--to", default="latest", help="into this one (default: latest)")
    _add_confirm(promote)
    for name, command, more in (
        ("rollback", _rollback, "--number 3"),
        ("withdraw", _withdraw, '--reason "wrong on long texts"'),
        ("reinstate", _reinstate, ""),
    ):
        example = f"tracefleet {name} ./store org/name {more}".rstrip()
        parser = _add(commands, name, command, example)
        parser.add_argument("--channel", default="latest", help="which one (default: latest)")
        _add_own(parser, name)
    _add_guard(commands)
    _add_limit(commands)


def _add_confirm(parser: argparse.ArgumentParser) -> None:
    text = "move a guarded channel too: you have checked it"
    parser.add_argument("--confirm", action="store_true", help=text)


def _add_own(parser: argparse.ArgumentParser, name: str) -> None:
    if name == "withdraw":
        text = "one line for those who meet the refusal"
        parser.add_argument("--reason", required=True, help=text)
        return
    if name == "reinstate":
        _add_confirm(parser)
    which = "the previous" if name == "rollback" else "the current"
    parser.add_argument("--number", type=int, help=f"bring this one back (default: {which})")


def _add(
    commands: Commands, name: str, command: Callable[[argparse.Namespace], int], example: str
) -> argparse.ArgumentParser:
    """Add a command that moves one channel."""
    parser = commands.add_parser(
        name,
        help=_SUMMARIES[name],
        group=KEEP,
        epilog=f"{_EXIT_CODES}\n\nexamples:\n  {example}",
    )
    add_output(parser)
    of_store = name in ("gc", "guard", "limit-schema")
    read = add_place(parser, _STORE if of_store else _STORE | _SOURCE)
    if not of_store:
        _add_variant(parser)

    def run(options: argparse.Namespace) -> int:
        read(options)
        return command(options)

    parser.set_defaults(command=run)
    return parser


def _add_gc(commands: Commands) -> None:
    gc = _add(commands, "gc", _gc, "tracefleet gc ./store --older-than 7d --dry-run")
    gc.add_argument(
        "--older-than",
        type=_seconds,
        default="7d",
        metavar="AGE",
        help="leave alone what is younger, such as 12h or 4w; at least 1h (default: 7d)",
    )
    gc.add_argument(
        "--keep",
        type=parse_positive,
        metavar="N",
        help="let only the newest N numbers of each channel hold their conversions (default: all)",
    )
    gc.add_argument(
        "--reports-older-than",
        type=_seconds,
        metavar="AGE",
        help="remove older reports, but those of conversions that are there (default: none)",
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _add_limit(commands: Commands) -> None:
    example = "tracefleet limit-schema ./store --schema 2"
    limit = _add(commands, "limit-schema", _limit_schema, example)
    text = "a number from 2 on, or newest, which lifts the limit"
    limit.add_argument("--schema", required=True, help=text)


def _add_guard(commands: Commands) -> None:
    guard = _add(commands, "guard", _guard, "tracefleet guard ./store --channel production")
    guard.add_argument("--channel", required=True, help="which one")
    guard.add_argument("--lift", action="store_true", help="guard it no longer")


def _add_variant(parser: argparse.ArgumentParser) -> None:
    for name, read in (("task", read_task), ("backend", read_backend), ("dtype", read_dtype)):
        kind = option(read, f"--{name}")
        parser.add_argument(f"--{name}", type=kind, help=f"{name}, needed if several are published")
    parser.add_argument("--batch", type=int, help="rows, needed if several are published")


def _gc(options: argparse.Namespace) -> int:
    from tasks.publish.gc import collect
    from tracefleet.errors import StoreError
    from tracefleet.store import open_writable
    from tracefleet.store.folder import FileStore

    store, now = open_writable(options.store, check=False), time.time()
    reports = options.reports_older_than
    if isinstance(store, FileStore) and not store.root.is_dir():
        raise StoreError(f"{store.url}: expected a store, got no folder. Check the path.")
    found = collect(
        store,
        before=now - options.older_than,
        now=now,
        keep=options.keep,
        reports_before=reports and now - reports,
        dry_run=options.dry_run,
    )
    if options.json:
        print(json.dumps({"dry_run": options.dry_run, **dataclasses.asdict(found)}, indent=2))
        return 1 if found.damaged else 0
    for one in found.removed:
        size = f"{one.files} files, {one.size} bytes" if one.size else ""
        print(f"{one.kind:<11} {one.path}  {size}".rstrip())
    for kept in found.kept:
        print(f"kept        {kept}")
    freed = sum(one.size for one in found.removed)
    verb = "would be removed" if options.dry_run else "removed"
    print(f"{len(found.removed)} {verb}, {freed / 1e6:.1f} MB, {len(found.kept)} kept")
    for damaged in found.damaged:
        print(f"error: {damaged}", file=sys.stderr)
    return 1 if found.damaged else 0


def _promote(options: argparse.Namespace) -> int:
    from tasks.publish.channels import promote
    from tracefleet.published import select
    from tracefleet.store import open_writable

    store = open_writable(options.store)
    selection = select(store, **_selection(options))
    manifest, number = promote(store, selection, to=options.to, confirmed=options.confirm)
    return _print_channel(options, options.to, number, manifest.key)


def _rollback(options: argparse.Namespace) -> int:
    from tasks.publish.channels import rollback
    from tracefleet.published import select
    from tracefleet.store import open_writable

    store = open_writable(options.store)
    selection = select(store, **_selection(options))
    manifest, number = rollback(store, selection, number=options.number)
    return _print_channel(options, options.channel, number, manifest.key)


def _withdraw(options: argparse.Namespace) -> int:
    from tasks.publish.withdraw import withdraw_everywhere
    from tracefleet.published import select
    from tracefleet.store import open_writable

    store = open_writable(options.store)
    selection = select(store, **_selection(options))
    done = withdraw_everywhere(store, selection, options.reason)
    found = done[selection.published]
    shown: dict[str, Any] = {"channel": options.channel, "number": found.number}
    if options.json:
        folders = [published.folder for published in done]
        shown |= {"key": selection.entry.key, "withdrawn": found.reason, "channels": folders}
        print(json.dumps(shown, indent=2))
    else:
        key = selection.entry.key[:12]
        print(f"channel  {options.channel} #{found.number} -> {key} withdrawn: {found.reason}")
        for also, one in list(done.items())[1:]:
            print(f"also     {also.slug} {also.channel} #{one.number}")
    return 0


def _reinstate(options: argparse.Namespace) -> int:
    from tasks.publish.withdraw import find_same, reinstate
    from tracefleet.published import select
    from tracefleet.store import open_writable

    store = open_writable(options.store)
    selection = select(store, **_selection(options))
    manifest, number = reinstate(store, selection, number=options.number, confirmed=options.confirm)
    code = _print_channel(options, options.channel, number, manifest.key)
    if not options.json:
        _print_withdrawn(list(find_same(store, select(store, **_selection(options)))))
    return code


def _print_withdrawn(same: list[Selection]) -> None:
    """Say where else a conversion is withdrawn still: each channel comes back by itself."""
    for one in same:
        if one.entry.withdrawn is not None:
            where = f"{one.published.slug} {one.published.channel} #{one.number}"
            print(f"still    withdrawn in {where}: reinstate it there too, if it is right")


def _guard(options: argparse.Namespace) -> int:
    from tasks.publish.guard import set_guarded
    from tracefleet.store import open_writable

    changed = set_guarded(open_writable(options.store), options.channel, guarded=not options.lift)
    if options.json:
        print(json.dumps({"channel": options.channel, "guarded": not options.lift}))
    else:
        verdict = "not guarded" if options.lift else "guarded"
        print(f"channel  {options.channel} is {verdict}{' from now on' if changed else ' already'}")
    return 0


def _limit_schema(options: argparse.Namespace) -> int:
    from tasks.publish.schema_limit import write_limit
    from tracefleet.store import open_writable

    limit = write_limit(open_writable(options.store), options.schema)
    if options.json:
        print(json.dumps({"schema": limit}))
    else:
        print(f"schema  at most {limit} from now on")
    return 0


def _selection(options: argparse.Namespace) -> dict[str, Any]:
    names = ("source", "task", "backend", "dtype", "batch", "channel")
    return {name: getattr(options, name) for name in names}


def _print_channel(options: argparse.Namespace, channel: str, number: int, key: str) -> int:
    if options.json:
        print(json.dumps({"channel": channel, "number": number, "key": key}, indent=2))
    else:
        print(f"channel  {channel} #{number} -> {key[:12]}")
    return 0


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]+)([hdw])", text)
    if found is None or (seconds := int(found[1]) * _UNITS[found[2]]) < _SHORTEST_HOURS * 3600:
        raise argparse.ArgumentTypeError(
            f"expected an age from 1h, such as 12h or 7d, got {text!r}"
        )
    return seconds
