"""What is published: choose one conversion by name, trust nothing, check every byte.

The chain of trust is channel entry -> manifest -> files, each link a sha256. The reader and the
command line choose with ``select`` and check with ``load_manifest`` and ``open_verified``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from tracefleet.channel import (
    ChannelEntry,
    Published,
    check_channel,
    current,
    find_variants,
    parse_label,
    slug_of,
    source_slug,
)
from tracefleet.errors import (
    DigestMismatchError,
    ManifestError,
    NoSuchVariantError,
    StoreError,
)
from tracefleet.manifest import FileEntry, Manifest, parse
from tracefleet.store import Store, open_store


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The current conversion of one channel, not checked yet.

    Attributes:
        published: the source's slug, the variant's label and the channel.
        number: which number of the channel is current.
        entry: what that number says.
    """

    published: Published
    number: int
    entry: ChannelEntry

    @property
    def folder(self) -> str:
        """The conversion's folder in the store."""
        return f"conversions/{self.published.slug}/{self.entry.key}"

    @property
    def manifest_path(self) -> str:
        """The manifest's path in the store."""
        return f"{self.folder}/manifest.json"

    def path_of(self, file: FileEntry) -> str:
        """Return a file's path in the store."""
        return f"{self.folder}/{file.path}"


def as_store(store: str | Path | Store) -> Store:
    """Return ``store`` itself, or the store at that URL or path."""
    return open_store(store) if isinstance(store, str | Path) else store


def find(
    store: Store,
    source: str | None = None,
    *,
    task: str | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    channel: str | None = None,
) -> list[Published]:
    """Return every published channel that fits what is given; None fits everything."""
    wanted = {"task": task, "backend": backend, "dtype": dtype, "batch": batch}
    return [
        one
        for one in find_variants(store, source)
        if channel in (None, one.channel)
        and all(v is None or getattr(parse_label(one.variant), k) == v for k, v in wanted.items())
    ]


def select(
    store: Store,
    source: str,
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
        source: the source exactly as it was converted, or its slug.
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
    fitting = find(
        store, source, task=task, backend=backend, dtype=dtype, batch=batch, channel=channel
    )
    if len(fitting) != 1:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items() if value is not None)
        raise NoSuchVariantError(_choices(store, source, fitting, asked))
    return resolve(store, fitting[0])


def resolve(store: Store, published: Published) -> Selection:
    """Return what a channel points to now.

    Raises:
        NoSuchVariantError: the channel has no number yet.
        ManifestError: the channel's entry is malformed.
    """
    newest = current(store, published.folder)
    if newest is None:
        raise NoSuchVariantError(
            f"{store.url}/{published.folder}: expected a published number, got an empty channel. "
            "A publisher stopped half-way; run the conversion again."
        )
    return Selection(published=published, number=newest[0], entry=newest[1])


def _choices(store: Store, source: str, fitting: list[Published], asked: str) -> str:
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
    there = find_variants(store, source)
    if there:
        labels = ", ".join(f"{one.variant} (channel {one.channel})" for one in there)
        return f"{source}: nothing published for {asked}; {store.url} holds {labels}."
    slugs = sorted({one.slug for one in find_variants(store)})
    held = ", ".join(slugs) if slugs else "nothing at all"
    return (
        f"{source}: no conversion is published in {store.url} (looked for {slug_of(source)}); it "
        f"holds {held}. Convert the source first, or give one of those."
    )


def load_manifest(store: Store, selection: Selection) -> Manifest:
    """Return the checked manifest of a selection.

    Raises:
        DigestMismatchError: its bytes are not those the channel names.
        ManifestError: it is missing, malformed, or of another conversion.
    """
    path = selection.manifest_path
    try:
        data = store.read(path)
    except FileNotFoundError as error:
        raise ManifestError(
            f"{store.url}/{path}: the channel names this manifest, but it is missing. Restore it "
            "from a copy, or convert the checkpoint again."
        ) from error
    got = hashlib.sha256(data).hexdigest()
    if got != selection.entry.manifest:
        raise DigestMismatchError(path, expected=selection.entry.manifest, got=got)
    manifest = parse(data)
    if manifest.to_bytes() != data:
        raise ManifestError(
            f"{path}: expected canonical JSON (sorted, no spaces, each field once), got another "
            "form. It was not written by tracefleet; convert the checkpoint again."
        )
    published = selection.published
    for name, expected, found in (
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


def open_file(store: Store, selection: Selection, file: FileEntry) -> BufferedReader:
    """Open a file of a conversion, not checked yet.

    Raises:
        StoreError: the file is missing or can't be read.
    """
    path = selection.path_of(file)
    try:
        return store.local(path).open("rb")
    except OSError as error:
        raise StoreError(
            f"{store.url}/{path}: expected {file.size} bytes, but it can't be opened: {error}. "
            "Restore it from a copy, or convert the checkpoint again."
        ) from error


@contextmanager
def open_verified(store: Store, selection: Selection, file: FileEntry) -> Iterator[BufferedReader]:
    """Open a file whose every byte was checked through the handle that is handed out.

    Raises:
        DigestMismatchError: the bytes are not those the manifest names.
        StoreError: the file is missing or can't be read.
    """
    with open_file(store, selection, file) as handle:
        got = hashlib.file_digest(handle, "sha256").hexdigest()
        if got != file.sha256:
            raise DigestMismatchError(selection.path_of(file), expected=file.sha256, got=got)
        if handle.tell() != file.size:
            raise ManifestError(
                f"{selection.path_of(file)}: the manifest says {file.size} bytes, but the file "
                f"that its digest names has {handle.tell()}. Convert the checkpoint again."
            )
        handle.seek(0)
        yield handle
