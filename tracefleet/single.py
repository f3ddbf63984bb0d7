"""A store of one conversion: what of a store has to be copied so that a reader can open the copy.

The copy has the paths of the store that it was made of: the channel's current number, the manifest
that this number names, and its files. So every digest is checked as in the store itself. Forms that
travel carry it: an archive for SageMaker, a repository on the Hugging Face hub.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracefleet.channel import entry_path
from tracefleet.devices import find_verdicts, verdict_path
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import FileEntry
from tracefleet.published import Selection, load_manifest
from tracefleet.store import ReadableStore


@dataclass(frozen=True, kw_only=True)
class SingleStore:
    """What a store of one conversion holds, by its paths in that store.

    Attributes:
        manifest: the conversion's checked manifest.
        small: bytes of the channel's entry, the manifest and the verdicts of further devices.
        files: the conversion's files, whose bytes are in the store that it comes from.
    """

    manifest: Manifest
    small: dict[str, bytes]
    files: dict[str, FileEntry]


def describe(store: ReadableStore, selection: Selection) -> SingleStore:
    """Return what a store of one conversion holds; no file of it is read yet.

    Raises:
        WithdrawnError: the conversion was withdrawn.
        DigestMismatchError: the manifest is not the one that the channel names.
        ManifestError: the manifest or a device's verdict is malformed.
    """
    manifest, published = load_manifest(store, selection), selection.published
    small = {
        entry_path(published.folder, published.number): selection.entry.to_bytes(),
        f"{selection.folder}/{manifest.file_name}": manifest.to_bytes(),
    }
    for verdict in find_verdicts(store, selection.folder, manifest):
        path = verdict_path(selection.folder, manifest, verdict.device)
        small[path] = verdict.to_bytes()
    files = {selection.path_of(file): file for file in manifest.published}
    return SingleStore(manifest=manifest, small=small, files=files)
