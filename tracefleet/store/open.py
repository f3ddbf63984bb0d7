"""Open the store at a URL: ``open_store`` to read, ``open_writable`` to publish."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from tracefleet.errors import StoreError
from tracefleet.store.base import ReadableStore, Store
from tracefleet.store.cache import is_offline
from tracefleet.store.folder import FileStore
from tracefleet.store.offline import OfflineStore
from tracefleet.store.s3 import S3Store

_SUPPORTED = (
    "s3://bucket/prefix, file:///absolute/folder, file://./relative/folder or a plain folder path"
)

#: What lies in a store's root.
_FOLDERS = {
    "conversions",
    "channels",
    "attestations",
    "refusals",
    "guarded",
    "publishing",
    "collecting",
    "schema.json",
}


def open_store(url: str | Path) -> ReadableStore:
    """Return the store at ``url`` for reading; nothing is read yet.

    With ``TRACEFLEET_OFFLINE=1`` a store on S3 is read from the cache alone.

    Raises:
        StoreError: the URL is of no kind of store that this version knows.
    """
    return _open(url)


def open_existing(url: str | Path) -> ReadableStore:
    """Return the store at ``url``, if something there is one; on S3 that is not asked.

    Raises:
        StoreError: the URL is of no kind of store, or the path leads to something else.
    """
    store = _open(url)
    if isinstance(store, FileStore) and (found := _describe_other(store.root)):
        raise StoreError(f"{store.url}: expected a store, got {found}")
    return store


def _describe_other(root: Path) -> str:
    """Say what is at a path that leads to no store, and what to do; empty: it is one, or empty."""
    if not root.exists():
        return "nothing: there is no such folder. Check the path, or convert a checkpoint into it."
    if not root.is_dir():
        return "a file. Give the folder that conversions were published in."
    names = {path.name for path in root.iterdir()}
    if not names or names & _FOLDERS:
        return ""
    if "config.json" in names:
        return f"a checkpoint's folder. Convert it first: tracefleet convert {root} --store ./store"
    return "a folder that holds no conversions/ and no channels/. Give the store's root."


def open_writable(url: str | Path, *, check: bool = True) -> Store:
    """Return the store at ``url`` for writing.

    Args:
        url: URL of its root.
        check: whether to test writing now, by a probe; otherwise the first write does.

    Raises:
        StoreError: the URL is of no kind of store, or the store is offline or not writable.
    """
    store = _open(url)
    if isinstance(store, OfflineStore):
        raise store.refusal("to write")
    if check:
        store.check_writable()
    return store


def _open(url: str | Path) -> FileStore | S3Store | OfflineStore:
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return FileStore(root=_to_absolute(text, text))
    if scheme == "file":
        if not rest.startswith(("/", "./", "../", "~")):
            raise StoreError(f"store {text!r}: expected {_SUPPORTED}; file:// takes no host name")
        return FileStore(root=_to_absolute(unquote(rest), text))
    if scheme == "s3":
        store = S3Store.at(text)
        return OfflineStore(of=store.url, cache=store.cache) if is_offline() else store
    raise StoreError(f"store {text!r}: unknown scheme {scheme!r}, expected {_SUPPORTED}")


def _to_absolute(path: str, url: str) -> Path:
    if not path:
        raise StoreError(f"store {url!r}: the path is empty, expected {_SUPPORTED}")
    home = os.path.expanduser(path)  # noqa: PTH111 - shells leave the ~ of --store=~/x alone
    if home.startswith("~"):
        raise StoreError(
            f"store {url!r}: expected a home folder, got {path.partition('/')[0]!r}, which is no "
            f"user's here. Write ./{path} for a folder of that name."
        )
    return Path(os.path.abspath(home))  # noqa: PTH100 - resolve() would follow the user's links
