"""A store in a folder: the promises of ``tracefleet.store`` by temp file, fsync and hard link.

fsspec's own exclusive modes check first and write then, so that several racers win, and show half
a file meanwhile; ``os.link`` of a finished file has one winner and shows it whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tracefleet.errors import DigestMismatchError, StoreError
from tracefleet.manifest import check_relative

TEMP_PREFIX = ".tmp-"
CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileStore:
    """A folder. Safe for many processes on one file system that has hard links.

    Attributes:
        root: the absolute folder; created by the first write.
    """

    root: Path

    @property
    def url(self) -> str:
        """The root as a ``file://`` URL."""
        return self.root.as_uri()

    def put_new(self, path: str, data: bytes) -> bool:
        """See `tracefleet.store.Store.put_new`."""
        try:
            self._write(path, iter([data]), len(data), os.link)
        except FileExistsError:
            # The winner may not have come to its own fsync yet; what we report must last too.
            _sync(self._inside(path).parent)
            return False
        return True

    def put_file(self, path: str, local: Path, *, size: int, sha256: str) -> None:
        """See `tracefleet.store.Store.put_file`."""
        if not self._inside(path).exists():
            try:
                self._write(path, _checked_chunks(path, local, sha256), size, os.link)
            except FileExistsError:
                pass  # lost a race: what the winner put is compared below
            else:
                return
        final = self._inside(path)
        with self._explained(path, "compare"):
            held = (final.stat().st_size, sha256_of(final))
            _sync(final.parent)
        if held != (size, sha256):
            raise StoreError(
                f"{self.url}/{path}: expected {size} bytes with sha256 {sha256}, but the store "
                f"already holds {held[0]} bytes with {held[1]}. It was damaged or edited; move it "
                "away and publish again."
            )

    def put_over(self, path: str, data: bytes) -> None:
        """See `tracefleet.store.Store.put_over`."""
        self._write(path, iter([data]), len(data), os.replace)

    def read(self, path: str) -> bytes:
        """See `tracefleet.store.Store.read`."""
        with self._explained(path, "read"):
            return self._inside(path).read_bytes()

    def exists(self, path: str) -> bool:
        """See `tracefleet.store.Store.exists`."""
        return self._inside(path).exists()

    def names(self, prefix: str) -> list[str]:
        """See `tracefleet.store.Store.names`."""
        folder = self._inside(prefix) if prefix else self.root
        with self._explained(prefix, "list"):
            try:
                children = [child.name for child in folder.iterdir()]
            except FileNotFoundError:
                return []
            except NotADirectoryError:
                if self.root.is_dir():
                    return []  # a file has no children; a root that is a file is an error
                raise
        return sorted(name for name in children if not name.startswith(TEMP_PREFIX))

    def local(self, path: str) -> Path:
        """See `tracefleet.store.Store.local`."""
        final = self._inside(path)
        if not final.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file in the store", str(final))
        return final

    def check_writable(self) -> None:
        """See `tracefleet.store.Store.check_writable`."""
        # The nearest folder that exists is tried, so that no empty store is left behind.
        folder = next(p for p in (self.root, *self.root.parents) if p.exists())
        first, second = _temp_in(folder), _temp_in(folder)
        with self._explained("", "write to"):
            try:
                with first.open("xb") as file:
                    file.write(b"probe")
                    _flush(file.fileno(), file.flush)
                os.link(first, second)
            finally:
                _discard(first)
                _discard(second)

    def _inside(self, path: str) -> Path:
        final = self.root / check_relative(path)
        if not final.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(
                f"{self.url}/{path}: expected a file inside the store, got a symbolic link to "
                f"{final.resolve()}. Replace the link by the file if you trust it."
            )
        return final

    def _write(
        self, path: str, chunks: Iterator[bytes], size: int, place: Callable[[Path, Path], None]
    ) -> None:
        """Write a temporary file beside ``path``, make it last, then ``place`` it there."""
        final = self._inside(path)
        temp = _temp_in(final.parent)
        with self._explained(path, "write", needed=size):
            made = [p for p in (final.parent, *final.parent.parents) if not p.exists()]
            _make_folder(final.parent)
            try:
                with temp.open("xb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                    _flush(file.fileno(), file.flush)
                place(temp, final)
            finally:
                _discard(temp)
            # All the way up: a folder that another writer made a moment ago may not be synced.
            up = [p for p in (final.parent, *final.parent.parents) if p.is_relative_to(self.root)]
            for folder in dict.fromkeys([*up, *(p.parent for p in made)]):
                _sync(folder)

    @contextmanager
    def _explained(self, path: str, verb: str, *, needed: int = 0) -> Iterator[None]:
        """Turn errors of the operating system into a StoreError that says what to do."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise  # part of the interface
        except OSError as error:
            where = f"{self.url}/{path}" if path else self.url
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(
                    f"{where}: no space left: {needed} bytes needed, {_free(self.root)} free. "
                    "Nothing was published; free some space or choose another store."
                ) from error
            raise StoreError(
                f"{where}: can't {verb} it: {error}. Check that the store's path is a folder, that "
                "you have the rights, and that its file system has hard links."
            ) from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_chunks(path: str, local: Path, sha256: str) -> Iterator[bytes]:
    """Yield the file's bytes, failing at the end unless they are the ones ``sha256`` names."""
    digest = hashlib.sha256()
    with local.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != sha256:
        raise DigestMismatchError(path, expected=sha256, got=digest.hexdigest())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # Told apart from the FileExistsError of a lost race, which is no failure.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def _temp_in(folder: Path) -> Path:
    return folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"


def _discard(temp: Path) -> None:
    # Its folder may be a file: then nothing was made, and the first error says so.
    with suppress(NotADirectoryError):
        temp.unlink(missing_ok=True)


def _flush(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)


def _sync(folder: Path) -> None:
    """Make the names in a folder last: without it a new file can vanish in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(root: Path) -> int:
    folder = next(p for p in (root, *root.parents) if p.is_dir())
    return shutil.disk_usage(folder).free
