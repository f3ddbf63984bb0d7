"""A store on S3 without a network: what the cache holds of it, and nothing can be written.

``open_store`` returns it under ``TRACEFLEET_OFFLINE=1``. What can be opened is what was opened
before: its channel entry and manifest are mirrored in the cache, its files lie there by digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import NoReturn

from tracefleet.errors import StoreError
from tracefleet.store import Stored, Upload
from tracefleet.store.cache import Cache
from tracefleet.store.folder import FileStore
from tracefleet.store.streams import Sink


@dataclass(frozen=True, kw_only=True)
class OfflineStore:
    """See the module's docstring.

    Attributes:
        of: URL of the store that it stands for.
        cache: what is left of it.
    """

    of: str
    cache: Cache

    @property
    def url(self) -> str:
        """The store's URL, and in every message what is meant by it."""
        return f"{self.of} (offline: what the cache holds of it, TRACEFLEET_OFFLINE is set)"

    @property
    def _mirror(self) -> FileStore:
        return FileStore(root=self.cache.mirror(self.of))

    def read(self, path: str) -> bytes:
        """See `tracefleet.store.Store.read`."""
        return self._mirror.read(path)

    def names(self, prefix: str) -> list[str]:
        """See `tracefleet.store.Store.names`."""
        return self._mirror.names(prefix)

    def walk(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """See `tracefleet.store.Store.walk`."""
        return self._mirror.walk(prefix, after=after)

    def open_checked(self, path: str, *, size: int, sha256: str) -> BufferedReader:
        """See `tracefleet.store.Store.open_checked`.

        Raises:
            StoreError: the file is not in the cache.
        """
        handle = self.cache.find(size=size, sha256=sha256)
        if handle is None:
            self._refuse(f"{path} from the cache, which does not hold it (any more)")
        return handle

    def place(self, path: str, target: Path, *, size: int, sha256: str) -> None:
        """See `tracefleet.store.Store.place`."""
        with self.open_checked(path, size=size, sha256=sha256) as handle:
            self.cache.place(handle, target, sha256=sha256)

    def remember(self, files: dict[str, bytes]) -> None:
        """See `tracefleet.store.Store.remember`: it is remembered already."""

    def check_writable(self) -> None:
        """See `tracefleet.store.Store.check_writable`; never writable."""
        self._refuse("to write")

    def put_new(self, path: str, data: bytes) -> bool:
        """See `tracefleet.store.Store.put_new`; refused."""
        self._refuse(f"to write {path}")

    def put_file(self, path: str, local: Path, *, size: int, sha256: str) -> None:
        """See `tracefleet.store.Store.put_file`; refused."""
        self._refuse(f"to write {path}")

    def put_over(self, path: str, data: bytes) -> None:
        """See `tracefleet.store.Store.put_over`; refused."""
        self._refuse(f"to write {path}")

    def copy_out(self, path: str, sink: Sink) -> None:
        """See `tracefleet.store.Store.copy_out`; refused: the store itself is not here."""
        self._refuse(f"to read {path} from the store itself")

    def remove(self, paths: Iterable[str]) -> None:
        """See `tracefleet.store.Store.remove`; refused."""
        self._refuse("to remove files")

    def uploads(self) -> Iterator[Upload]:
        """See `tracefleet.store.Store.uploads`; refused."""
        self._refuse("to list unfinished uploads")

    def abort(self, upload: Upload) -> None:
        """See `tracefleet.store.Store.abort`; refused."""
        self._refuse("to abort an upload")

    def presign(self, path: str, *, seconds: int) -> str:
        """See `tracefleet.store.Store.presign`; refused: only valid credentials sign."""
        self._refuse("to sign URLs")

    def _refuse(self, what: str) -> NoReturn:
        raise StoreError(
            f"{self.of}: expected {what}, but TRACEFLEET_OFFLINE is set and only what was opened "
            f"before can be opened, from {self.cache.root}. Unset it to reach the store."
        )
