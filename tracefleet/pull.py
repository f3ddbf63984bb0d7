"""Copy a conversion out of a store, for machines that serve without access to one.

The copy is a folder with the manifest and every file, which Triton takes as a model repository and
a C++ program can open. Called by the command line and by deployment scripts.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from tracefleet.errors import StoreError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, cache_selection, explaining_missing, load_manifest
from tracefleet.store import ReadableStore
from tracefleet.store.durable import TEMP_PREFIX


def pull(store: ReadableStore, selection: Selection, target: Path) -> Manifest:
    """Copy a conversion's folder, checked, to ``target``, which appears complete or not at all.

    Raises:
        WithdrawnError: the conversion was withdrawn.
        StoreError: ``target`` exists and is not an empty folder, or can't be written.
        DigestMismatchError: a file in the store is damaged.
    """
    if target.exists() and not target.is_dir():
        raise StoreError(f"{target}: expected no folder or an empty one, got a file. Name another.")
    if target.exists() and any(target.iterdir()):
        raise StoreError(
            f"{target}: expected no folder or an empty one, got one with contents. Choose another "
            "folder, or empty this one."
        )
    manifest = load_manifest(store, selection)
    temp = target.absolute().parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
    try:
        temp.mkdir(parents=True)
        _copy_all(store, selection, manifest, temp)
        temp.rename(target.absolute())
    except OSError as error:
        raise StoreError(
            f"{target}: can't write the conversion there: {error}. Nothing was left behind."
        ) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    cache_selection(store, selection, manifest)
    return manifest


def _copy_all(store: ReadableStore, selection: Selection, manifest: Manifest, folder: Path) -> None:
    for file in manifest.published:
        copy = folder / file.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        with explaining_missing(store, selection, file) as path:
            store.download_to(path, copy, size=file.size, sha256=file.sha256)
    (folder / manifest.file_name).write_bytes(manifest.to_bytes())
