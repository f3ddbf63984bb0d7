"""The commands of ``tracefleet``; ``cli`` parses the arguments and calls one of them.

Each prints text for people, or one JSON document with ``--json``, and returns the exit code.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tracefleet.channel import Published
from tracefleet.errors import ArtifactError, NoSuchVariantError
from tracefleet.printing import Table, print_json
from tracefleet.published import find, load_manifest, resolve
from tracefleet.selecting import describe_row, read_filters
from tracefleet.store import ReadableStore, open_existing
from tracefleet.verify import FileCheck, verify

#: Rows of ``list`` that are read together and then printed; few, so that the first ones show soon.
_PAGE = 10
_THREADS = 16


def list_command(arguments: argparse.Namespace) -> int:
    """List channels with their current conversions, page by page; damaged ones on stderr."""
    store = open_existing(arguments.store)
    after = f"channels/{arguments.after}" if arguments.after else ""
    found = find(store, after=after, **read_filters(arguments))
    shown = itertools.islice(found, arguments.limit)
    rows: list[dict[str, Any]] = []
    table, damaged, last = Table(), 0, None
    while page := list(itertools.islice(shown, _PAGE)):
        for row in _describe_all(store, page):
            if isinstance(row, ArtifactError):
                print(f"error: {row}", file=sys.stderr)
                damaged += 1
            elif arguments.json:
                rows.append(row)
            else:
                table.add(row)
        if not arguments.json:
            table.flush()
        last = page[-1]
    if arguments.json:
        print_json(rows)
    elif last is None:
        print(f"nothing that fits is published in {store.url}")
    if last and arguments.limit is not None and next(found, None):
        print(f"more: --after {last.folder.removeprefix('channels/')}", file=sys.stderr)
    return 1 if damaged else 0


def _describe_all(
    store: ReadableStore, page: list[Published]
) -> list[dict[str, Any] | ArtifactError]:
    """Return one row for each channel, withdrawn ones too, or the error that reading it raised."""

    def describe(published: Published) -> dict[str, Any] | ArtifactError:
        try:
            selection = resolve(store, published)
            return describe_row(selection, load_manifest(store, selection, allow_withdrawn=True))
        except ArtifactError as error:
            return error

    # In threads: over a network each read waits for a response.
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(describe, page))


def verify_command(arguments: argparse.Namespace) -> int:
    """Compare every file of every channel that fits with its digest; damage goes to stderr."""
    store = open_existing(arguments.store)
    chosen = list(find(store, arguments.source, **read_filters(arguments)))
    if not chosen:
        raise NoSuchVariantError(f"{store.url}: nothing that fits is published, nothing to verify")
    found: list[FileCheck] = []
    known: dict[str, FileCheck] = {}
    for published in chosen:
        found += verify(store, published, known=known)
    # A name and its source lead to the same files, which are read and told once.
    checks = list(dict.fromkeys(found))
    damaged = [check for check in checks if not check.ok]
    if arguments.json:
        print_json([{**dataclasses.asdict(check), "ok": check.ok} for check in checks])
    else:
        files = "file" if len(checks) == 1 else "files"
        print(f"{len(checks)} {files} checked in {len(chosen)} channels, {len(damaged)} damaged")
        for check in checks:
            if check.withdrawn is not None:
                print(f"withdrawn {check.path}: {check.withdrawn}")
    for check in damaged:
        print(check, file=sys.stderr)
    return 1 if damaged else 0
