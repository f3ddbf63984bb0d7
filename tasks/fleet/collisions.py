"""Entries of a fleet that contradict each other: one name twice, or one channel for two requests.

Each would stay stale for ever: a run takes the channel from the other. ``tasks.fleet.spec`` refuses
the file.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tasks.fleet.entries import Asked
from tasks.request.conversion import ConversionRequest
from tracefleet.store import open_store

#: Fields that limit a request's processes and change nothing about its result.
LIMITS = ("timeout_seconds", "memory_limit_mb", "threads")


def find_collisions(made: Mapping[str, tuple[str, ConversionRequest]]) -> list[str]:
    """Return a line for each pair of entries that would move the same channel.

    Args:
        made: Requests by name, each with its entry.
    """
    # Two spellings of one store are the same store.
    find_url = functools.cache(lambda url: open_store(url).url)
    movers: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, (_, request) in made.items():
        for address in _list_addresses(request):
            movers[(address, *_find_variant(request), find_url(request.store))].append(name)
    lines: dict[tuple[str, str], str] = {}
    for (address, *_), (first, *others) in movers.items():
        for other in others:
            pair = (made[first][0], made[other][0])
            lines.setdefault(pair, _describe_collision(made, first, other, address))
    return list(lines.values())


def _list_addresses(request: ConversionRequest) -> list[str]:
    """Return the source, and the name that the conversion is published under, if it has one."""
    source = request.source
    if source.startswith("hf://"):
        source = source.partition("@")[0]  # a channel's folder has no revision
    return [source] if request.publish_as is None else [source, request.publish_as]


def _find_variant(request: ConversionRequest) -> tuple[Any, ...]:
    return request.task, request.backend, request.dtype, request.batch, request.channel


def _describe_collision(
    made: Mapping[str, tuple[str, ConversionRequest]], first: str, other: str, address: str
) -> str:
    (_, one), (entry, two) = made[first], made[other]
    if "://" not in address:
        return (
            f"{entry}.publish_as: expected a name that no other request moves, got {address!r} of "
            f"{other!r}, which {first!r} moves too (same task, backend, dtype, batch, channel and "
            "store); give one of them another name or channel"
        )
    before, after = (request.model_dump(exclude={*LIMITS}) for request in (one, two))
    if before == after:
        return (
            f"{entry}.source: expected each conversion once, got {other!r}, which requests the "
            f"same as {first!r}; remove one of them"
        )
    differs = ", ".join(_list_differences(before, after))
    return (
        f"{entry}.channel: expected a channel that no other request moves, got {two.channel!r} of "
        f"{other!r}, which {first!r} moves too (same source, task, backend, dtype, batch and "
        f"store, but other {differs}); give one of them another channel, such as {two.channel}-2, "
        "or write {lengths} or {revision} into it"
    )


def _list_differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name, value in before.items() if after[name] != value]


def add_requests(
    made: dict[str, tuple[str, Asked]],
    entry: str,
    requests: Mapping[str, Asked],
) -> list[str]:
    """Add an entry's requests to those that are made; return a line for each name given twice."""
    wrong = []
    for name, request in requests.items():
        if name in made:
            wrong.append(
                f"{entry}: expected names that no other entry gives, got {name!r}, which entry "
                f"{made[name][0]!r} gives too; rename one of them"
            )
        else:
            made[name] = (entry, request)
    return wrong
