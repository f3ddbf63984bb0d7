"""Check every byte of a published conversion and report what is damaged.

Called by ``tracefleet verify`` and by programs that monitor a store.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracefleet.channel import Published, entry_path
from tracefleet.errors import ArtifactError, DigestMismatchError
from tracefleet.manifest_types import FileEntry
from tracefleet.published import Selection, load_manifest, resolve
from tracefleet.store import ReadableStore
from tracefleet.store.offline import OfflineStore
from tracefleet.store.streams import CheckedSink


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """Result of checking one file of the store.

    Attributes:
        path: path of the file, relative to the store's root.
        expected: expected sha256, or a description of what was expected.
        got: sha256 of the file, or a description of what was found.
        withdrawn: of a channel's entry: why its conversion was withdrawn; None: it was not.
    """

    path: str
    expected: str
    got: str
    withdrawn: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the file is as expected."""
        return self.expected == self.got

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected} got {self.got}"


def verify(
    store: ReadableStore, published: Published, *, known: dict[str, FileCheck] | None = None
) -> list[FileCheck]:
    """Check the channel entry, the manifest and every file of a channel's current conversion.

    Damage is in the results and is not raised, so that one call reports all of it. A withdrawn
    conversion is no damage: the check of the channel's entry carries the reason.

    Args:
        store: store of the channel.
        published: the channel, of a source or a name.
        known: checks of files that other channels led to, by path; what is missing is added.

    Raises:
        StoreError: with ``TRACEFLEET_OFFLINE`` only the cache can be read, not the store.
    """
    if isinstance(store, OfflineStore):
        raise store.refusal(f"to read {published.folder} from the store itself")
    try:
        selection = resolve(store, published)
        manifest = load_manifest(store, selection, allow_withdrawn=True)
    except DigestMismatchError as error:
        return [FileCheck(path=error.path, expected=error.expected, got=error.got)]
    except ArtifactError as error:
        expected = "a channel entry and manifest that can be read"
        return [FileCheck(path=published.folder, expected=expected, got=str(error))]
    digest = selection.entry.manifest
    known = {} if known is None else known
    for file in manifest.published:
        if selection.path_of(file) not in known:
            known[selection.path_of(file)] = _check(store, selection, file)
    path, entry = entry_path(published.folder, selection.number), f"number {selection.number}"
    return [
        FileCheck(path=path, expected=entry, got=entry, withdrawn=selection.entry.withdrawn),
        FileCheck(path=f"{selection.folder}/{manifest.file_name}", expected=digest, got=digest),
        *(known[selection.path_of(file)] for file in manifest.published),
    ]


def _check(store: ReadableStore, selection: Selection, file: FileEntry) -> FileCheck:
    path = selection.path_of(file)
    # copy_out bypasses the cache: a good copy there proves nothing about the store.
    sink = CheckedSink(f"{store.url}/{path}", size=file.size)
    try:
        store.copy_out(path, sink)
        sink.check(size=file.size, sha256=file.sha256)
        got = file.sha256
    except DigestMismatchError as error:
        got = error.got
    except (ArtifactError, OSError) as error:
        got = f"({error})"
    return FileCheck(path=path, expected=file.sha256, got=got)
