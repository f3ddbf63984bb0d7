"""Files that last and folders that come and go: what ``tracefleet.store.folder`` is made of."""

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
        return _sha256(file)


def open_checked(file: Path, path: str, *, size: int, sha256: str) -> BufferedReader:
    """Open a file after a check of every byte through the handle that is returned.

    Args:
        file: the file.
        path: its path in the store, for the error.
        size: in bytes.
        sha256: what it must be.

    Raises:
        DigestMismatchError: the bytes are not the promised ones.
    """
    handle = file.open("rb")
    try:
        digest = _sha256(handle)
        check_digest(path, (size, sha256), (handle.tell(), digest))
        handle.seek(0)
    except BaseException:
        handle.close()
        raise
    return handle


def _sha256(file: BufferedReader) -> str:
    """Digest what is left of a file; ``hashlib.file_digest`` is not on Inf1's Python 3.10."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    while size := file.readinto(buffer):
        digest.update(buffer[:size])
    return digest.hexdigest()


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it as far as they are empty; the topmost ones stay."""
    with suppress(OSError):  # not empty, or another process was first
        while folder.parent.is_relative_to(root) and folder.parent != root:
            folder.rmdir()
            folder = folder.parent


def created(temp: Path) -> BinaryIO:
    """Create a file and its folder, which a `FileStore.remove` may take away in between."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            make_folder(temp.parent)
            return temp.open("xb")
    raise OSError(errno.EBUSY, "the folder is removed again and again", str(temp.parent))


def make_folder(folder: Path) -> None:
    """Create a folder and those above it; one that is there is fine, a file is not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # Told apart from the FileExistsError of a lost race, which is no failure.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def temp_in(folder: Path) -> Path:
    """Return a name for a temporary file that nobody else has."""
    return folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"


def discard(temp: Path) -> None:
    """Remove a temporary file, if it was made at all."""
    # Its folder may be a file: then nothing was made, and the first error says so.
    with suppress(NotADirectoryError):
        temp.unlink(missing_ok=True)


def flush(file: BinaryIO) -> None:
    """Make what was written to a file last."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def flushed_meanwhile(file: BinaryIO) -> Iterator[None]:
    """Bring a file to the disk while it is written, so that little is left for `flush`.

    Raises:
        OSError: the disk did not take it; the system tells that once, and to this thread.
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
    """Make the names in a folder last: without it a new file can vanish in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(root: Path) -> int:
    """Return how much room the file system of a folder, which need not exist yet, has."""
    folder = next(p for p in (root, *root.parents) if p.is_dir())
    return shutil.disk_usage(folder).free
