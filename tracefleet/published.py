"""Published conversions: select one by name and check every byte of it.

The chain of trust is channel entry -> manifest -> files, each link a sha256. The reader and the
command line use ``select``, then ``load_manifest`` and ``open_verified``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from tracefleet.channel import check_channel, entry_path, source_slug
from tracefleet.choices import list_choices
from tracefleet.errors import (
    ArtifactError,
    DigestMismatchError,
    ManifestError,
    NoSuchVariantError,
    StoreError,
    WithdrawnError,
)
from tracefleet.finding import Selection, find, find_only_source, resolve
from tracefleet.manifest import CANDIDATE, Manifest, parse
from tracefleet.manifest_types import FileEntry
from tracefleet.names import is_name
from tracefleet.store import ReadableStore, open_store

__all__ = [
    "Selection",
    "as_store",
    "cache_selection",
    "explaining_missing",
    "find",
    "load_manifest",
    "open_verified",
    "resolve",
    "select",
]


def as_store(store: str | Path | ReadableStore) -> ReadableStore:
    """Return ``store`` itself, or the store at that URL or path."""
    return open_store(store) if isinstance(store, str | Path) else store


def select(
    store: ReadableStore,
    source: str | Path | None = None,
    *,
    task: str | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    channel: str = "latest",
) -> Selection:
    """Return the one current conversion that fits what is given.

    Args:
        store: store to search.
        source: name that the conversion is published under, the checkpoint in any of its forms,
            or its slug; None: the only source that fits.
        task: the variant's task; None, here and for the next three, takes the only one published.
        backend: the variant's backend.
        dtype: the variant's dtype.
        batch: the variant's batch.
        channel: channel whose newest number is selected.

    Raises:
        NoSuchVariantError: none or several fit; the message lists what is published.
        ManifestError: the channel's entry is malformed.
    """
    check_channel(channel)
    wanted = {"task": task, "backend": backend, "dtype": dtype, "batch": batch, "channel": channel}
    source = find_only_source(store, **wanted) if source is None else source
    fitting = list(
        find(store, source, task=task, backend=backend, dtype=dtype, batch=batch, channel=channel)
    )
    if len(fitting) != 1:
        filters = [f"{name}={value}" for name, value in wanted.items() if value is not None]
        raise NoSuchVariantError(list_choices(store, source, fitting, ", ".join(filters)))
    return resolve(store, fitting[0])


def load_manifest(
    store: ReadableStore, selection: Selection, *, allow_withdrawn: bool = False
) -> Manifest:
    """Return the checked manifest of a selection.

    Args:
        store: store of the selection.
        selection: the conversion.
        allow_withdrawn: whether to return that of a withdrawn conversion, to tell about it.

    Raises:
        WithdrawnError: the conversion was withdrawn.
        DigestMismatchError: its bytes don't have the digest in the channel's entry.
        ManifestError: it is missing, malformed, or of another conversion.
    """
    if selection.entry.withdrawn is not None and not allow_withdrawn:
        raise _refuse_withdrawn(store, selection, selection.entry.withdrawn)
    path, data = _read_manifest(store, selection)
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
        _expect_address(selection, manifest),
        ("variant", published.variant, manifest.variant.label),
    ):
        if found != expected:
            raise ManifestError(
                f"{path}: {name} expected {expected}, got {found}. It was published under another "
                "conversion's name; do not use it."
            )
    return manifest


def _expect_address(selection: Selection, manifest: Manifest) -> tuple[str, str, str]:
    """Return what is compared, what it has to be and what it is."""
    slug, source = selection.published.slug, selection.entry.source
    if source is None:
        return "source's slug", slug, source_slug(manifest.source)
    if not is_name(slug):
        return "channel entry of a source", f"none of another source in {slug}", source
    return "source that the name stands for", source, manifest.source


def _refuse_withdrawn(store: ReadableStore, selection: Selection, reason: str) -> WithdrawnError:
    published = selection.published
    return WithdrawnError(
        f"{_name_source(store, selection)} {published.variant}: what channel "
        f"{published.channel!r} points to (number {published.number}, {selection.entry.key[:12]}) "
        f"was withdrawn: {reason}. Nothing was loaded. Convert the checkpoint again with other "
        "versions, roll the channel back (`tracefleet rollback`), or open another channel.",
        reason=reason,
    )


def _name_source(store: ReadableStore, selection: Selection) -> str:
    """Return the source, or its slug if the manifest can't be read."""
    try:
        return load_manifest(store, selection, allow_withdrawn=True).source
    except ArtifactError:
        return selection.published.slug


def _read_manifest(store: ReadableStore, selection: Selection) -> tuple[str, bytes]:
    """Return path and bytes of the manifest or candidate with the digest in the channel's entry."""
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
    """Open a file after checking every byte of it through the handle that is returned.

    Raises:
        DigestMismatchError: the bytes don't have the digest in the manifest.
        StoreError: the file is missing or can't be read.
    """
    with explaining_missing(store, selection, file) as path:
        return store.open_checked(path, size=file.size, sha256=file.sha256)


def cache_selection(store: ReadableStore, selection: Selection, manifest: Manifest) -> None:
    """Cache a channel's entry and its manifest, so that they can be selected without a network."""
    published = selection.published
    store.cache_selection(
        {
            entry_path(published.folder, published.number): selection.entry.to_bytes(),
            f"{selection.folder}/{manifest.file_name}": manifest.to_bytes(),
        }
    )


@contextmanager
def explaining_missing(
    store: ReadableStore, selection: Selection, file: FileEntry
) -> Iterator[str]:
    """Yield a file's path in the store; raise a `StoreError` if the file is missing there."""
    path = selection.path_of(file)
    try:
        yield path
    except FileNotFoundError as error:
        raise StoreError(
            f"{store.url}/{path}: expected {file.size} bytes, but it is not there: {error}. "
            "Restore it from a copy, or convert the checkpoint again."
        ) from error
