"""``tracefleet log``: the numbers of channels, for people and for programs."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from tracefleet.errors import NoSuchVariantError
from tracefleet.log import LogRow, list_log
from tracefleet.printing import print_json
from tracefleet.published import find
from tracefleet.selecting import read_filters
from tracefleet.store import open_existing

DESCRIPTION = """\
Print every number of the channels that fit, the oldest first: when it was written, what it did, the
conversion, who converted it, and why a conversion was withdrawn. `points` is a publication or a
promotion, `returns` a rollback or a conversion that was reinstated.
"""


def log_command(arguments: argparse.Namespace) -> int:
    """Print the numbers of every channel that fits; return 1 if one is damaged."""
    store = open_existing(arguments.store)
    found = list(find(store, arguments.source, **read_filters(arguments)))
    if not found:
        raise NoSuchVariantError(
            f"{store.url}: nothing that fits is published. `tracefleet list` shows what is."
        )
    documents: list[dict[str, Any]] = []
    damaged = 0
    for published in found:
        rows = list(list_log(store, published))
        damaged += sum(row.did == "damaged" for row in rows)
        documents += [{"channel": published.folder, **dataclasses.asdict(row)} for row in rows]
        if not arguments.json:
            print(published.folder)
            for row in rows:
                print(f"  {_format(row)}")
    if arguments.json:
        print_json(documents)
    return 1 if damaged else 0


def _format(row: LogRow) -> str:
    key, when = row.key or "", row.when or "-"
    told = f"{row.who or '-'}  {row.why or ''}"
    line = f"{row.number:>4}  {when:<25}  {row.did:<9}  {key[:12]:<12}  {told}"
    return _make_harmless(line.rstrip())


def _make_harmless(text: str) -> str:
    # A terminal obeys what is not printable.
    return "".join(map(_make_printable, text))


def _make_printable(sign: str) -> str:
    return sign if sign.isprintable() else "?"
