"""Bytes on their way, checked while they pass: each is read once and hashed as it is moved."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from typing import Protocol

from tracefleet.errors import DigestMismatchError, ManifestError

CHUNK = 1 << 20
#: Transfers that take longer than this say how far they are, and again after each such time.
_SECONDS_BETWEEN_LINES = 5.0

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where bytes can be written."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""
        ...


class Stream(Protocol):
    """Where bytes can be read from."""

    def read(self, amount: int, /) -> bytes:
        """Return up to ``amount`` bytes, ``b""`` at the end."""
        ...


class CheckedSink:
    """Hashes what it passes on to ``sink`` (or to nobody), for a check at the end."""

    def __init__(self, path: str, sink: Sink | None = None, *, size: int = 0) -> None:
        self._path, self._sink, self._digest = path, sink, hashlib.sha256()
        self._progress = Progress(path, size)
        self.size = 0

    def write(self, data: bytes, /) -> int:
        """Take the next bytes."""
        self._digest.update(data)
        self.size += len(data)
        if self._sink is not None:
            self._sink.write(data)
        self._progress.at(self.size)
        return len(data)

    @property
    def sha256(self) -> str:
        """Of everything written so far, in hex."""
        return self._digest.hexdigest()

    def check(self, *, size: int, sha256: str) -> None:
        """Return if exactly the promised bytes went through.

        Raises:
            DigestMismatchError: others did.
        """
        check_digest(self._path, (size, sha256), (self.size, self.sha256))


class ArrivingFile:
    """A file written in any order, as parallel ranges arrive, and hashed in order meanwhile.

    What has been hashed is never written again, so that the file holds exactly what the digest is
    of; what came early is read back from the file when its turn comes. Nothing is kept in memory.
    """

    def __init__(self, path: str, descriptor: int, *, size: int = 0) -> None:
        self._path, self._descriptor, self._digest = path, descriptor, hashlib.sha256()
        self._position = self._hashed = self._written = 0
        self._early: dict[int, int] = {}  # start to end of what was written ahead
        self._progress = Progress(path, size)

    def seekable(self) -> bool:
        """Tell the transfer client that ranges may come in any order."""
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to where the next bytes belong."""
        self._position = offset
        return offset

    def tell(self) -> int:
        """Return where the next bytes belong."""
        return self._position

    def write(self, data: bytes, /) -> int:
        """Take bytes for the current position."""
        start, self._position = self._position, self._position + len(data)
        known = max(0, self._hashed - start)  # a range that is fetched again
        if fresh := memoryview(data)[known:]:
            self._put(fresh, start + known)
        return len(data)

    def check(self, *, size: int, sha256: str) -> None:
        """Return if exactly the promised bytes have arrived.

        Raises:
            DigestMismatchError: others have.
        """
        check_digest(self._path, (size, sha256), (self._hashed, self._digest.hexdigest()))

    def _put(self, data: memoryview, start: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], start + done)
        self._written += len(data)
        self._progress.at(self._written)
        if start == self._hashed:
            self._digest.update(data)
            self._hashed += len(data)
            self._catch_up()
            return
        for begun, end in self._early.items():
            if end == start:
                self._early[begun] = start + len(data)
                return
        self._early[start] = max(start + len(data), self._early.get(start, 0))

    def _catch_up(self) -> None:
        """Hash what was written ahead and is next now."""
        while end := max((e for s, e in self._early.items() if s <= self._hashed < e), default=0):
            while self._hashed < end:
                length = min(CHUNK, end - self._hashed)
                block = os.pread(self._descriptor, length, self._hashed)
                self._digest.update(block)
                self._hashed += len(block)
        self._early = {s: e for s, e in self._early.items() if e > self._hashed}


class CheckedReader:
    """Reads a file once, in order, and fails before its last bytes if they are not the promised.

    What is handed to an uploader is what was hashed: a file that is changed meanwhile can't slip
    through. Not seekable on purpose, so that nobody reads it twice.
    """

    def __init__(self, path: str, file: Stream, *, size: int, sha256: str) -> None:
        self._path, self._file, self._promised = path, file, (size, sha256)
        self._digest, self._read = hashlib.sha256(), 0
        self._progress = Progress(path, size)

    def read(self, amount: int = -1, /) -> bytes:
        """Return ``amount`` bytes, fewer only at the end.

        Raises:
            DigestMismatchError: the file's bytes are not those that its digest names.
        """
        data = self._file.read(amount)
        self._digest.update(data)
        self._read += len(data)
        if self._read >= self._promised[0] or len(data) < amount or amount < 0:
            check_digest(self._path, self._promised, (self._read, self._digest.hexdigest()))
        self._progress.at(self._read)
        return data


def check_digest(path: str, promised: tuple[int, str], got: tuple[int, str]) -> None:
    """Return if two (size, sha256) agree.

    Raises:
        DigestMismatchError: the digests don't.
        ManifestError: only the sizes don't: whoever promised contradicts itself.
    """
    if promised[1] != got[1]:
        raise DigestMismatchError(path, expected=promised[1], got=got[1])
    if promised[0] != got[0]:
        raise ManifestError(
            f"{path}: the manifest says {promised[0]} bytes, but the file that its digest names "
            f"has {got[0]}. Convert the checkpoint again."
        )


def copy(source: Stream, sink: Sink) -> None:
    """Write everything left in ``source`` into ``sink``."""
    while chunk := source.read(CHUNK):
        sink.write(chunk)


class Progress:
    """Says now and then how far a long transfer is."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = path, size
        self._started = self._said = time.monotonic()

    def at(self, done: int) -> None:
        """Note that ``done`` bytes have passed."""
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        of = f" of {self._size / 1e6:.0f}" if self._size else ""
        rate = done / 1e6 / (now - self._started)
        logger.info("%s: %.0f%s MB, %.0f MB/s", self._path, done / 1e6, of, rate)
