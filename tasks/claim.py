"""Who works on a conversion: publishers and the garbage collector, without hurting each other.

A publisher claims a conversion before it looks at what is there; the collector marks it before it
looks for claims and references. Each writes its own file first and looks for the other's then, so
at least one of the two sees the other, whatever the order (Dekker's argument; S3 and file systems
are strongly consistent). Any number of publishers may hold claims of one conversion at once.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from tracefleet.errors import StoreError, StoreUnavailableError
from tracefleet.manifest import canonical_json
from tracefleet.store import Store

PUBLISHING = "publishing"
COLLECTING = "collecting"

logger = logging.getLogger(__name__)


@contextmanager
def claimed(store: Store, slug: str, key: str) -> Iterator[None]:
    """Keep the garbage collector away from one conversion.

    Args:
        store: where it is or will be.
        slug: of its source.
        key: the conversion key.

    Raises:
        StoreUnavailableError: it is being collected at this moment.
    """
    path = f"{claim_prefix(slug, key)}{secrets.token_hex(8)}.json"
    store.put_new(path, who())
    try:
        _check_not_collected(store, slug, key)
        yield
    finally:
        _release(store, path)


def claim_prefix(slug: str, key: str) -> str:
    """Return what the path of every claim of a conversion begins with."""
    return f"{PUBLISHING}/{slug}.{key}."


def marker_path(slug: str, key: str) -> str:
    """Return where the collector marks a conversion."""
    return f"{COLLECTING}/{slug}.{key}.json"


def who() -> bytes:
    """Return who holds a claim or a mark, for people who find it."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return canonical_json({"host": platform.node(), "process": os.getpid(), "started": started})


def _check_not_collected(store: Store, slug: str, key: str) -> None:
    path = marker_path(slug, key)
    try:
        holder = store.read(path).decode(errors="replace").strip()
    except FileNotFoundError:
        return
    raise StoreUnavailableError(
        f"{store.url}/{path}: expected a conversion that is not being collected, got a mark by "
        f"{holder}. Run again in a minute; if no gc is running, one was killed: run "
        f"`python -m flows gc --store {store.url}` an hour after it, which finishes its work."
    )


def _release(store: Store, path: str) -> None:
    try:
        store.remove([path])
    except StoreError as error:
        # It keeps the collector away for a while longer; the conversion itself is done.
        logger.warning("a claim was left behind, gc will remove it: %s", error)
