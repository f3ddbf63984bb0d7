"""The user's cache of published files: by content, shared by all processes, bounded in size.

``blobs/ab/<sha256>`` holds a file's bytes, whatever its name and store. One process downloads a
blob while the others wait for it; it appears whole, after its digest was checked. It is checked
again each time it is opened: a disk can rot. ``stores/`` mirrors the small files (channel entries
and manifests) of what was opened, so that it can be opened again without a network
(``TRACEFLEET_OFFLINE=1``).

Settings: ``TRACEFLEET_CACHE`` is the folder (by default ``~/.cache/tracefleet``),
``TRACEFLEET_CACHE_GB`` how much the blobs may take (by default 50); what was not used for the
longest time goes first. Deleting the folder costs time, nothing else.
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
from tracefleet.store.durable import flush, flushed_meanwhile, open_checked
from tracefleet.store.streams import ArrivingFile, copy

DEFAULT_GB = 50.0
#: Files from this size on are linked out of the cache: configurations are smaller.
LINKED_BYTES = 1 << 20
#: A download that nobody has written to for so long was killed.
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
    except RuntimeError as error:  # a container's user without a home
        raise StoreError(
            f"the cache: expected a home folder for {configured}, got: {error} Set "
            "TRACEFLEET_CACHE to a folder that can be written to."
        ) from error


def is_offline() -> bool:
    """Return whether ``TRACEFLEET_OFFLINE`` asks for the cache instead of any network."""
    return os.environ.get("TRACEFLEET_OFFLINE", "").lower() not in ("", "0", "false", "no")


def limit_bytes() -> int:
    """Return how many bytes of blobs to keep.

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
        root: the folder; made by the first download.
        limit: bytes of blobs to keep; the one just asked for is kept in any case.
    """

    root: Path = field(default_factory=cache_root)
    limit: int = field(default_factory=limit_bytes)

    def mirror(self, url: str) -> Path:
        """Return the folder that mirrors the small files of the store at ``url``."""
        return self.root / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16]

    def blob(self, sha256: str) -> Path:
        """Return where the bytes with this digest lie, or would."""
        return self.root / "blobs" / sha256[:2] / sha256

    def find(self, *, size: int, sha256: str) -> BufferedReader | None:
        """Open a cached blob after checking its every byte; a damaged one is removed.

        Args:
            size: in bytes.
            sha256: of the wanted bytes.

        Returns:
            The handle through which they were checked, None if they are not here.
        """
        blob = self.blob(sha256)
        try:
            handle = open_checked(blob, str(blob), size=size, sha256=sha256)
        except OSError:
            return None  # absent, or not to be read: a download says what is wrong
        except DigestMismatchError as error:
            logger.warning("removed from the cache: %s", error)
            with suppress(OSError):
                blob.unlink()
            return None
        with suppress(OSError):
            os.utime(blob)  # used now: evicted last
        return handle

    def open(
        self, path: str, download: Callable[[ArrivingFile], None], *, size: int, sha256: str
    ) -> BufferedReader:
        """Return a checked handle on the bytes, downloading them first if they are not here.

        Args:
            path: what is downloaded, for messages.
            download: writes the bytes, in any order, into the file that it is given.
            size: in bytes.
            sha256: of the bytes.

        Raises:
            DigestMismatchError: other bytes came; nothing was kept.
            StoreError: the cache can't be written to.
        """
        if handle := self.find(size=size, sha256=sha256):
            return handle
        with self._explained(size), self._alone(sha256[:2], path):
            if handle := self.find(size=size, sha256=sha256):
                return handle  # another process downloaded it while this one waited
            return self._download(path, download, size, sha256)

    def place(self, handle: BufferedReader, target: Path, *, sha256: str) -> None:
        """Create ``target`` with the bytes behind a handle that ``find`` or ``open`` gave.

        A large one (weights, which nobody edits in place) becomes another name of the blob where
        the file system can do that; anything else is copied.
        """
        size = os.fstat(handle.fileno()).st_size
        if size >= LINKED_BYTES and self._linked(handle, target, sha256):
            return
        with target.open("xb") as file:
            copy(handle, file)
            flush(file)

    def _linked(self, handle: BufferedReader, target: Path, sha256: str) -> bool:
        with suppress(OSError):
            os.link(self.blob(sha256), target)
            if os.path.samestat(os.fstat(handle.fileno()), target.stat()):
                os.fsync(handle.fileno())
                return True
            target.unlink()  # evicted and downloaded again since
        return False

    def _download(
        self, path: str, download: Callable[[ArrivingFile], None], size: int, sha256: str
    ) -> BufferedReader:
        blob = self.blob(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        self._make_room(size, sha256)
        temp = blob.with_name(f"{sha256}.{secrets.token_hex(4)}{_PARTIAL}")
        try:
            # What is read is what was hashed: this handle is opened before the bytes come.
            with temp.open("x+b") as file, closed_on_error(temp.open("rb")) as handle:
                arriving = ArrivingFile(path, file.fileno(), size=size)
                with flushed_meanwhile(file):
                    download(arriving)
                arriving.check(size=size, sha256=sha256)
                temp.rename(blob)
        finally:
            temp.unlink(missing_ok=True)
        return handle

    def _make_room(self, size: int, sha256: str) -> None:
        """Remove what was not used for the longest time until ``size`` more bytes fit."""
        with self._alone("evict", "the cache"):
            blobs = sorted(self._blobs(), key=lambda blob: blob[1].st_mtime)
            excess = sum(stat.st_size for _, stat in blobs) + size - self.limit
            for blob, stat in blobs:
                if excess <= 0:
                    break
                if blob.name != sha256:
                    logger.info("cache: removing %s (%d bytes)", blob.name[:12], stat.st_size)
                    # A process that has it open keeps its bytes.
                    blob.unlink(missing_ok=True)
                    excess -= stat.st_size

    def _blobs(self) -> Iterator[tuple[Path, os.stat_result]]:
        for blob in (self.root / "blobs").glob("*/*"):
            with suppress(FileNotFoundError):
                stat = blob.stat()
                if not blob.name.endswith(_PARTIAL):
                    yield blob, stat
                elif time.time() - stat.st_mtime > _ABANDONED_SECONDS:
                    blob.unlink()

    @contextmanager
    def _alone(self, name: str, what: str) -> Iterator[None]:
        """Hold a lock that the system takes back if this process dies."""
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
                # Closing is not enough: a child that was forked meanwhile holds the lock as well.
                fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _explained(self, size: int) -> Iterator[None]:
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
def closed_on_error(handle: BufferedReader) -> Iterator[BufferedReader]:
    """Yield a handle and leave it open, unless something is raised meanwhile."""
    try:
        yield handle
    except BaseException:
        handle.close()
        raise
