"""What is published: choose one conversion by name, trust nothing, check every byte.

The chain of trust is channel entry -> manifest -> files, each link a sha256. The reader and the
command line choose with ``select`` and check with ``load_manifest`` and ``open_verified``.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from tracefleet.channel import (
    ChannelEntry,
    Published,
    check_channel,
    entry_path,
    find_variants,
    parse_label,
    read_entry,
    slugs_of,
    source_slug,
)
from tracefleet.errors import (
    DigestMismatchError,
    ManifestError,
    NoSuchVariantError,
    StoreError,
)
from tracefleet.manifest import CANDIDATE, MANIFEST, Manifest, parse
from tracefleet.manifest_types import FileEntry
from tracefleet.source import normalise
from tracefleet.store import ReadableStore, open_store

#: How many of a store's sources an error lists.
_CHOICES_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The current conversion of one channel, not checked yet.

    Attributes:
        published: the source's slug, the variant's label, the channel and its newest number.
        entry: what that number says.
    """

    published: Published
    entry: ChannelEntry

    @property
    def number(self) -> int:
        """Which number of the channel is current."""
        return self.published.number

    @property
    def folder(self) -> str:
        """The conversion's folder in the store."""
        return f"conversions/{self.published.slug}/{self.entry.key}"

    @property
    def manifest_path(self) -> str:
        """The manifest's path in the store, if the conversion was validated."""
        return f"{self.folder}/{MANIFEST}"

    def path_of(self, file: FileEntry) -> str:
        """Return a file's path in the store."""
        return f"{self.folder}/{file.path}"


def as_store(store: str | Path | ReadableStore) -> ReadableStore:
    """Return ``store`` itself, or the store at that URL or path."""
    return open_store(store) if isinstance(store, str | Path) else store


def find(
    store: ReadableStore,
    source: str | Path | None = None,
    *,
    task: str | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    channel: str | None = None,
    after: str = "",
) -> Iterator[Published]:
    """Yield every published channel that fits what is given; None fits everything.

    Reads are lazy, a thousand channels at a time; ``after`` is a `Published.folder`. Of the
    spellings that ``source`` may be published under, the first one under which something fits
    counts.
    """
    wanted = {"task": task, "backend": backend, "dtype": dtype, "batch": batch}
    for slug in _slugs(source, after):
        found = find_variants(store, slug, after=after)
        fitting = (one for one in found if _fits(one, channel, wanted))
        if (first := next(fitting, None)) is not None:
            yield first
            yield from fitting
            return


def _slugs(source: str | Path | None, after: str) -> list[str] | list[None]:
    if source is None:
        return [None]
    slugs = slugs_of(source)
    # The next page is of the spelling that the last one was of.
    return [slug for slug in slugs if after.startswith(f"channels/{slug}/")] or slugs


def _fits(published: Published, channel: str | None, wanted: dict[str, Any]) -> bool:
    variant = parse_label(published.variant)
    return channel in (None, published.channel) and all(
        value is None or getattr(variant, name) == value for name, value in wanted.items()
    )


def select(
    store: ReadableStore,
    source: str | Path,
    *,
    task: str | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    channel: str = "latest",
) -> Selection:
    """Return the one current conversion that fits what is given.

    Args:
        store: where to look.
        source: the checkpoint's name, in any way to write it, or its slug.
        task: of the variant; as for the next three, None takes any if only one is published.
        backend: of the variant.
        dtype: of the variant.
        batch: of the variant.
        channel: which channel's newest number.

    Raises:
        NoSuchVariantError: none or several fit; says what is there and what to add.
        ManifestError: the channel's entry is malformed.
    """
    check_channel(channel)
    wanted = {"task": task, "backend": backend, "dtype": dtype, "batch": batch, "channel": channel}
    fitting = list(
        find(store, source, task=task, backend=backend, dtype=dtype, batch=batch, channel=channel)
    )
    if len(fitting) != 1:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items() if value is not None)
        raise NoSuchVariantError(_choices(store, source, fitting, asked))
    return resolve(store, fitting[0])


def resolve(store: ReadableStore, published: Published) -> Selection:
    """Return what a channel's newest number points to.

    Raises:
        ManifestError: the channel's entry is malformed.
    """
    entry = read_entry(store, published.folder, published.number)
    return Selection(published=published, entry=entry)


def _choices(store: ReadableStore, source: str | Path, fitting: list[Published], asked: str) -> str:
    if len(fitting) > 1:
        variants = [parse_label(one.variant) for one in fitting]
        differing = [
            name
            for name in ("task", "backend", "dtype", "batch")
            if len({getattr(variant, name) for variant in variants}) > 1
        ]
        labels = ", ".join(one.variant for one in fitting)
        return (
            f"{source}: expected one variant for {asked}, got {len(fitting)}: {labels}. "
            f"Add {' or '.join(differing)}."
        )
    slugs = slugs_of(source)
    there = [one for slug in slugs for one in find_variants(store, slug)]
    if there:
        labels = ", ".join(f"{one.variant} (channel {one.channel})" for one in there)
        return f"{source}: nothing published for {asked}; {store.url} holds {labels}."
    some = list(itertools.islice(find_variants(store), _CHOICES_SHOWN + 1))
    others = sorted({one.slug for one in some[:_CHOICES_SHOWN]})
    more = ", …" if len(some) > _CHOICES_SHOWN else ""
    held = ", ".join(others) + more if others else "nothing at all"
    return (
        f"{source}: no conversion is published in {store.url} ({_reading(source)}; looked for "
        f"{', '.join(slugs)}); it holds {held}. Convert the source first, or give one of those."
    )


def _reading(source: str | Path) -> str:
    try:
        return f"read as {normalise(source)}"
    except ValueError as error:
        return f"no name: {error}"


def load_manifest(store: ReadableStore, selection: Selection) -> Manifest:
    """Return the checked manifest of a selection.

    Raises:
        DigestMismatchError: its bytes are not those the channel names.
        ManifestError: it is missing, malformed, or of another conversion.
    """
    path, data = _manifest_bytes(store, selection)
    manifest = parse(data)
    if manifest.to_bytes() != data:
        raise ManifestError(
            f"{path}: expected canonical JSON (sorted, no spaces, each field once), got another "
            "form. It was not written by tracefleet; convert the checkpoint again."
        )
    published = selection.published
    file = path.rpartition("/")[2]
    for name, expected, found in (
        ("file name for its verdict", manifest.file_name, file),
        ("key", selection.entry.key, manifest.key),
        ("source's slug", published.slug, source_slug(manifest.source)),
        ("variant", published.variant, manifest.variant.label),
    ):
        if found != expected:
            raise ManifestError(
                f"{path}: {name} expected {expected}, got {found}. It was published under another "
                "conversion's name; do not use it."
            )
    return manifest


def _manifest_bytes(store: ReadableStore, selection: Selection) -> tuple[str, bytes]:
    """Return the manifest that the channel's entry binds: of a conversion, or of a candidate."""
    found: dict[str, str] = {}
    for path in (selection.manifest_path, f"{selection.folder}/{CANDIDATE}"):
        try:
            data = store.read(path)
        except FileNotFoundError:
            continue
        found[path] = hashlib.sha256(data).hexdigest()
        if found[path] == selection.entry.manifest:
            return path, data
    if found:
        path, got = next(iter(found.items()))
        raise DigestMismatchError(path, expected=selection.entry.manifest, got=got)
    raise ManifestError(
        f"{store.url}/{selection.manifest_path}: the channel names this manifest, but it is "
        "missing. Restore it from a copy, or convert the checkpoint again."
    )


def open_verified(store: ReadableStore, selection: Selection, file: FileEntry) -> BufferedReader:
    """Open a file every byte of which was checked through the handle that is handed out.

    Raises:
        DigestMismatchError: the bytes are not those the manifest names.
        StoreError: the file is missing or can't be read.
    """
    with needed(store, selection, file) as path:
        return store.open_checked(path, size=file.size, sha256=file.sha256)


def remember(store: ReadableStore, selection: Selection, manifest: Manifest) -> None:
    """Let the cache keep what was chosen and checked, to choose it again without a network."""
    published = selection.published
    store.cache_selection(
        {
            entry_path(published.folder, published.number): selection.entry.to_bytes(),
            f"{selection.folder}/{manifest.file_name}": manifest.to_bytes(),
        }
    )


@contextmanager
def needed(store: ReadableStore, selection: Selection, file: FileEntry) -> Iterator[str]:
    """Yield a file's path in the store, and say so if it turns out to be missing there."""
    path = selection.path_of(file)
    try:
        yield path
    except FileNotFoundError as error:
        raise StoreError(
            f"{store.url}/{path}: expected {file.size} bytes, but it is not there: {error}. "
            "Restore it from a copy, or convert the checkpoint again."
        ) from error
