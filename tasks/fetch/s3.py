"""Checkpoints on S3: ``s3://bucket/prefix``, through s3fs.

Endpoint, region and credentials come from the standard AWS environment and files. The commit is a
digest of names, sizes and ETags. A download becomes visible, whole, in the cache folder or not at
all.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
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
from tasks.fetch.needed import needed_files
from tasks.fetch.source import CheckpointFile, Resolved, Wish, content_commit
from tasks.fetch.verify import check_files
from tracefleet.store.cache import cache_root

logger = logging.getLogger(__name__)

_SCHEME = "s3://"
_PARTIAL = ".partial"
_ABANDONED_SECONDS = 2 * 24 * 3600
_SETTINGS = ("AWS_", "FSSPEC_")
_KEEP_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class _Object:
    size: int
    etag: str
    modified: str


def resolve(wish: Wish) -> Resolved:
    """List the prefix and read its index, if it has one."""
    with _explained(wish.source):
        listing = _Prefix(wish.source)
        paths = needed_files(listing, wish)
        found = {path: listing.find(path) for path in paths}
    files = tuple(
        CheckpointFile(path=path, size=entry.size, sha256=None) for path, entry in found.items()
    )
    commit = _commit(found)
    logger.info("%s: content %s, %d files", wish.source, commit[:12], len(files))
    return Resolved(source=wish.source, revision=None, commit=commit, files=files)


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


@functools.lru_cache(maxsize=1)
def _connected(_pid: int, _settings: frozenset[tuple[str, str]], _period: int) -> Any:
    """Return the file view of S3; a fleet has a thousand prefixes, and each would cost 0.2 s.

    A new one for another process, other settings, and once in a while for credentials in files.
    Cached listings hide what others write, and s3fs' own cache of instances keeps old settings.
    """
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


class _Prefix:
    """The objects under a prefix, as a listing."""

    def __init__(self, source: str) -> None:
        self._root = source.removeprefix(_SCHEME)
        settings = frozenset(item for item in os.environ.items() if item[0].startswith(_SETTINGS))
        self._files = _connected(os.getpid(), settings, int(time.monotonic() // _KEEP_SECONDS))
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
            self._objects[path] = self._ask(path)
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
        self._files.get_file(f"{self._root}/{path}", str(target))

    def _ask(self, path: str) -> _Object | None:
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
    with _explained(resolved.source):
        prefix = _Prefix(resolved.source)
        before = _unchanged(resolved, prefix)
        for number, file in enumerate(files, start=1):
            start = time.perf_counter()
            prefix.download(file.path, folder / file.path)
            took = rate(file.size, time.perf_counter() - start)
            logger.info("%d/%d %s: %s", number, len(files), file.path, took)
        # A large object comes in ranges, and one that is overwritten meanwhile arrives torn,
        # without an error. Times too: an object can be overwritten and put back.
        prefix.refresh()
        if _unchanged(resolved, prefix) != before:
            raise _changed(resolved, "the same objects, written again")


def _unchanged(resolved: Resolved, listing: _Prefix) -> dict[str, _Object]:
    paths = [file.path for file in resolved.files]
    if missing := [path for path in paths if not listing.has(path)]:
        raise _changed(resolved, f"no object {missing[0]}")
    found = {path: listing.find(path) for path in paths}
    if (commit := _commit(found)) != resolved.commit:
        raise _changed(resolved, f"content {commit}")
    return found


def _changed(resolved: Resolved, got: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{resolved.source}: expected content {resolved.commit}, got {got}. Objects were "
        "overwritten while they were fetched; nothing was kept. Run again when the upload is done."
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


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn S3's refusals into ours; what may pass by itself keeps its type."""
    from botocore.exceptions import NoCredentialsError, ParamValidationError, ProfileNotFound

    bucket, _, prefix = source.removeprefix(_SCHEME).partition("/")
    where = f"{source}: bucket {bucket!r}, prefix {prefix!r}"
    try:
        yield
    except FileNotFoundError as error:
        raise RequestError(
            f"{where}: expected objects there, got none ({error}). Check bucket and prefix, and "
            "AWS_ENDPOINT_URL if the bucket is not on AWS."
        ) from error
    except PermissionError as error:
        raise RequestError(
            f"{where}: expected to list and read it, got denied ({error}). Allow s3:ListBucket "
            "and s3:GetObject to these credentials, or use others (AWS_PROFILE)."
        ) from error
    except (NoCredentialsError, ProfileNotFound, ParamValidationError) as error:
        raise RequestError(
            f"{where}: expected AWS settings that can be used, got: {error}. Set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
