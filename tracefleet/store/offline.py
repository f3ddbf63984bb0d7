"""A store on S3 without a network: the part of it that is in the cache, for reading only.

``open_store`` returns it under ``TRACEFLEET_OFFLINE=1``. Conversions that were opened before can be
opened: the cache mirrors their channel entries and manifests, and has their files by digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from tracefleet.errors import StoreError
from tracefleet.store.base import Stored
from tracefleet.store.cache import Cache
from tracefleet.store.folder import FileStore
from tracefleet.store.streams import Sink


@dataclass(frozen=True, kw_only=True)
class OfflineStore:
    """See the module's docstring.

    Attributes:
        of: URL of the store.
        cache: cache that it is read from.
    """

    of: str
    cache: Cache

    @property
    def url(self) -> str:
        """The store's URL with a note, for messages, that only the cache is read."""
        return f"{self.of} (offline: from the cache alone, TRACEFLEET_OFFLINE is set)"

    @property
    def _mirror(self) -> FileStore:
        return FileStore(root=self.cache.mirror(self.of))

    def read(self, path: str) -> bytes:
        return self._mirror.read(path)

    def names(self, prefix: str) -> list[str]:
        return self._mirror.names(prefix)

    def walk(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        return self._mirror.walk(prefix, after=after)

    def copy_out(self, path: str, sink: Sink) -> None:
        """Refuse: the store can't be reached."""
        raise self.refusal(f"to read {path} from the store itself")

    def open_checked(self, path: str, *, size: int, sha256: str) -> BufferedReader:
        """Open a file of the cache.

        Raises:
            StoreError: the file is not in the cache.
        """
        handle = self.cache.find(size=size, sha256=sha256)
        if handle is None:
            raise self.refusal(f"{path} in the cache, which doesn't have it or removed it")
        return handle

    def download_to(self, path: str, target: Path, *, size: int, sha256: str) -> None:
        with self.open_checked(path, size=size, sha256=sha256) as handle:
            self.cache.place(handle, target, sha256=sha256)

    def cache_selection(self, files: dict[str, bytes]) -> None:
        """Do nothing: whatever can be selected here is in the cache."""

    def presign(self, path: str, *, seconds: int) -> str:
        """Refuse: signing needs credentials and a server that accepts them."""
        raise self.refusal("to sign URLs")

    def refusal(self, expected: str) -> StoreError:
        """Return the error for an operation that needs the store itself."""
        return StoreError(
            f"{self.of}: expected {expected}, but TRACEFLEET_OFFLINE is set: only conversions that "
            f"were opened before can be read, from {self.cache.root}. Unset it to use the store."
        )
