"""Stores: a root URL with conversions, channels and reports below it.

Publishers take a `Store` and write through ``put_new``, ``put_file`` and ``put_over``; readers
take a `ReadableStore`. Every store guarantees that a file is visible completely or not at all, that
of concurrent ``put_new`` of one path exactly one succeeds, and that written files survive a power
cut. Paths are relative to the root and can't leave it, neither by ``..`` nor by a symbolic link.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from tracefleet.store.streams import Sink


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file in a store.

    Attributes:
        path: path relative to the store's root.
        size: number of bytes.
        modified: seconds since the epoch, by the store's clock.
    """

    path: str
    size: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An unfinished write: not visible in the store, but it takes up space.

    Attributes:
        path: path that is written; for ``file://`` the path of the temporary file.
        identifier: S3's upload id; empty for ``file://``.
        started: seconds since the epoch.
    """

    path: str
    identifier: str
    started: float


class ReadableStore(Protocol):
    """The methods for readers, which every store has; an offline store has no others."""

    @property
    def url(self) -> str:
        """The root, as a URL."""
        ...

    def read(self, path: str) -> bytes:
        """Return the bytes of a small file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def names(self, prefix: str) -> list[str]:
        """Return the immediate children of a folder (``""`` is the root), sorted."""
        ...

    def walk(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield every file below a folder, sorted by path, lazily.

        Args:
            prefix: path of the folder.
            after: path after which to start; it need not exist.
        """
        ...

    def copy_out(self, path: str, sink: Sink) -> None:
        """Write a file's bytes from the store itself, not the cache, into ``sink``, unchecked.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def open_checked(self, path: str, *, size: int, sha256: str) -> BufferedReader:
        """Open a local file after checking every byte through the handle that is returned.

        Raises:
            FileNotFoundError: there is no such file.
            DigestMismatchError: the bytes don't have the digest ``sha256``.
        """
        ...

    def download_to(self, path: str, target: Path, *, size: int, sha256: str) -> None:
        """Create the local file ``target`` with the checked bytes of ``path``.

        Raises:
            FileNotFoundError: there is no such file in the store.
            DigestMismatchError: the bytes don't have the digest ``sha256``; the caller removes
                ``target``.
        """
        ...

    def cache_selection(self, files: dict[str, bytes]) -> None:
        """Cache small files that were read and checked, for use when the store is unreachable."""
        ...

    def presign(self, path: str, *, seconds: int) -> str:
        """Return a URL from which anyone can download a file for a time, without credentials.

        Raises:
            StoreError: this kind of store has no such URLs.
        """
        ...


class Store(ReadableStore, Protocol):
    """The methods for readers and writers."""

    def check_writable(self) -> None:
        """Return if the store can be written to and gives the guarantees.

        Raises:
            StoreError: it can't or doesn't; the message gives the reason and the next step.
        """
        ...

    def put_new(self, path: str, data: bytes) -> bool:
        """Create ``path`` durably unless it exists; return whether this call created it."""
        ...

    def put_file(self, path: str, local: Path, *, size: int, sha256: str) -> None:
        """Create the immutable file ``path`` from ``local``; skip it if it exists.

        Raises:
            DigestMismatchError: the copied bytes don't have the digest ``sha256``.
            StoreError: the path exists with other bytes, or writing failed.
        """
        ...

    def put_over(self, path: str, data: bytes) -> None:
        """Create or replace ``path`` atomically: for reports, never for files with a digest."""
        ...

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; missing ones count as removed."""
        ...

    def uploads(self) -> Iterator[Upload]:
        """Yield the unfinished writes, including those that still run."""
        ...

    def abort(self, upload: Upload) -> None:
        """Free the space of an unfinished write; a missing one counts as aborted."""
        ...
