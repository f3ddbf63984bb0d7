"""Channels: which conversion is current, as a numbered log that only grows.

A channel is a folder of ``0000000001.json``, ``0000000002.json``, …; the highest number is
current. Each number is created once and never changed, so two publishers can't lose each other's
update, and a rollback is a new number that points to an older key. A withdrawal is a new number
too, with the reason: readers refuse what it points to. Publishers call ``advance``, readers
``read_current`` and ``find_variants``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

from tracefleet import channel_numbers
from tracefleet.canonical import canonical_json
from tracefleet.decode import decode
from tracefleet.errors import ManifestError
from tracefleet.manifest_types import Variant
from tracefleet.store import ReadableStore, Store

_SLUG = re.compile(r"[a-z0-9_-][a-z0-9._-]*")
_CHANNEL = re.compile(r"[a-z0-9][a-z0-9-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: A reason is one line, for a table and a log.
LONGEST_REASON = 500
#: Fields that an entry has only where there is something to say.
_OPTIONAL = ("withdrawn", "source")
_LABEL = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)\.([a-z0-9-]+)\.b([1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True)
class ChannelEntry:
    """The content of one number of a channel.

    Attributes:
        manifest: sha256 of the manifest's bytes.
        key: conversion key, which is the name of the conversion's folder.
        previous: number that a rollback from this one restores; None: there is none. An entry that
            is itself a rollback has the number before the one that it restored.
        nonce: random text by which a writer that got no response recognises its own entry.
        withdrawn: why the conversion was withdrawn, so that readers refuse it; None: it is not.
        source: source of the conversion, in the channel of a name; None: the channel is the
            source's own.
    """

    manifest: str
    key: str
    previous: int | None
    nonce: str
    withdrawn: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that are no digests, a reason of several lines, and what is no source."""
        # The key becomes part of a path.
        for name, value in (("manifest", self.manifest), ("key", self.key)):
            if not _SHA256.fullmatch(value):
                raise ManifestError(
                    f"channel entry: {name} expected 64 hex digits, got {value!r}. The entry was "
                    "edited; publish again."
                )
        if self.withdrawn is not None:
            try:
                check_reason(self.withdrawn)
            except ValueError as error:
                raise ManifestError(f"channel entry: {error}. The entry was edited.") from None
        if self.source is not None and "://" not in self.source:
            raise ManifestError(
                f"channel entry: source expected one with its scheme, got {self.source!r}. The "
                "entry was edited; publish again."
            )

    def to_bytes(self) -> bytes:
        """Return the canonical JSON."""
        fields = asdict(self)
        # Readers of before refuse fields that they don't know: rightly, but only where there are.
        for name in _OPTIONAL:
            if fields[name] is None:
                del fields[name]
        return canonical_json(fields)


class Published(NamedTuple):
    """A channel of a variant, under a source's slug or a name, at its newest number."""

    slug: str
    variant: str
    channel: str
    number: int

    @property
    def folder(self) -> str:
        """The channel's folder in the store."""
        return slug_folder(self.slug, self.variant, self.channel)


def source_slug(source: str) -> str:
    """Return the folder name of a source: readable, and different for each source."""
    scheme, _, rest = source.rpartition("://")
    parts = [part for part in rest.split("/") if part]
    # Paths can be long, and only the last segment says what it is.
    if scheme != "hf":
        parts = parts[-1:]
    readable = ".".join([scheme, *parts])
    safe = re.sub(r"[^a-z0-9._-]+", "-", readable.lower()).strip(".-")[-80:].strip(".-")
    return f"{safe or 'source'}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def slug_of(source: str) -> str:
    """Return the slug of a source (it has ``://``); a slug is returned as it is."""
    return source_slug(source) if "://" in source else source


def conversion_folder(source: str, key: str) -> str:
    """Return the folder of one conversion."""
    return f"conversions/{source_slug(source)}/{key}"


def channel_folder(source: str, variant: Variant, channel: str) -> str:
    """Return the folder of a channel.

    Raises:
        ValueError: the channel's name can't be one path segment.
    """
    return slug_folder(source_slug(source), variant.label, check_channel(channel))


def slug_folder(slug: str, label: str, channel: str) -> str:
    """Return the folder of a channel under a source's slug or a name."""
    return f"channels/{slug}/{label}/{channel}"


def check_channel(channel: str) -> str:
    """Return the channel's name if it is one.

    Raises:
        ValueError: it has anything but lower-case letters, digits and inner hyphens.
    """
    if not _CHANNEL.fullmatch(channel):
        raise ValueError(
            f"channel: expected lower-case letters, digits and hyphens such as 'latest', "
            f"got {channel!r}"
        )
    return channel


def check_reason(reason: str) -> str:
    """Return the reason of a withdrawal if it can be one.

    Raises:
        ValueError: it is empty, longer than 500 characters, or more than one line of plain text.
    """
    if reason.strip() and reason.isprintable() and len(reason) <= LONGEST_REASON:
        return reason
    raise ValueError(
        f"reason: expected one line of 1 to {LONGEST_REASON} printable characters, got "
        f"{len(reason)}: {reason[:80]!r}"
    )


def parse_label(label: str) -> Variant | None:
    """Return the variant that a folder's name states; None: it is not a variant's folder."""
    match = _LABEL.fullmatch(label)
    if match is None:
        return None
    task, backend, dtype, batch = match.groups()
    return Variant(task=task, backend=backend, dtype=dtype, batch=int(batch))


def read_current(store: ReadableStore, folder: str) -> tuple[int, ChannelEntry] | None:
    """Return the newest number of a channel and its entry; None: nothing was published.

    Raises:
        ManifestError: the entry is malformed.
    """
    numbers = channel_numbers.list_numbers(store, folder)
    if not numbers:
        return None
    return numbers[-1], read_entry(store, folder, numbers[-1])


def read_entry(store: ReadableStore, folder: str, number: int) -> ChannelEntry:
    """Return the entry at one number of a channel.

    Raises:
        ManifestError: it is missing or malformed.
    """
    path = entry_path(folder, number)
    try:
        raw = json.loads(store.read(path))
    except FileNotFoundError as error:
        raise ManifestError(
            f"{path}: expected this number of the channel, got none: it was removed. `tracefleet "
            "log` shows the numbers that are there; `tracefleet rollback --number` makes one of "
            "them current."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path}: expected JSON, got {error}. The channel is damaged; publish again."
        ) from error
    if isinstance(raw, dict):
        raw = {**dict.fromkeys(_OPTIONAL), **raw}
    return decode(ChannelEntry, raw, where=path)


def advance(
    store: Store, folder: str, *, manifest_digest: str, key: str, source: str | None = None
) -> int:
    """Make a conversion the current one and return its number; do nothing if it is already.

    Raises:
        ManifestError: the channel's newest entry is malformed, or has the last number there is.
        StoreError: the store can't be written to.
    """
    for _ in range(channel_numbers.MOST_LOST):
        number = None
        newest = read_current(store, folder)
        if newest is not None:
            number, entry = newest
            if entry.manifest == manifest_digest:
                return number
        following = append(
            store,
            folder,
            after=number,
            manifest_digest=manifest_digest,
            key=key,
            previous=number,
            source=source,
        )
        if following is not None:
            return following
        # Another publisher took the number: read its entry and decide again.
    raise channel_numbers.refuse_races(folder)


def append(
    store: Store,
    folder: str,
    *,
    after: int | None,
    manifest_digest: str,
    key: str,
    previous: int | None,
    withdrawn: str | None = None,
    source: str | None = None,
) -> int | None:
    """Write the number that follows ``after``; return it, or None if another writer took it.

    Raises:
        ManifestError: no number follows.
    """
    following = channel_numbers.find_following(folder, after or 0)
    entry = ChannelEntry(
        manifest=manifest_digest,
        key=key,
        previous=previous,
        nonce=secrets.token_hex(16),
        withdrawn=withdrawn,
        source=source,
    )
    path = entry_path(folder, following)
    return following if store.put_new(path, entry.to_bytes()) else None


def entry_path(folder: str, number: int) -> str:
    """Return the path of one number of a channel."""
    return f"{folder}/{number:010d}.json"


def find_variants(
    store: ReadableStore, source: str | None = None, *, after: str = ""
) -> Iterator[Published]:
    """Yield every channel in the store, or those of one source or slug, in order, lazily.

    Args:
        store: store to search.
        source: source exactly as it was published, its slug, or a name; None: all.
            (`published.find` takes a source in any of its forms.)
        after: folder of a channel (``Published.folder``); only later ones are found.
    """
    if source is not None and not _SLUG.fullmatch(slug_of(source)):
        return
    prefix = "channels" if source is None else f"channels/{slug_of(source)}"
    last = f"{after}/~" if after else ""  # sorts after every number of that channel
    paths = (file.path for file in store.walk(prefix, after=last))
    known = filter(None, map(channel_numbers.parse_entry_path, paths))
    for folder, numbers in itertools.groupby(known, key=lambda entry: entry[0]):
        _, slug, label, channel = folder.split("/")
        if parse_label(label) is not None:
            newest = max(number for _, number in numbers)
            yield Published(slug, label, channel, newest)
