"""Copy a conversion out of a store, for machines that serve without one.

The copy is a folder with the manifest and every file: a Triton model repository, or what a C++
program opens. Called by the command line and by deployment scripts.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from io import BufferedReader
from pathlib import Path

from tracefleet.errors import DigestMismatchError, StoreError
from tracefleet.file_store import CHUNK, TEMP_PREFIX
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, load_manifest, open_file
from tracefleet.store import Store


def pull(store: Store, selection: Selection, target: Path) -> Manifest:
    """Copy a conversion's folder, checked, to ``target``, which appears whole or not at all.

    Raises:
        StoreError: ``target`` is there already and not an empty folder, or can't be written.
        DigestMismatchError: a file in the store is damaged.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
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
    return manifest


def _copy_all(store: Store, selection: Selection, manifest: Manifest, folder: Path) -> None:
    for file in manifest.files:
        copy = folder / file.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open_file(store, selection, file) as handle:
            got = _copy(handle, copy)
        if got != file.sha256:
            raise DigestMismatchError(selection.path_of(file), expected=file.sha256, got=got)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def _copy(handle: BufferedReader, copy: Path) -> str:
    """Copy a file and return the digest of the bytes that were written, read once."""
    digest = hashlib.sha256()
    with copy.open("xb") as out:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()
