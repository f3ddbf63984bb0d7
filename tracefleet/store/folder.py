"""A store in a folder: the guarantees of ``tracefleet.store.base`` by fsync and hard links.

Each file is written under a temporary name and then linked: ``os.link`` succeeds for exactly one of
several writers. fsspec's exclusive modes check first and write later, so several writers succeed
and readers see incomplete files.
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
    create_file,
    discard,
    flush,
    free_bytes,
    name_temp,
    open_checked,
    remove_empty,
    sha256_of,
    sync,
)
from tracefleet.store.streams import CheckedReader, CheckedSink, Sink, copy


@dataclass(frozen=True, kw_only=True)
class FileStore:
    """A folder. Safe for many processes on one file system that has hard links.

    Attributes:
        root: absolute path of the folder; created by the first write.
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
            # The other writer may not have called fsync yet, and the caller relies on the file.
            with suppress(FileNotFoundError):  # removed meanwhile
                sync(self._locate(path).parent)
            return False
        return True

    def put_file(self, path: str, local: Path, *, size: int, sha256: str) -> None:
        if not self._locate(path).exists():
            try:
                with local.open("rb") as file:
                    reader = CheckedReader(path, file, size=size, sha256=sha256)
                    self._write(path, lambda sink: copy(reader, sink), size, os.link)
            except FileExistsError:
                pass  # another writer was first: its bytes are compared below
            else:
                return
        final = self._locate(path)
        with self._translating_errors(path, "compare"):
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
        with self._translating_errors(path, "read"):
            return self._locate(path).read_bytes()

    def names(self, prefix: str) -> list[str]:
        folder = self._locate_folder(prefix)
        with self._translating_errors(prefix, "list"):
            try:
                children = [child.name for child in folder.iterdir()]
            except FileNotFoundError:
                return []
            except NotADirectoryError:
                if self.root.is_dir():
                    return []  # a file has no children; but a root that is a file is an error
                raise
        return sorted(name for name in children if not name.startswith(TEMP_PREFIX))

    def walk(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        folder = self._locate_folder(prefix)
        with self._translating_errors(prefix, "list"):
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
            yield from self._walk_folder(folder, f"{prefix}/" if prefix else "", after)

    def copy_out(self, path: str, sink: Sink) -> None:
        with self._translating_errors(path, "read"):
            file = self._locate(path).open("rb")
        with file:
            copy(file, sink)

    def open_checked(self, path: str, *, size: int, sha256: str) -> BufferedReader:
        with self._translating_errors(path, "read"):
            return open_checked(self._locate(path), path, size=size, sha256=sha256)

    def download_to(self, path: str, target: Path, *, size: int, sha256: str) -> None:
        with target.open("xb") as file:
            sink = CheckedSink(path, file, size=size)
            self.copy_out(path, sink)
            flush(file)
        sink.check(size=size, sha256=sha256)

    def cache_selection(self, files: dict[str, bytes]) -> None:
        """Do nothing: reading a folder needs no cache."""

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files, and folders that become empty."""
        for path in paths:
            final = self._locate(path)
            with self._translating_errors(path, "remove"):
                final.unlink(missing_ok=True)
                remove_empty(final.parent, self.root)

    def uploads(self) -> Iterator[Upload]:
        """Yield the temporary files."""
        with self._translating_errors("", "list"):
            for temp in self._walk_folder(self.root, "", "", temps=True):
                yield Upload(path=temp.path, identifier="", started=temp.modified)

    def abort(self, upload: Upload) -> None:
        self.remove([upload.path])

    def presign(self, path: str, *, seconds: int) -> str:
        """Refuse: a folder has no server for which to sign URLs."""
        raise StoreError(
            f"{self.url}: expected an s3:// store, whose server can sign URLs; a folder has none. "
            "Pull without --presign."
        )

    def check_writable(self) -> None:
        # In the nearest folder that exists, so that the probe creates no empty store.
        folder = next(parent for parent in (self.root, *self.root.parents) if parent.exists())
        if not folder.is_dir():
            raise StoreError(
                f"{self.url}: expected a folder, or nothing yet, for the store; got the file "
                f"{folder}. Choose another folder."
            )
        first, second = name_temp(folder), name_temp(folder)
        with self._translating_errors("", "write to"):
            try:
                with first.open("xb") as file:
                    file.write(b"probe")
                    flush(file)
                os.link(first, second)
            finally:
                discard(first)
                discard(second)

    def _locate(self, path: str) -> Path:
        final = self.root / check_relative(path)
        if not final.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(
                f"{self.url}/{path}: expected a file inside the store, got a symbolic link to "
                f"{final.resolve()}. Replace the link by the file if you trust it."
            )
        return final

    def _locate_folder(self, prefix: str) -> Path:
        return self._locate(prefix) if prefix else self.root

    def _walk_folder(
        self, folder: Path, prefix: str, after: str, *, temps: bool = False
    ) -> Iterator[Stored]:
        """Yield files, or temporary files, in the order of their paths as on S3.

        ``a-b`` comes before ``a/b``. Other processes may remove files and folders meanwhile.
        """
        found = {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    # Links are not followed: they may form circles, or lead out of the store.
                    is_folder = entry.is_dir(follow_symlinks=False)
                    found[f"{entry.name}/" if is_folder else entry.name] = entry
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in sorted(found):
            path = f"{prefix}{name}"
            if name.endswith("/"):
                if path > after or after.startswith(path):
                    yield from self._walk_folder(folder / name, path, after, temps=temps)
            elif path > after and name.startswith(TEMP_PREFIX) == temps:
                with suppress(FileNotFoundError):  # removed since the folder was listed
                    stat = found[name].stat()
                    yield Stored(path=path, size=stat.st_size, modified=stat.st_mtime)

    def _write(
        self,
        path: str,
        fill: Callable[[Sink], object],
        size: int,
        place: Callable[[Path, Path], None],
    ) -> None:
        """Write a temporary file beside ``path``, flush it, then ``place`` it at ``path``."""
        final = self._locate(path)
        temp = name_temp(final.parent)
        with self._translating_errors(path, "write", needed=size):
            parents = (final.parent, *final.parent.parents)
            missing = [folder for folder in parents if not folder.exists()]
            try:
                with create_file(temp) as file:
                    fill(file)
                    flush(file)
                place(temp, final)
            finally:
                discard(temp)
            # Up to the root: a folder that another writer has just created may not be synced yet.
            changed = [folder for folder in parents if folder.is_relative_to(self.root)]
            changed += [folder.parent for folder in missing]
            for folder in dict.fromkeys(changed):
                sync(folder)

    @contextmanager
    def _translating_errors(self, path: str, verb: str, *, needed: int = 0) -> Iterator[None]:
        """Turn errors of the operating system into a StoreError with the next step."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise  # part of the store's interface
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
