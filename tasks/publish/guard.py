"""Guarded channels: what enters one was checked, and a person has confirmed it.

``guarded/<channel>.json`` in the store says so, and holds for everybody who uses these tools on it:
conversions are not published into a guarded channel, ``promote`` and ``reinstate`` have to be
confirmed. ``rollback`` and ``withdraw`` are never held up: they bring back what was confirmed
before, or take away. It is a rule and no right: who can write to the store can write the channel
too, unless its policy says otherwise (``infra/bucket.yaml``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from tasks.errors import RequestError
from tracefleet.canonical import canonical_json
from tracefleet.channel import check_channel
from tracefleet.errors import ArtifactError, StoreError, StoreUnavailableError
from tracefleet.store import ReadableStore, Store, open_writable

GUARDED = "guarded"

logger = logging.getLogger(__name__)


def is_guarded(store: ReadableStore, channel: str) -> bool:
    """Return whether a channel of a store is guarded.

    Raises:
        StoreError: what the store says about it is damaged; nothing may enter until it is mended.
    """
    path = _path(channel)
    try:
        data = store.read(path)
    except FileNotFoundError:
        return False
    try:
        guarded = json.loads(data)["guarded"]
    except (ValueError, KeyError, TypeError, RecursionError):
        guarded = None
    if isinstance(guarded, bool):
        return guarded
    raise StoreError(
        f"{store.url}/{path}: expected whether the channel is guarded, got {data[:80]!r}. Set it "
        f"again with `tracefleet guard {store.url} --channel {channel}`."
    )


def set_guarded(store: Store, channel: str, *, guarded: bool = True) -> bool:
    """Guard a channel of a store, or lift that; return whether anything changed."""
    if _stands(store, channel, guarded):
        return False
    path, data = _path(channel), canonical_json({"guarded": guarded})
    # A publisher has the right to guard a channel, and none to write over what is there.
    if not store.put_new(path, data):
        store.put_over(path, data)
    return True


def guard_stores(urls: Iterable[str], channels: Iterable[str]) -> None:
    """Guard the channels that a fleet names in its stores; what fails in one stops no other.

    Raises:
        StoreUnavailableError: a store is away; all others are done.
    """
    named = tuple(channels)
    away: StoreUnavailableError | None = None
    for url in dict.fromkeys(urls if named else ()):
        try:
            _guard_all(url, named)
        except StoreUnavailableError as error:
            away = error
        except ArtifactError as error:
            logger.warning("%s: %s could not be guarded: %s", url, ", ".join(named), error)
    if away is not None:
        raise away


def refuse_publishing(store: ReadableStore, channel: str) -> None:
    """Refuse to publish into a guarded channel.

    Raises:
        RequestError: it is one.
    """
    if is_guarded(store, channel):
        raise RequestError(
            f"channel: expected one that conversions are published into, got {channel!r}, which "
            f"is guarded in {store.url}. Publish into another channel, then promote what is right: "
            "deployment `promote-conversion`, or `tracefleet promote`."
        )


def require_confirmed(store: ReadableStore, channel: str, what: str, *, confirmed: bool) -> None:
    """Refuse to move a guarded channel without a person's word.

    Raises:
        RequestError: the channel is guarded and nobody has confirmed it.
    """
    if not confirmed and is_guarded(store, channel):
        raise RequestError(
            f"{what}: expected a person's word for channel {channel!r}, which is guarded in "
            f"{store.url}, got none. Run deployment `promote-conversion`, which checks the "
            "conversion and waits for approval, or say `--confirm` if you have checked it."
        )


def _guard_all(url: str, channels: Iterable[str]) -> None:
    store = open_writable(url, check=False)
    for channel in channels:
        if set_guarded(store, channel):
            logger.info("%s: channel %s is guarded from now on", url, channel)


def _stands(store: ReadableStore, channel: str, guarded: bool) -> bool:
    try:
        return is_guarded(store, channel) is guarded
    except StoreError as error:
        logger.warning("written anew: %s", error)
        return False


def _path(channel: str) -> str:
    return f"{GUARDED}/{check_channel(channel)}.json"
