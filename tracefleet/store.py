"""Stores: a root URL under which conversions, channels and reports lie.

Publishers write through ``put_new``, ``put_file`` and ``put_over``; readers use the rest. What
every store promises: a file is visible whole or not at all, ``put_new`` has one winner however
many race, and what was put survives a power cut. Paths are relative to the root and can't leave
it, not by ``..`` and not by a symbolic link.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from tracefleet.errors import StoreError
from tracefleet.file_store import FileStore

__all__ = ["FileStore", "Store", "open_store"]
_SUPPORTED = "file:///absolute/folder, file://./relative/folder or a plain folder path"


class Store(Protocol):
    """What every kind of store offers."""

    @property
    def url(self) -> str:
        """The root, as a URL."""
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

    def read(self, path: str) -> bytes:
        """Return the file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder under ``path``."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Return the immediate children of a folder (``""`` is the root), sorted."""
        ...

    def local(self, path: str) -> Path:
        """Return a local path that holds the file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def check_writable(self) -> None:
        """Return if the store can be written to, leaving nothing behind.

        Raises:
            StoreError: it can't, with the reason and the next step.
        """
        ...


def open_store(url: str | Path) -> Store:
    """Return the store at ``url``; nothing is read or created yet.

    Raises:
        StoreError: the URL names no kind of store that this version knows.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return FileStore(root=_absolute(text, text))
    if scheme == "file":
        if not rest.startswith(("/", "./", "../")):
            raise StoreError(f"store {text!r}: expected {_SUPPORTED}; file:// takes no host name")
        return FileStore(root=_absolute(unquote(rest), text))
    if scheme == "s3":
        raise StoreError(
            f"store {text!r}: s3:// stores are not available yet in this version of tracefleet. "
            f"Use {_SUPPORTED}."
        )
    raise StoreError(f"store {text!r}: unknown scheme {scheme!r}, expected {_SUPPORTED}")


def _absolute(path: str, url: str) -> Path:
    if not path:
        raise StoreError(f"store {url!r}: the path is empty, expected {_SUPPORTED}")
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the user's links
