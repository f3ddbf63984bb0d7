"""Checkpoints on S3: ``s3://bucket/prefix``, through the clients of ``tracefleet.store``.

Endpoint, region and credentials come from the standard AWS environment and files. The commit is a
digest of names, sizes and ETags. A download becomes visible, whole, in the cache folder or not at
all.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import RequestError, UnsafeCheckpointError
from tasks.fetch.digests import rate
from tasks.fetch.needed import list_needed_files
from tasks.fetch.source import CheckpointFile, Resolved, SourceRequest, content_commit
from tasks.fetch.verify import check_files
from tracefleet.errors import StoreError
from tracefleet.store.cache import cache_root
from tracefleet.store.s3_client import download_config, share_connection
from tracefleet.store.s3_errors import LOST, client_errors, code_of, refusal_of

logger = logging.getLogger(__name__)

_SCHEME = "s3://"
_PARTIAL = ".partial"
_CHECK_NETWORK = "Check the network and AWS_ENDPOINT_URL, then run again."
_ABANDONED_SECONDS = 2 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class _Object:
    size: int
    etag: str
    modified: str


def resolve(request: SourceRequest) -> Resolved:
    """List the prefix and read its index, if it has one."""
    with explaining_errors("objects there", where=_where(request.source)):
        listing = _Prefix(request.source)
        paths = list_needed_files(listing, request)
        found = {path: listing.find(path) for path in paths}
    files = tuple(
        CheckpointFile(path=path, size=entry.size, sha256=None) for path, entry in found.items()
    )
    commit = _commit(found)
    logger.info("%s: content %s, %d files", request.source, commit[:12], len(files))
    return Resolved(source=request.source, revision=None, commit=commit, files=files)


def describe(resolved: Resolved) -> Path:
    """Download every file but the weights."""
    files = tuple(file for file in resolved.files if not file.is_weights)
    return _download(resolved, files, f"{resolved.commit}.description")


def fetch(resolved: Resolved) -> tuple[Path, tuple[CheckpointFile, ...]]:
    """Download every file.

    Raises:
        UnsafeCheckpointError: an object was overwritten since it was resolved.
    """
    return _download(resolved, resolved.files, resolved.commit), resolved.files


class _Prefix:
    """The objects under a prefix, as a listing."""

    def __init__(self, source: str) -> None:
        self._root = source.removeprefix(_SCHEME)
        self._connection = share_connection()
        self._files = self._connection.files
        self.refresh()

    def refresh(self) -> None:
        """List the prefix again."""
        listed = self._files.ls(self._root, detail=True)
        self._objects: dict[str, _Object | None] = {
            entry["name"].removeprefix(f"{self._root}/"): _object(entry)
            for entry in listed
            if entry["type"] == "file" and entry["name"].startswith(f"{self._root}/")
        }
        self._objects.pop("", None)  # the empty object that a console makes for a "folder"

    def names(self) -> list[str]:
        return [name for name, found in self._objects.items() if found]

    def has(self, path: str) -> bool:
        if "/" in path and path not in self._objects:
            self._objects[path] = self._look_up(path)
        return self._objects.get(path) is not None

    def find(self, path: str) -> _Object:
        if not self.has(path):
            raise FileNotFoundError(path)
        found = self._objects[path]
        assert found is not None
        return found

    def read(self, path: str, limit: int) -> bytes:
        data: bytes = self._files.cat_file(f"{self._root}/{path}", start=0, end=limit)
        return data

    def download(self, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        bucket, _, key = f"{self._root}/{path}".partition("/")
        self._connection.s3.download_file(bucket, key, str(target), Config=download_config())

    def _look_up(self, path: str) -> _Object | None:
        try:
            entry = self._files.info(f"{self._root}/{path}")
        except FileNotFoundError:
            return None
        return _object(entry) if entry["type"] == "file" else None


def _object(entry: dict[str, Any]) -> _Object:
    return _Object(
        size=int(entry["size"]),
        etag=str(entry["ETag"]).strip('"'),
        modified=str(entry.get("LastModified")),
    )


def _download(resolved: Resolved, files: tuple[CheckpointFile, ...], name: str) -> Path:
    """Return a folder with exactly these files, from the cache or downloaded."""
    slug = hashlib.sha256(resolved.source.encode()).hexdigest()
    folder = cache_root() / "s3" / slug / name
    if folder.is_dir():
        if all(_has_size(folder / file.path, file.size) for file in files):
            logger.info("%s: already here", resolved.source)
            return folder
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, suffix=_PARTIAL))
    try:
        _download_into(partial, resolved, files)
        check_files(partial, files)
        _appear(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _download_into(folder: Path, resolved: Resolved, files: tuple[CheckpointFile, ...]) -> None:
    with explaining_errors("objects there", where=_where(resolved.source)):
        prefix = _Prefix(resolved.source)
        before = _check_unchanged(resolved, prefix)
        for number, file in enumerate(files, start=1):
            start = time.perf_counter()
            _download_one(resolved, prefix, file.path, folder)
            took = rate(file.size, time.perf_counter() - start)
            logger.info("%d/%d %s: %s", number, len(files), file.path, took)
        # Times too: an object can be overwritten and put back.
        prefix.refresh()
        if _check_unchanged(resolved, prefix) != before:
            raise _change_error(resolved, "the same objects, written again")


def _download_one(resolved: Resolved, prefix: _Prefix, path: str, folder: Path) -> None:
    try:
        prefix.download(path, folder / path)
    except Exception as error:
        if code_of(error) not in LOST:
            raise
        raise _change_error(resolved, f"another {path}") from error


def _check_unchanged(resolved: Resolved, listing: _Prefix) -> dict[str, _Object]:
    paths = [file.path for file in resolved.files]
    if missing := [path for path in paths if not listing.has(path)]:
        raise _change_error(resolved, f"no object {missing[0]}")
    found = {path: listing.find(path) for path in paths}
    if (commit := _commit(found)) != resolved.commit:
        raise _change_error(resolved, f"content {commit}")
    return found


def _change_error(resolved: Resolved, got: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{resolved.source}: expected content {resolved.commit}, got {got}. Objects were "
        "overwritten while they were fetched; nothing was kept. Run again when the upload is done.",
        lasting=False,
    )


def _appear(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        # Another process was first, with the same content; anything else is a real failure.
        if not folder.is_dir():
            raise


def _sweep(folder: Path) -> None:
    """Remove what killed downloads left behind."""
    for left in folder.glob(f"*{_PARTIAL}"):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _commit(found: dict[str, _Object]) -> str:
    return content_commit((path, entry.size, entry.etag) for path, entry in found.items())


def _where(source: str) -> str:
    bucket, _, prefix = source.removeprefix(_SCHEME).partition("/")
    return f"{source}: bucket {bucket!r}, prefix {prefix!r}: "


@contextmanager
def explaining_errors(expected: str, *, where: str = "") -> Iterator[None]:
    """Turn S3's refusals into ours; what may pass by itself keeps its library's type.

    Args:
        expected: what was to be read.
        where: what the message begins with.

    Raises:
        RequestError: it is not there, may not be read, or the AWS settings can't be used.
    """
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except StoreError as error:
        raise RequestError(f"{where}{error}") from error
    except client_errors() as error:
        refusal = refusal_of(error, "GetObject")
        if refusal.kind in ("damaged", "transient"):
            if isinstance(error, BotoCoreError):  # its message is its argument, and names the host
                error.args = (f"{where}expected {expected}, got {refusal.got}. {_CHECK_NETWORK}",)
            raise
        raise RequestError(
            f"{where}expected {expected}, got {refusal.got}. {refusal.advice}"
        ) from error
