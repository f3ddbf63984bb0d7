"""Keep publishers and the garbage collector from working on one conversion at the same time.

A publisher claims a conversion before it reads what is there; the collector marks it before it
reads claims and references. Each writes its own file first and reads the other's afterwards, so
at least one of the two sees the other, whatever the order (Dekker's argument; S3 and file systems
are strongly consistent). Any number of publishers and collectors may work on one conversion: each
has a file of its own. A claim that was not renewed for longer than the grace time is ignored, so a
publisher renews its own before it makes anything visible.
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
#: A claim younger than this is valid under every grace time that gc accepts (an hour or more).
_FRESH_SECONDS = 600.0

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Claim:
    """A publisher's claim of one conversion.

    Attributes:
        store: Store that holds the claim.
        slug: Slug of the conversion's source.
        key: Conversion key.
        path: Path of the claim's own file.
        renewed: Time of the last write, by this machine's monotonic clock.
    """

    store: Store
    slug: str
    key: str
    path: str
    renewed: float

    def renew(self) -> bool:
        """Write an old claim again, so that the collector keeps ignoring the conversion.

        Returns:
            Whether the claim was old enough to be written again.

        Raises:
            StoreUnavailableError: the collector removed the claim, or is collecting right now.
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
        self.store.put_over(self.path, holder_record())
        self.renewed = time.monotonic()
        _check_not_collected(self.store, self.slug, self.key)
        return True


@contextmanager
def claim_conversion(store: Store, slug: str, key: str) -> Iterator[Claim]:
    """Keep the garbage collector away from one conversion.

    Args:
        store: Store of the conversion.
        slug: Slug of its source.
        key: Conversion key.

    Raises:
        StoreUnavailableError: the conversion is being collected at this moment.
    """
    path = f"{PUBLISHING}/{prefix_of(slug, key)}{secrets.token_hex(8)}.json"
    claim = Claim(store=store, slug=slug, key=key, path=path, renewed=time.monotonic())
    store.put_new(path, holder_record())
    try:
        _check_not_collected(store, slug, key)
        yield claim
    finally:
        _release(store, path)


@contextmanager
def mark_conversion(store: Store, slug: str, key: str) -> Iterator[None]:
    """Keep publishers away from one conversion while it is checked again and removed."""
    path = f"{COLLECTING}/{prefix_of(slug, key)}{secrets.token_hex(8)}.json"
    store.put_new(path, holder_record())
    try:
        yield
    finally:
        _release(store, path)


def prefix_of(slug: str, key: str) -> str:
    """Return the prefix that all claims and marks of a conversion have in their names."""
    return f"{slug}.{key}."


def holder_record() -> bytes:
    """Describe the holder of a claim or a mark, for people who find one."""
    now = datetime.now(timezone.utc)  # noqa: UP017  Inf1's Python 3.10 has no datetime.UTC
    started = now.isoformat(timespec="seconds")
    return canonical_json({"host": platform.node(), "process": os.getpid(), "started": started})


def _check_not_collected(store: Store, slug: str, key: str) -> None:
    for mark in store.names(COLLECTING):
        if mark.startswith(prefix_of(slug, key)):
            raise StoreUnavailableError(
                f"{store.url}/{COLLECTING}/{mark}: expected a conversion that is not being "
                "collected, got a mark of gc. Run again in a minute; if no gc is running, one was "
                f"killed: `tracefleet gc {store.url}` an hour after it removes the "
                "mark."
            )


def _release(store: Store, path: str) -> None:
    try:
        store.remove([path])
    except StoreError as error:
        # A file that is left keeps the other side away for longer; the work itself is done.
        logger.warning("a claim was left behind, gc will remove it: %s", error)
