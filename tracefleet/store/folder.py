"""A store in a folder: the promises of ``tracefleet.store.base`` by temp file, fsync and hard link.

fsspec's own exclusive modes check first and write then, so that several racers win, and show half
a file meanwhile; ``os.link`` of a finished file has one winner and shows it whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from tracefleet.canonical import check_relative
from tracefleet.errors import StoreError
from tracefleet.store.base import Stored, Upload
from tracefleet.store.durable import (
    TEMP_PREFIX,
    created,
    discard,
    flush,
    free_bytes,
    open_checked,
    remove_empty,
    sha256_of,
    sync,
    temp_in,
)
from tracefleet.store.streams import CheckedReader, CheckedSink, Sink, copy


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
        try:
            self._write(path, lambda file: file.write(data), len(data), os.link)
        except FileExistsError:
            # The winner may not have come to its own fsync yet; what we report must last too.
            with suppress(FileNotFoundError):  # removed already
                sync(self._inside(path).parent)
            return False
        return True

    def put_file(self, path: str, local: Path, *, size: int, sha256: str) -> None:
        if not self._inside(path).exists():
            try:
                with local.open("rb") as file:
                    reader = CheckedReader(path, file, size=size, sha256=sha256)
                    self._write(path, lambda sink: copy(reader, sink), size, os.link)
            except FileExistsError:
                pass  # lost a race: what the winner put is compared below
            else:
                return
        final = self._inside(path)
        with self._explained(path, "compare"):
            held = (final.stat().st_size, sha256_of(final))
            sync(final.parent)
        if held != (size, sha256):
            raise StoreError(
                f"{self.url}/{path}: expected {size} bytes with sha256 {sha256}, but the store "
                f"already holds {held[0]} bytes with {held[1]}. It was damaged or edited; move it "
                "away and publish again."
            )

    def put_over(self, path: str, data: bytes) -> None:
        self._write(path, lambda file: file.write(data), len(data), os.replace)

    def read(self, path: str) -> bytes:
        with self._explained(path, "read"):
            return self._inside(path).read_bytes()

    def names(self, prefix: str) -> list[str]:
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

    def walk(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        folder = self._inside(prefix) if prefix else self.root
        with self._explained(prefix, "list"):
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
            yield from self._files(folder, f"{prefix}/" if prefix else "", after)

    def copy_out(self, path: str, sink: Sink) -> None:
        with self._explained(path, "read"):
            file = self._inside(path).open("rb")
        with file:
            copy(file, sink)

    def open_checked(self, path: str, *, size: int, sha256: str) -> BufferedReader:
        with self._explained(path, "read"):
            return open_checked(self._inside(path), path, size=size, sha256=sha256)

    def download_to(self, path: str, target: Path, *, size: int, sha256: str) -> None:
        with target.open("xb") as file:
            sink = CheckedSink(path, file, size=size)
            self.copy_out(path, sink)
            flush(file)
        sink.check(size=size, sha256=sha256)

    def cache_selection(self, files: dict[str, bytes]) -> None:
        """Keep nothing: a folder is always at hand."""

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files, and folders that become empty."""
        for path in paths:
            final = self._inside(path)
            with self._explained(path, "remove"):
                final.unlink(missing_ok=True)
                remove_empty(final.parent, self.root)

    def uploads(self) -> Iterator[Upload]:
        """Yield the temporary files."""
        with self._explained("", "list"):
            for temp in self._files(self.root, "", "", temps=True):
                yield Upload(path=temp.path, identifier="", started=temp.modified)

    def abort(self, upload: Upload) -> None:
        self.remove([upload.path])

    def presign(self, path: str, *, seconds: int) -> str:
        """Refuse: a folder has no server that could sign."""
        raise StoreError(
            f"{self.url}: expected an s3:// store, whose server can sign URLs; a folder has none. "
            "Pull without --presign."
        )

    def check_writable(self) -> None:
        # The nearest folder that exists is tried, so that no empty store is left behind.
        folder = next(p for p in (self.root, *self.root.parents) if p.exists())
        first, second = temp_in(folder), temp_in(folder)
        with self._explained("", "write to"):
            try:
                with first.open("xb") as file:
                    file.write(b"probe")
                    flush(file)
                os.link(first, second)
            finally:
                discard(first)
                discard(second)

    def _inside(self, path: str) -> Path:
        final = self.root / check_relative(path)
        if not final.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(
                f"{self.url}/{path}: expected a file inside the store, got a symbolic link to "
                f"{final.resolve()}. Replace the link by the file if you trust it."
            )
        return final

    def _files(
        self, folder: Path, prefix: str, after: str, *, temps: bool = False
    ) -> Iterator[Stored]:
        """Yield files in the order of their whole paths, as S3 does: ``a-b`` before ``a/b``.

        Other processes may remove files and folders meanwhile; temporary files are apart.
        """
        try:
            with os.scandir(folder) as entries:
                # Links are not followed: they can lead round in circles, or out of the store.
                found = {
                    f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name: e for e in entries
                }
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in sorted(found):
            path = f"{prefix}{name}"
            if name.endswith("/"):
                if path > after or after.startswith(path):
                    yield from self._files(folder / name, path, after, temps=temps)
            elif path > after and name.startswith(TEMP_PREFIX) == temps:
                with suppress(FileNotFoundError):  # removed since the folder was read
                    stat = found[name].stat()
                    yield Stored(path=path, size=stat.st_size, modified=stat.st_mtime)

    def _write(
        self,
        path: str,
        fill: Callable[[Sink], object],
        size: int,
        place: Callable[[Path, Path], None],
    ) -> None:
        """Write a temporary file beside ``path``, make it last, then ``place`` it there."""
        final = self._inside(path)
        temp = temp_in(final.parent)
        with self._explained(path, "write", needed=size):
            made = [p for p in (final.parent, *final.parent.parents) if not p.exists()]
            try:
                with created(temp) as file:
                    fill(file)
                    flush(file)
                place(temp, final)
            finally:
                discard(temp)
            # All the way up: a folder that another writer made a moment ago may not be synced.
            up = [p for p in (final.parent, *final.parent.parents) if p.is_relative_to(self.root)]
            for folder in dict.fromkeys([*up, *(p.parent for p in made)]):
                sync(folder)

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
                    f"{where}: no space left: {needed} bytes needed, {free_bytes(self.root)} free. "
                    "Nothing was published; free some space or choose another store."
                ) from error
            raise StoreError(
                f"{where}: can't {verb} it: {error}. Check that the store's path is a folder, that "
                "you have the rights, and that its file system has hard links."
            ) from error
