"""What happened in a channel: every number that is there, when, and by whom it was converted.

Called by ``tracefleet log``. Nothing is checked but the entries themselves; a number that is
missing or broken is a row like the others, as this is what one looks at then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from tracefleet.channel import ChannelEntry, Published, read_entry, source_slug
from tracefleet.channel_numbers import parse_entry_path
from tracefleet.errors import ArtifactError
from tracefleet.store import ReadableStore


@dataclass(frozen=True, kw_only=True)
class LogRow:
    """One number of a channel, or several that are missing.

    Attributes:
        number: the number; of missing ones the first.
        did: what it did: ``points``, ``returns`` (a rollback, or reinstated), ``withdraws``,
            ``missing``, ``damaged``.
        when: ISO time by the store's clock; None: it is missing.
        key: conversion key; None: it is missing or damaged.
        who: who converted it first, ``user@host`` as the attestation says; None: none is there.
        why: the reason of a withdrawal, or what is damaged or missing.
    """

    number: int
    did: str
    when: str | None = None
    key: str | None = None
    who: str | None = None
    why: str | None = None


def list_log(store: ReadableStore, published: Published) -> Iterator[LogRow]:
    """Yield the rows of one channel, the oldest first.

    Raises:
        StoreError: the store does not answer.
    """
    expected, known = 1, dict[str, str | None]()
    for file in store.walk(published.folder):
        found = parse_entry_path(file.path)
        if found is None:
            continue
        number = found[1]
        if number > expected:
            yield _tell_gap(expected, number - 1)
        expected = number + 1
        # Python 3.10, Inf1's newest, has no datetime.UTC.
        written = datetime.fromtimestamp(file.modified, timezone.utc)  # noqa: UP017
        when = written.isoformat(timespec="seconds")
        try:
            entry = read_entry(store, published.folder, number)
        except ArtifactError as error:
            yield LogRow(number=number, did="damaged", when=when, why=str(error))
            continue
        slug = published.slug if entry.source is None else source_slug(entry.source)
        if entry.key not in known:
            known[entry.key] = _find_converter(store, slug, entry.key)
        yield LogRow(
            number=number,
            did=_name_move(number, entry),
            when=when,
            key=entry.key,
            who=known[entry.key],
            why=entry.withdrawn,
        )


def _tell_gap(first: int, last: int) -> LogRow:
    which = f"{first} is" if first == last else f"{first} to {last} are"
    why = f"{which} not there: removed by hand, or a later number was; passed over"
    return LogRow(number=first, did="missing", why=why)


def _name_move(number: int, entry: ChannelEntry) -> str:
    if entry.withdrawn is not None:
        return "withdraws"
    return "points" if (entry.previous or 0) == number - 1 else "returns"


def _find_converter(store: ReadableStore, slug: str, key: str) -> str | None:
    """Return who converted what has a key, from the earliest attestation that can be read."""
    folder = f"attestations/{slug}/{key}"
    try:
        facts = [json.loads(store.read(f"{folder}/{name}")) for name in store.names(folder)[:3]]
        first = min(facts, key=lambda one: str(one["finished"]))
        return f"{first['user']}@{first['host']}"
    except (ArtifactError, OSError, ValueError, LookupError, TypeError):
        return None  # unsigned words of whoever wrote them: a help, never a reason to fail
