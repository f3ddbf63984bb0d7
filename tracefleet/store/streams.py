"""Streams that hash bytes while they are transferred, so that each byte is read only once."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from typing import Protocol

from tracefleet.errors import DigestMismatchError, ManifestError

CHUNK = 1 << 20
#: A transfer logs its progress each time that so many seconds have passed.
_SECONDS_BETWEEN_LINES = 5.0

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """An object that bytes can be written to."""

    def write(self, data: bytes, /) -> object:
        """Write the next bytes."""
        ...


class Stream(Protocol):
    """An object that bytes can be read from."""

    def read(self, amount: int, /) -> bytes:
        """Return up to ``amount`` bytes, ``b""`` at the end."""
        ...


class SeekableStream(Stream, Protocol):
    """A stream whose position can be set."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position of the next bytes and return it."""
        ...


class CheckedSink:
    """A sink that hashes bytes and passes them on to ``sink``, if there is one."""

    def __init__(self, path: str, sink: Sink | None = None, *, size: int = 0) -> None:
        self._path, self._sink, self._digest = path, sink, hashlib.sha256()
        self._progress = Progress(path, size)
        self.size = 0

    def write(self, data: bytes, /) -> int:
        """Hash the next bytes and pass them on."""
        self._digest.update(data)
        self.size += len(data)
        if self._sink is not None:
            self._sink.write(data)
        self._progress.report(self.size)
        return len(data)

    @property
    def sha256(self) -> str:
        """Hex digest of everything written so far."""
        return self._digest.hexdigest()

    def check(self, *, size: int, sha256: str) -> None:
        """Return if exactly the expected bytes were written.

        Raises:
            DigestMismatchError: others were.
        """
        check_digest(self._path, (size, sha256), (self.size, self.sha256))


class ArrivingFile:
    """A file that is written in any order, as parallel ranges arrive, and hashed in order.

    Bytes that were hashed are never written again, so the digest is that of the file. Ranges that
    arrived early are read back from the file when those before them are there: nothing is kept in
    memory.
    """

    def __init__(self, path: str, descriptor: int, *, size: int = 0) -> None:
        self._path, self._descriptor, self._digest = path, descriptor, hashlib.sha256()
        self._position = self._hashed = self._written = 0
        self._early: dict[int, int] = {}  # start -> end of ranges beyond what was hashed
        self._progress = Progress(path, size)

    def seekable(self) -> bool:
        """Return True, so that the transfer client writes ranges in any order."""
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position of the next bytes."""
        self._position = offset
        return offset

    def tell(self) -> int:
        """Return the position of the next bytes."""
        return self._position

    def write(self, data: bytes, /) -> int:
        """Write bytes at the current position."""
        start, self._position = self._position, self._position + len(data)
        known = max(0, self._hashed - start)  # after a retry, a range arrives again
        fresh = memoryview(data)[known:]
        if fresh:
            self._put(fresh, start + known)
        return len(data)

    def check(self, *, size: int, sha256: str) -> None:
        """Return if exactly the expected bytes have arrived.

        Raises:
            DigestMismatchError: others have.
        """
        check_digest(self._path, (size, sha256), (self._hashed, self._digest.hexdigest()))

    def _put(self, data: memoryview, start: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], start + done)
        self._written += len(data)
        self._progress.report(self._written)
        if start == self._hashed:
            self._digest.update(data)
            self._hashed += len(data)
            self._catch_up()
            return
        for beginning, end in self._early.items():
            if end == start:
                self._early[beginning] = start + len(data)
                return
        self._early[start] = max(start + len(data), self._early.get(start, 0))

    def _catch_up(self) -> None:
        """Hash the early ranges that continue what was hashed."""
        # In ascending order each range can only be continued by a later one.
        for start, end in sorted(self._early.items()):
            if start > self._hashed:
                break
            while self._hashed < end:
                length = min(CHUNK, end - self._hashed)
                block = os.pread(self._descriptor, length, self._hashed)
                self._digest.update(block)
                self._hashed += len(block)
            del self._early[start]


class CheckedReader:
    """A stream that raises, before it returns a file's last bytes, if their digest is wrong.

    An uploader gets exactly the bytes that were hashed, even if the file changes meanwhile.
    """

    # Not seekable, so that no uploader reads the file a second time.
    def __init__(self, path: str, file: Stream, *, size: int, sha256: str) -> None:
        self._path, self._file, self._expected = path, file, (size, sha256)
        self._digest, self._read = hashlib.sha256(), 0
        self._progress = Progress(path, size)

    def read(self, amount: int = -1, /) -> bytes:
        """Return ``amount`` bytes, fewer only at the end.

        Raises:
            DigestMismatchError: the file's bytes don't have the expected digest.
        """
        data = self._file.read(amount)
        self._digest.update(data)
        self._read += len(data)
        if self._read >= self._expected[0] or len(data) < amount or amount < 0:
            check_digest(self._path, self._expected, (self._read, self._digest.hexdigest()))
        self._progress.report(self._read)
        return data


class RewindingReader(CheckedReader):
    """A `CheckedReader` that an uploader can rewind, to sign or to send the bytes once more.

    Each pass from the start is hashed, and ends with the same check.
    """

    _file: SeekableStream

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position; from the start, the bytes are hashed anew."""
        position = self._file.seek(offset, whence)
        self._digest, self._read = hashlib.sha256(), position
        return position

    def tell(self) -> int:
        """Return the position of the next bytes."""
        return self._read


def check_digest(path: str, expected: tuple[int, str], got: tuple[int, str]) -> None:
    """Return if two pairs of size and sha256 are equal.

    Raises:
        DigestMismatchError: the digests differ.
        ManifestError: only the sizes differ, so the manifest contradicts itself.
    """
    if expected[1] != got[1]:
        raise DigestMismatchError(path, expected=expected[1], got=got[1])
    if expected[0] != got[0]:
        raise ManifestError(
            f"{path}: the manifest says {expected[0]} bytes, but the file with its digest has "
            f"{got[0]}. Convert the checkpoint again."
        )


def copy(source: Stream, sink: Sink) -> None:
    """Write the rest of ``source`` into ``sink``."""
    while chunk := source.read(CHUNK):
        sink.write(chunk)


class Progress:
    """Logs the progress of a long transfer from time to time."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = path, size
        self._started = self._logged = time.monotonic()

    def report(self, done: int) -> None:
        """Log the progress, if it is time, after ``done`` bytes."""
        now = time.monotonic()
        if now - self._logged < _SECONDS_BETWEEN_LINES:
            return
        self._logged = now
        of = f" of {self._size / 1e6:.0f}" if self._size else ""
        rate = done / 1e6 / (now - self._started)
        logger.info("%s: %.0f%s MB, %.0f MB/s", self._path, done / 1e6, of, rate)
