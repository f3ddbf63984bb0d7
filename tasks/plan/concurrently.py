"""Work on many checkpoints or channels at the same time, where that helps.

Used by ``tasks.plan``. Work that waits for a network runs on a bounded number of threads; work on
local folders runs on the calling thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
_THREADS = 32
_REPORT_SECONDS = 5.0


def map_concurrently(
    items: Iterable[T], work: Callable[[T], R], *, url: Callable[[T], str], what: str
) -> Iterator[tuple[T, R]]:
    """Yield every item with the result of ``work``, in the order in which results come.

    Args:
        items: Items to work on.
        work: Called once for each item; an exception ends the whole.
        url: Returns the URL that an item is read from; ``file://`` is read by this thread.
        what: Words for the progress log, such as ``checkpoints resolved``.
    """
    todo = list(items)
    reported = time.monotonic()
    for done, pair in enumerate(_work(todo, work, url), start=1):
        yield pair
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            logger.info("%d of %d %s", done, len(todo), what)


def catching_errors(work: Callable[[T], R]) -> Callable[[T], R | Exception]:
    """Return ``work`` with its errors as results: an error of one item stops no other."""

    def call(item: T) -> R | Exception:
        try:
            return work(item)
        except Exception as error:
            return error

    return call


def _work(items: list[T], work: Callable[[T], R], url: Callable[[T], str]) -> Iterator[tuple[T, R]]:
    # Folders are read in Python's own time, where threads only wait for each other: measured on
    # two cores, resolving 1,000 local checkpoints takes 0.5 s on one thread and 2 s on sixteen.
    local = [item for item in items if url(item).startswith("file://")]
    remote = [item for item in items if not url(item).startswith("file://")]
    # The first of each scheme goes alone: one thread makes the clients and imports libraries.
    first = {url(item).partition("://")[0]: item for item in reversed(remote)}
    for item in first.values():
        yield item, work(item)
    done = {id(item) for item in first.values()}
    pool = ThreadPoolExecutor(_THREADS)
    try:
        futures = {pool.submit(work, item): item for item in remote if id(item) not in done}
        for item in local:
            yield item, work(item)
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
