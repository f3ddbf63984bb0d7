"""Durable files, and folders that other processes create and remove meanwhile.

``tracefleet.store.folder`` and the cache are built on it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from tracefleet.store.streams import check_digest

TEMP_PREFIX = ".tmp-"
_FLUSH_SECONDS = 0.2
_BLOCK_BYTES = 1 << 18


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return _hash_rest(file)


def open_checked(file: Path, path: str, *, size: int, sha256: str) -> BufferedReader:
    """Open a file after a check of every byte through the handle that is returned.

    Args:
        file: file to open.
        path: its path in the store, for the error.
        size: expected number of bytes.
        sha256: expected digest.

    Raises:
        DigestMismatchError: the bytes don't have that digest.
    """
    handle = file.open("rb")
    try:
        digest = _hash_rest(handle)
        check_digest(path, (size, sha256), (handle.tell(), digest))
        handle.seek(0)
    except BaseException:
        handle.close()
        raise
    return handle


def _hash_rest(file: BufferedReader) -> str:
    """Return the sha256 of the rest of a file."""
    # hashlib.file_digest came with Python 3.11; Inf1 hosts have 3.10.
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    while size := file.readinto(buffer):
        digest.update(buffer[:size])
    return digest.hexdigest()


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and its parents while they are empty; the root and its folders stay."""
    with suppress(OSError):  # not empty, or another process was first
        while folder.parent.is_relative_to(root) and folder.parent != root:
            folder.rmdir()
            folder = folder.parent


def create_file(temp: Path) -> BinaryIO:
    """Create a file and its folder."""
    # Repeated: `FileStore.remove` may remove the empty folder before the file is created.
    for _ in range(100):
        with suppress(FileNotFoundError):
            make_folder(temp.parent)
            return temp.open("xb")
    raise OSError(errno.EBUSY, "the folder is removed again and again", str(temp.parent))


def make_folder(folder: Path) -> None:
    """Create a folder and its parents unless they exist; a file at that path is an error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # Not FileExistsError: callers take that for a lost race, which is no failure.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def name_temp(folder: Path) -> Path:
    """Return a unique path for a temporary file."""
    return folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"


def discard(temp: Path) -> None:
    """Remove a temporary file, if it exists."""
    # Its folder may be a file: then it was never created, and creating it has raised the error.
    with suppress(NotADirectoryError):
        temp.unlink(missing_ok=True)


def flush(file: BinaryIO) -> None:
    """Write a file's buffers to the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def flushing(file: BinaryIO) -> Iterator[None]:
    """Write a file's buffers to the disk while it is filled, so that little is left for `flush`.

    Raises:
        OSError: the disk failed. The system reports that only once, and to the flushing thread.
    """
    done = threading.Event()
    failed: list[OSError] = []

    def run() -> None:
        while not failed and not done.wait(_FLUSH_SECONDS):
            try:
                os.fdatasync(file.fileno())
            except OSError as error:
                failed.append(error)

    flusher = threading.Thread(target=run, daemon=True)
    flusher.start()
    try:
        yield
    finally:
        done.set()
        flusher.join()
    if failed:
        raise failed[0]


def sync(folder: Path) -> None:
    """Write a folder's entries to the disk: without it a power cut can remove a new file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(root: Path) -> int:
    """Return the free bytes of a folder's file system; the folder need not exist yet."""
    folder = next(parent for parent in (root, *root.parents) if parent.is_dir())
    return shutil.disk_usage(folder).free
