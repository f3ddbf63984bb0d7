"""A URL becomes a store: ``open_store``."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from tracefleet.errors import StoreError
from tracefleet.store.base import Store
from tracefleet.store.cache import is_offline

_SUPPORTED = (
    "s3://bucket/prefix, file:///absolute/folder, file://./relative/folder or a plain folder path"
)


def open_store(url: str | Path) -> Store:
    """Return the store at ``url``; nothing is read or created yet.

    With ``TRACEFLEET_OFFLINE=1`` a store on S3 is what the cache holds of it.

    Raises:
        StoreError: the URL names no kind of store that this version knows.
    """
    from tracefleet.store.folder import FileStore
    from tracefleet.store.offline import OfflineStore
    from tracefleet.store.s3 import S3Store

    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return FileStore(root=_absolute(text, text))
    if scheme == "file":
        if not rest.startswith(("/", "./", "../")):
            raise StoreError(f"store {text!r}: expected {_SUPPORTED}; file:// takes no host name")
        return FileStore(root=_absolute(unquote(rest), text))
    if scheme == "s3":
        store = S3Store.at(text)
        return OfflineStore(of=store.url, cache=store.cache) if is_offline() else store
    raise StoreError(f"store {text!r}: unknown scheme {scheme!r}, expected {_SUPPORTED}")


def _absolute(path: str, url: str) -> Path:
    if not path:
        raise StoreError(f"store {url!r}: the path is empty, expected {_SUPPORTED}")
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the user's links
