"""Entries that turn out to move one channel, now that their checkpoints have named their tasks.

What can be seen in the file is refused there (``tasks.fleet.collisions``). Used by
``tasks.plan.fleet``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tasks.errors import RequestError
from tasks.publish.identity import Identity


@dataclass(frozen=True, kw_only=True)
class Mover:
    """An entry, and the channels that it would move.

    Attributes:
        name: Of the entry.
        channel: Name of the channel.
        identity: What it should point to.
        folders: The channel's folders, its source's and that of a name, each with its store.
    """

    name: str
    channel: str
    identity: Identity
    folders: tuple[tuple[str, str], ...]


def find_contradictions(movers: Iterable[Mover]) -> dict[str, RequestError]:
    """Return why entries are refused, by their names.

    Of several that ask for the very same the first stays. Where they differ none does: each run
    would take the channel from the other, and nobody knows which of them was meant.
    """
    by_folder: dict[tuple[str, str], list[Mover]] = defaultdict(list)
    for mover in movers:
        for folder in mover.folders:
            by_folder[folder].append(mover)
    refused: dict[str, RequestError] = {}
    for first, *others in by_folder.values():
        for other in others:
            refused.setdefault(other.name, _refuse(other, first))
            if other.identity != first.identity:
                refused.setdefault(first.name, _refuse(first, other))
    return refused


def _refuse(one: Mover, other: Mover) -> RequestError:
    differs = ""
    if one.identity.lengths != other.identity.lengths:
        mine, theirs = _format(one.identity.lengths), _format(other.identity.lengths)
        differs = f", with lengths {theirs} instead of {mine}"
    return RequestError(
        f"channel: expected a channel that no other entry moves, got {one.channel!r}, which "
        f"{other.name!r} moves too{differs}, now that the checkpoint has named the task. Remove "
        "one, or give it another channel, or another name if both have one."
    )


def _format(lengths: tuple[int, ...]) -> str:
    return ",".join(map(str, lengths))
