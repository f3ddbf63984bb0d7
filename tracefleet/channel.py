"""Channels: which conversion is current, as a numbered log that only grows.

A channel is a folder of ``0000000001.json``, ``0000000002.json``, …; the highest number is
current. Each number is created once and never changed, so two publishers can't lose each other's
update, and a rollback is a new number that points to an older key. Publishers call ``advance``,
readers ``current`` and ``find_variants``.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass
from typing import NamedTuple

from tracefleet.decode import decode
from tracefleet.errors import ManifestError
from tracefleet.manifest import Variant, canonical_json
from tracefleet.store import Store

_ENTRY_NAME = re.compile(r"([0-9]{10})\.json")
_CHANNEL = re.compile(r"[a-z0-9][a-z0-9-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)\.([a-z0-9-]+)\.b([1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True)
class ChannelEntry:
    """One number of a channel.

    Attributes:
        manifest: sha256 of the manifest's bytes.
        key: the conversion key, which is the conversion folder's name.
        previous: the number before this one, None for the first.
        nonce: random, so that a writer whose answer was lost can tell its own entry.
    """

    manifest: str
    key: str
    previous: int | None
    nonce: str

    def __post_init__(self) -> None:
        """Refuse what can't be a digest: the key becomes part of a path."""
        for name, value in (("manifest", self.manifest), ("key", self.key)):
            if not _SHA256.fullmatch(value):
                raise ManifestError(
                    f"channel entry: {name} expected 64 hex digits, got {value!r}. The entry was "
                    "edited; publish again."
                )


class Published(NamedTuple):
    """Something that can be opened: a channel of a variant of a source."""

    slug: str
    variant: str
    channel: str

    @property
    def folder(self) -> str:
        """The channel's folder in the store."""
        return f"channels/{self.slug}/{self.variant}/{self.channel}"


def source_slug(source: str) -> str:
    """Return the folder name of a source: readable, and no two sources share one."""
    scheme, _, rest = source.rpartition("://")
    parts = [part for part in rest.split("/") if part]
    readable = ".".join([scheme, *(parts if scheme == "hf" else parts[-1:])])
    safe = re.sub(r"[^a-z0-9._-]+", "-", readable.lower()).strip(".-")[-80:].strip(".-")
    return f"{safe or 'source'}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def slug_of(source: str) -> str:
    """Return the slug of ``source``, which may be a source (it has ``://``) or a slug already."""
    return source_slug(source) if "://" in source else source


def conversion_folder(source: str, key: str) -> str:
    """Return the folder of one conversion."""
    return f"conversions/{source_slug(source)}/{key}"


def channel_folder(source: str, variant: Variant, channel: str) -> str:
    """Return the folder of a channel.

    Raises:
        ValueError: the channel's name can't be one path segment.
    """
    return Published(source_slug(source), variant.label, check_channel(channel)).folder


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


def parse_label(label: str) -> Variant | None:
    """Return the variant that a folder name stands for, None for a folder that is no variant."""
    match = _LABEL.fullmatch(label)
    if match is None:
        return None
    task, backend, dtype, batch = match.groups()
    return Variant(task=task, backend=backend, dtype=dtype, batch=int(batch))


def current(store: Store, folder: str) -> tuple[int, ChannelEntry] | None:
    """Return the newest number of a channel and its entry, None if nothing was published.

    Raises:
        ManifestError: the entry is malformed.
    """
    numbers = [int(m[1]) for name in store.names(folder) if (m := _ENTRY_NAME.fullmatch(name))]
    if not numbers:
        return None
    path = entry_path(folder, max(numbers))
    try:
        raw = json.loads(store.read(path))
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path}: expected JSON, got {error}. The channel is damaged; publish again."
        ) from error
    return max(numbers), decode(ChannelEntry, raw, where=path)


def advance(store: Store, folder: str, *, manifest_digest: str, key: str) -> int:
    """Make a conversion the current one and return its number; the same one again is no change.

    Raises:
        ManifestError: the channel's newest entry is malformed.
        StoreError: the store can't be written to.
    """
    while True:
        newest = current(store, folder)
        number, entry = newest if newest else (None, None)
        if number is not None and entry is not None and entry.manifest == manifest_digest:
            return number
        mine = ChannelEntry(
            manifest=manifest_digest, key=key, previous=number, nonce=secrets.token_hex(16)
        )
        following = (number or 0) + 1
        if store.put_new(entry_path(folder, following), canonical_json(asdict(mine))):
            return following
        # Another publisher took the number: look at what it published and decide again.


def entry_path(folder: str, number: int) -> str:
    """Return the path of one number of a channel."""
    return f"{folder}/{number:010d}.json"


def find_variants(store: Store, source: str | None = None) -> list[Published]:
    """Return every channel in the store, or those of one source or slug, sorted."""
    slugs = store.names("channels")
    if source is not None:
        slugs = [slug for slug in slugs if slug == slug_of(source)]
    return [
        Published(slug, label, channel)
        for slug in slugs
        for label in store.names(f"channels/{slug}")
        if parse_label(label) is not None
        for channel in store.names(f"channels/{slug}/{label}")
    ]
