"""Who works on a conversion: publishers and the garbage collector, without hurting each other.

A publisher claims a conversion before it looks at what is there; the collector marks it before it
looks for claims and references. Each writes its own file first and looks for the other's then, so
at least one of the two sees the other, whatever the order (Dekker's argument; S3 and file systems
are strongly consistent). Any number of publishers and collectors may be at one conversion at once:
each has a file of its own. A claim that was not renewed for longer than the grace time counts as
dead, so a publisher renews its own before it makes anything visible.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone

from tracefleet.canonical import canonical_json
from tracefleet.errors import StoreError, StoreUnavailableError
from tracefleet.store import Store

PUBLISHING = "publishing"
COLLECTING = "collecting"
#: A claim younger than this is alive by any grace time that gc takes (an hour at least).
_FRESH_SECONDS = 600.0

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Claim:
    """A publisher's claim of one conversion.

    Attributes:
        store: where.
        slug: of the conversion's source.
        key: the conversion key.
        path: of the claim's own file.
        renewed: when it was last written, by this machine's monotonic clock.
    """

    store: Store
    slug: str
    key: str
    path: str
    renewed: float

    def renew(self) -> bool:
        """Make sure that the collector still stays away; returns whether that was in doubt.

        Raises:
            StoreUnavailableError: it took this publisher for dead, or is at work right now.
        """
        if time.monotonic() - self.renewed < _FRESH_SECONDS:
            return False
        try:
            self.store.read(self.path)
        except FileNotFoundError:
            raise StoreUnavailableError(
                f"{self.store.url}/{self.path}: expected this publish's claim, got none: it took "
                "longer than the grace time of gc, which took it for dead. Run again, and run gc "
                "with a longer --older-than."
            ) from None
        self.store.put_over(self.path, who())
        self.renewed = time.monotonic()
        _check_not_collected(self.store, self.slug, self.key)
        return True


@contextmanager
def claimed(store: Store, slug: str, key: str) -> Iterator[Claim]:
    """Keep the garbage collector away from one conversion.

    Args:
        store: where it is or will be.
        slug: of its source.
        key: the conversion key.

    Raises:
        StoreUnavailableError: it is being collected at this moment.
    """
    path = f"{PUBLISHING}/{prefix_of(slug, key)}{secrets.token_hex(8)}.json"
    claim = Claim(store=store, slug=slug, key=key, path=path, renewed=time.monotonic())
    store.put_new(path, who())
    try:
        _check_not_collected(store, slug, key)
        yield claim
    finally:
        _release(store, path)


@contextmanager
def marked(store: Store, slug: str, key: str) -> Iterator[None]:
    """Keep publishers away from one conversion while it is looked at again and removed."""
    path = f"{COLLECTING}/{prefix_of(slug, key)}{secrets.token_hex(8)}.json"
    store.put_new(path, who())
    try:
        yield
    finally:
        _release(store, path)


def prefix_of(slug: str, key: str) -> str:
    """Return what the name of every claim and mark of a conversion begins with."""
    return f"{slug}.{key}."


def who() -> bytes:
    """Return who holds a claim or a mark, for people who find it."""
    now = datetime.now(timezone.utc)  # noqa: UP017  Inf1's Python 3.10 has no datetime.UTC
    started = now.isoformat(timespec="seconds")
    return canonical_json({"host": platform.node(), "process": os.getpid(), "started": started})


def _check_not_collected(store: Store, slug: str, key: str) -> None:
    for mark in store.names(COLLECTING):
        if mark.startswith(prefix_of(slug, key)):
            raise StoreUnavailableError(
                f"{store.url}/{COLLECTING}/{mark}: expected a conversion that is not being "
                "collected, got a mark of gc. Run again in a minute; if no gc is running, one was "
                f"killed: `python -m flows gc --store {store.url}` an hour after it removes the "
                "mark."
            )


def _release(store: Store, path: str) -> None:
    try:
        store.remove([path])
    except StoreError as error:
        # It keeps the other side away for a while longer; the work itself is done.
        logger.warning("a claim was left behind, gc will remove it: %s", error)
