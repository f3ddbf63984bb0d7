"""A store on S3 without a network: what the cache holds of it, to be read alone.

``open_store`` returns it under ``TRACEFLEET_OFFLINE=1``. What can be opened is what was opened
before: its channel entry and manifest are mirrored in the cache, its files lie there by digest.
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
        return self._mirror.read(path)

    def names(self, prefix: str) -> list[str]:
        return self._mirror.names(prefix)

    def walk(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        return self._mirror.walk(prefix, after=after)

    def copy_out(self, path: str, sink: Sink) -> None:
        """Refuse: the store itself is not here."""
        raise self.refusal(f"to read {path} from the store itself")

    def open_checked(self, path: str, *, size: int, sha256: str) -> BufferedReader:
        """Open a file of the cache.

        Raises:
            StoreError: the file is not in the cache.
        """
        handle = self.cache.find(size=size, sha256=sha256)
        if handle is None:
            raise self.refusal(f"{path} from the cache, which does not hold it (any more)")
        return handle

    def download_to(self, path: str, target: Path, *, size: int, sha256: str) -> None:
        with self.open_checked(path, size=size, sha256=sha256) as handle:
            self.cache.place(handle, target, sha256=sha256)

    def cache_selection(self, files: dict[str, bytes]) -> None:
        """Keep nothing: what can be selected here is in the cache."""

    def presign(self, path: str, *, seconds: int) -> str:
        """Refuse: only valid credentials sign."""
        raise self.refusal("to sign URLs")

    def refusal(self, expected: str) -> StoreError:
        """Return the error for what needs the store itself."""
        return StoreError(
            f"{self.of}: expected {expected}, but TRACEFLEET_OFFLINE is set and only what was "
            f"opened before can be opened, from {self.cache.root}. Unset it to reach the store."
        )
