"""The numbers of a channel: which are there, which may follow, and how often to try for one.

Numbers have no gaps unless somebody removed one by hand, or forged one; ``tracefleet.channel`` and
publishers pass over what is missing. ``tracefleet log`` shows it.
"""

from __future__ import annotations

import re

from tracefleet.errors import ManifestError, StoreUnavailableError
from tracefleet.store import ReadableStore

#: Numbers have ten digits in their files' names.
LAST_NUMBER = 9_999_999_999
#: Races for a channel's next number that a writer may lose; of sixteen that race each loses 15.
MOST_LOST = 1000
_ENTRY_NAME = re.compile(r"[0-9]{10}\.json")
_ENTRY_PATH = re.compile(r"(channels/[^/]+/[^/]+/[^/]+)/([0-9]{10})\.json")


def parse_entry_path(path: str) -> tuple[str, int] | None:
    """Return the channel's folder and the number in an entry's path; None: it is no such path."""
    match = _ENTRY_PATH.fullmatch(path)
    return (match[1], int(match[2])) if match else None


def list_numbers(store: ReadableStore, folder: str) -> list[int]:
    """Return the numbers of a channel that are there, ascending; there may be gaps."""
    return [int(name[:10]) for name in store.names(folder) if _ENTRY_NAME.fullmatch(name)]


def list_between(store: ReadableStore, folder: str, after: int, to: int) -> list[int]:
    """Return the numbers over ``after`` up to ``to`` that are there, descending.

    A number that somebody removed, or that a forged one left out, is passed over.
    """
    if to <= after:
        return []
    return [number for number in reversed(list_numbers(store, folder)) if after < number <= to]


def find_following(folder: str, number: int) -> int:
    """Return the number that follows one of a channel's.

    Raises:
        ManifestError: readers know no such number.
    """
    if number >= LAST_NUMBER:
        raise ManifestError(
            f"{folder}/{number:010d}.json: expected a number that another can follow, got the last "
            "one that readers know: numbers grow by one, so it was forged or written by mistake. "
            "Nothing was changed. Remove that file by hand and run again; `tracefleet log` shows "
            "the numbers before it."
        )
    return number + 1


def refuse_races(folder: str) -> StoreUnavailableError:
    """Return the error of a writer that lost every race for a channel's next number."""
    return StoreUnavailableError(
        f"{folder}: expected to write its next number, got {MOST_LOST} times that another writer "
        "has just taken it. Run again; `tracefleet log` shows who writes there."
    )
