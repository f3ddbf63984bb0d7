"""Stores: a root URL under which conversions, channels and reports lie.

Publishers take a `Store` and write through ``put_new``, ``put_file`` and ``put_over``; readers
take a `ReadableStore`. What every store promises: a file is visible whole or not at all,
``put_new`` has one winner however many race, and what was put survives a power cut. Paths are
relative to the root and can't leave it, not by ``..`` and not by a symbolic link.
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
        path: relative to the store's root.
        size: in bytes.
        modified: seconds since the epoch, by the clock of whoever holds the store.
    """

    path: str
    size: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A write that was begun and not finished: visible to nobody, but it takes up room.

    Attributes:
        path: what was being written, or for ``file://`` the temporary file itself.
        identifier: S3's upload id; empty for ``file://``.
        started: seconds since the epoch.
    """

    path: str
    identifier: str
    started: float


class ReadableStore(Protocol):
    """What every store offers to readers; offline that is all there is."""

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
            prefix: the folder.
            after: start behind this path; it need not exist.
        """
        ...

    def copy_out(self, path: str, sink: Sink) -> None:
        """Write the bytes that the store itself holds, in order, into ``sink``, unchecked.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def open_checked(self, path: str, *, size: int, sha256: str) -> BufferedReader:
        """Open a local file every byte of which was checked through the handle handed out.

        Raises:
            FileNotFoundError: there is no such file.
            DigestMismatchError: the bytes are not those that ``sha256`` names.
        """
        ...

    def download_to(self, path: str, target: Path, *, size: int, sha256: str) -> None:
        """Create the local file ``target`` with the checked bytes of ``path``.

        Raises:
            FileNotFoundError: there is no such file in the store.
            DigestMismatchError: the bytes are not those that ``sha256`` names; ``target`` is
                left behind, for the caller to remove.
        """
        ...

    def cache_selection(self, files: dict[str, bytes]) -> None:
        """Keep small files that were read and checked, for when the store can't be reached."""
        ...

    def presign(self, path: str, *, seconds: int) -> str:
        """Return a URL that lets anyone fetch a file for a time, without credentials.

        Raises:
            StoreError: this kind of store has no such URLs.
        """
        ...


class Store(ReadableStore, Protocol):
    """What a store offers to those who write."""

    def check_writable(self) -> None:
        """Return if the store can be written to and keeps its promises.

        Raises:
            StoreError: it can't or doesn't, with the reason and the next step.
        """
        ...

    def put_new(self, path: str, data: bytes) -> bool:
        """Create ``path`` durably unless it is there; return whether this call created it."""
        ...

    def put_file(self, path: str, local: Path, *, size: int, sha256: str) -> None:
        """Create the immutable file ``path`` from ``local``; skip it if it is there already.

        Raises:
            DigestMismatchError: the bytes copied are not those that ``sha256`` names.
            StoreError: other bytes stand under that path already, or writing failed.
        """
        ...

    def put_over(self, path: str, data: bytes) -> None:
        """Create or replace ``path`` atomically: for reports, never for files under a digest."""
        ...

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; those that are gone already count as removed."""
        ...

    def uploads(self) -> Iterator[Upload]:
        """Yield the writes that were begun and not finished, those still running among them."""
        ...

    def abort(self, upload: Upload) -> None:
        """Give back the room of an unfinished write; one that is gone already counts as done."""
        ...
