"""The user's cache of published files: by digest, shared by all processes, limited in size.

``blobs/ab/<sha256>`` has a file's bytes, whatever its name and store. One process downloads a blob
while the others wait for it; it appears complete, after its digest was checked, and is checked
again each time it is opened, because disks decay. ``stores/`` mirrors the small files (channel
entries and manifests) of conversions that were opened, so that they can be opened again without a
network (``TRACEFLEET_OFFLINE=1``).

Settings: ``TRACEFLEET_CACHE`` is the folder (by default ``~/.cache/tracefleet``),
``TRACEFLEET_CACHE_GB`` the limit of the blobs (by default 50); the least recently used are removed
first. Deleting the folder costs time, nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from tracefleet.errors import DigestMismatchError, StoreError
from tracefleet.store.durable import flush, flushing, open_checked
from tracefleet.store.streams import ArrivingFile, copy

DEFAULT_GB = 50.0
#: Files of at least this size are hard-linked out of the cache; configuration files are smaller.
LINKED_BYTES = 1 << 20
#: A partial download that was not written to for so long was interrupted.
_ABANDONED_SECONDS = 24 * 3600
_PARTIAL = ".part"

logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return the user's cache folder: ``TRACEFLEET_CACHE``, else ``~/.cache/tracefleet``.

    Raises:
        StoreError: there is neither.
    """
    configured = os.environ.get("TRACEFLEET_CACHE", "~/.cache/tracefleet")
    try:
        return Path(configured).expanduser()
    except RuntimeError as error:  # the user of a container may have no home folder
        raise StoreError(
            f"the cache: expected a home folder for {configured}, got: {error} Set "
            "TRACEFLEET_CACHE to a folder that can be written to."
        ) from error


def is_offline() -> bool:
    """Return whether ``TRACEFLEET_OFFLINE`` requests the cache instead of any network."""
    return os.environ.get("TRACEFLEET_OFFLINE", "").lower() not in ("", "0", "false", "no")


def read_limit() -> int:
    """Return the limit of the blobs, in bytes.

    Raises:
        StoreError: ``TRACEFLEET_CACHE_GB`` is not a size.
    """
    text = os.environ.get("TRACEFLEET_CACHE_GB", str(DEFAULT_GB))
    try:
        size = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise StoreError(f"TRACEFLEET_CACHE_GB: expected gigabytes such as 20 or 0.5, got {text!r}")
    return size


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of checked blobs.

    Attributes:
        root: folder of the cache; created by the first download.
        limit: limit of the blobs, in bytes; the one that is being opened is kept in any case.
    """

    root: Path = field(default_factory=cache_root)
    limit: int = field(default_factory=read_limit)

    def mirror(self, url: str) -> Path:
        """Return the folder that mirrors the small files of the store at ``url``."""
        return self.root / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16]

    def blob(self, sha256: str) -> Path:
        """Return the path for the bytes with this digest."""
        return self.root / "blobs" / sha256[:2] / sha256

    def find(self, *, size: int, sha256: str) -> BufferedReader | None:
        """Open a cached blob after checking its every byte; remove it if it is damaged.

        Args:
            size: number of bytes.
            sha256: digest of the bytes.

        Returns:
            The handle through which they were checked; None: they are not in the cache.
        """
        blob = self.blob(sha256)
        try:
            handle = open_checked(blob, str(blob), size=size, sha256=sha256)
        except OSError:
            return None  # missing or unreadable: if it matters, the download reports it
        except DigestMismatchError as error:
            logger.warning("removed from the cache: %s", error)
            with suppress(OSError):
                blob.unlink()
            return None
        with suppress(OSError):
            os.utime(blob)  # eviction goes by this time
        return handle

    def open(
        self, path: str, download: Callable[[ArrivingFile], None], *, size: int, sha256: str
    ) -> BufferedReader:
        """Return a checked handle on the bytes, after downloading them if they are missing.

        Args:
            path: name of the file in messages.
            download: function that writes the bytes, in any order, into the file that it gets.
            size: number of bytes.
            sha256: digest of the bytes.

        Raises:
            DigestMismatchError: other bytes arrived; nothing was kept.
            StoreError: the cache can't be written to.
        """
        handle = self.find(size=size, sha256=sha256)
        if handle is not None:
            return handle
        with self._translating_errors(size), self._locking(sha256[:2], path):
            # Another process may have downloaded it while this one waited for the lock.
            handle = self.find(size=size, sha256=sha256)
            return handle or self._download(path, download, size, sha256)

    def place(self, handle: BufferedReader, target: Path, *, sha256: str) -> None:
        """Create ``target`` with the bytes of a handle that ``find`` or ``open`` returned.

        A large file becomes a hard link to the blob if the file system allows it; others are
        copied, because small ones are configuration files that people may edit in place.
        """
        size = os.fstat(handle.fileno()).st_size
        if size >= LINKED_BYTES and self._link(handle, target, sha256):
            return
        with target.open("xb") as file:
            copy(handle, file)
            flush(file)

    def _link(self, handle: BufferedReader, target: Path, sha256: str) -> bool:
        with suppress(OSError):
            os.link(self.blob(sha256), target)
            if os.path.samestat(os.fstat(handle.fileno()), target.stat()):
                os.fsync(handle.fileno())
                return True
            target.unlink()  # the blob was evicted and downloaded again since
        return False

    def _download(
        self, path: str, download: Callable[[ArrivingFile], None], size: int, sha256: str
    ) -> BufferedReader:
        blob = self.blob(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        self._make_room(size, sha256)
        temp = blob.with_name(f"{sha256}.{secrets.token_hex(4)}{_PARTIAL}")
        try:
            # Opened before the rename, so that the handle is of the file whose bytes were hashed.
            with temp.open("x+b") as file, closing_on_error(temp.open("rb")) as handle:
                arriving = ArrivingFile(path, file.fileno(), size=size)
                with flushing(file):
                    download(arriving)
                arriving.check(size=size, sha256=sha256)
                temp.rename(blob)
        finally:
            temp.unlink(missing_ok=True)
        return handle

    def _make_room(self, size: int, sha256: str) -> None:
        """Remove the least recently used blobs until ``size`` more bytes fit."""
        with self._locking("evict", "the cache"):
            blobs = sorted(self._list_blobs(), key=lambda blob: blob[1].st_mtime)
            excess = sum(stat.st_size for _, stat in blobs) + size - self.limit
            for blob, stat in blobs:
                if excess <= 0:
                    break
                if blob.name != sha256:
                    logger.info("cache: removing %s (%d bytes)", blob.name[:12], stat.st_size)
                    # A process that has it open can go on reading it.
                    blob.unlink(missing_ok=True)
                    excess -= stat.st_size

    def _list_blobs(self) -> Iterator[tuple[Path, os.stat_result]]:
        for blob in (self.root / "blobs").glob("*/*"):
            with suppress(FileNotFoundError):
                stat = blob.stat()
                if not blob.name.endswith(_PARTIAL):
                    yield blob, stat
                elif time.time() - stat.st_mtime > _ABANDONED_SECONDS:
                    blob.unlink()

    @contextmanager
    def _locking(self, name: str, what: str) -> Iterator[None]:
        """Hold a lock that the system releases if this process dies."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: waiting for another process that is downloading", what)
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # Closing is not enough: a child that was forked meanwhile shares the lock.
                fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _translating_errors(self, size: int) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise  # part of a store's interface: there is no such file in it
        except OSError as error:
            raise StoreError(
                f"cache {self.root}: can't keep {size} bytes there: {error}. Free some space, or "
                "set TRACEFLEET_CACHE to a folder that can be written to."
            ) from error


@contextmanager
def closing_on_error(handle: BufferedReader) -> Iterator[BufferedReader]:
    """Yield a handle; close it if an exception is raised, else leave it open."""
    try:
        yield handle
    except BaseException:
        handle.close()
        raise
