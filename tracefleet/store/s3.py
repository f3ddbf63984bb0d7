"""A store on S3, or on any server that has its API and honours ``If-None-Match: *``.

It gives the guarantees of ``tracefleet.store.base`` by conditional writes: an object is visible
completely or not at all, and of several writers that create one key exactly one succeeds. Files are
hashed while they are uploaded, and their digest is in their metadata. If a server does not check
what it receives, each file is read back after its upload.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracefleet.errors import StoreError, StoreUnavailableError
from tracefleet.store.base import Stored, Upload
from tracefleet.store.cache import Cache
from tracefleet.store.folder import FileStore
from tracefleet.store.s3_bucket import Bucket
from tracefleet.store.s3_client import make_presigning_client
from tracefleet.store.s3_errors import LOST, code_of, translating_errors
from tracefleet.store.s3_upload import put_file
from tracefleet.store.streams import Sink

if TYPE_CHECKING:
    from botocore.config import Config

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
#: SigV4 URLs are valid for at most a week (S3 User Guide, "Presigned URL expiration").
_LONGEST_PRESIGN = 7 * 24 * 3600

#: Keys in the first page of a listing; the others have 1,000. Servers need long for a thousand
#: keys, and a reader of the first few should not wait for them.
_FIRST_KEYS = 50

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class S3Store:
    """A prefix of a bucket. Safe for many machines at once.

    Attributes:
        root: bucket and prefix.
        cache: cache of downloads.
    """

    root: Bucket
    cache: Cache = field(default_factory=Cache, repr=False)

    @classmethod
    def at(cls, url: str, config: Config | None = None) -> S3Store:
        """Return the store at ``s3://bucket/prefix``.

        Args:
            url: URL of its root.
            config: configuration of botocore that overrides ours and the environment's.

        Raises:
            StoreError: the URL is malformed.
        """
        name, *segments = url.removeprefix("s3://").rstrip("/").split("/")
        odd = any(part in ("", ".", "..") or set(part) & set("?#\\\0") for part in segments)
        if name and not _BUCKET.fullmatch(name):
            raise StoreError(
                f"store {url!r}: expected s3://bucket/prefix, got {name!r} as the bucket's name, "
                "which no bucket can have: S3's are 3 to 63 letters, digits, dots and hyphens"
            )
        if not name or odd:
            raise StoreError(
                f"store {url!r}: expected s3://bucket/prefix, got bucket {name!r} and prefix "
                f"{'/'.join(segments)!r}"
            )
        return cls(root=Bucket(name=name, prefix="/".join(segments), config=config))

    @property
    def url(self) -> str:
        """The root as an ``s3://`` URL."""
        return self.root.url

    def check_writable(self) -> None:
        """Probe conditional writes; this leaves one tiny object under ``probe/``."""
        self.root.check_conditions()
        logger.debug("%s: checks what it receives: %s", self.url, self.root.checks_what_it_receives)

    def put_new(self, path: str, data: bytes) -> bool:
        self.root.check_conditions()
        return self._create(path, data)

    def put_file(self, path: str, local: Path, *, size: int, sha256: str) -> None:
        put_file(self.root, path, local, size=size, sha256=sha256)

    def put_over(self, path: str, data: bytes) -> None:
        with translating_errors(self.root.at(path), "PutObject"):
            self.root.connection.s3.put_object(Body=data, **self.root.write_arguments(path))

    def read(self, path: str) -> bytes:
        with translating_errors(self.root.at(path), "GetObject"):
            data: bytes = self.root.connection.files.cat_file(
                f"{self.root.name}/{self.root.key(path)}"
            )
        return data

    def names(self, prefix: str) -> list[str]:
        folder = f"{self.root.name}/{self.root.key(prefix)}".rstrip("/")
        try:
            with translating_errors(self.root.at(prefix), "ListObjectsV2"):
                listed = self.root.connection.files.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        # A file has no children: it is listed as itself.
        return sorted(path.rpartition("/")[2] for path in listed if path != folder)

    def walk(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield every file below a folder, with one request for each thousand."""
        below = f"{self.root.key(prefix)}/" if prefix else self.root.key("")
        where = {"Bucket": self.root.name, "Prefix": below}
        if after:
            where["StartAfter"] = self.root.key(after)
        with translating_errors(self.root.at(prefix), "ListObjectsV2"):
            s3 = self.root.connection.s3
            first = s3.list_objects_v2(MaxKeys=_FIRST_KEYS, **where)
            yield from self._list_page(first)
            if first["IsTruncated"]:
                where["StartAfter"] = first["Contents"][-1]["Key"]
                for page in s3.get_paginator("list_objects_v2").paginate(**where):
                    yield from self._list_page(page)

    def _list_page(self, page: dict[str, Any]) -> Iterator[Stored]:
        for found in page.get("Contents", ()):
            yield Stored(
                path=self.root.path(found["Key"]),
                size=found["Size"],
                modified=found["LastModified"].timestamp(),
            )

    def copy_out(self, path: str, sink: Sink) -> None:
        self.root.copy_out(path, sink)

    def open_checked(self, path: str, *, size: int, sha256: str) -> BufferedReader:
        """Open a file through the cache."""
        download = functools.partial(self.root.fetch, path)
        return self.cache.open(self.root.at(path), download, size=size, sha256=sha256)

    def download_to(self, path: str, target: Path, *, size: int, sha256: str) -> None:
        """Create a local file through the cache."""
        with self.open_checked(path, size=size, sha256=sha256) as handle:
            self.cache.place(handle, target, sha256=sha256)

    def cache_selection(self, files: dict[str, bytes]) -> None:
        mirror = FileStore(root=self.cache.mirror(self.url))
        with suppress(StoreError):  # a read-only cache is usable for reading
            for path, data in files.items():
                mirror.put_over(path, data)

    def remove(self, paths: Iterable[str]) -> None:
        self.root.remove(paths)

    def uploads(self) -> Iterator[Upload]:
        return self.root.list_unfinished(self.root.key(""))

    def abort(self, upload: Upload) -> None:
        self.root.abort(upload)

    def presign(self, path: str, *, seconds: int) -> str:
        """Return a URL signed with these credentials.

        Raises:
            StoreError: the time is more than a week, or there are no credentials.
        """
        if not 0 < seconds <= _LONGEST_PRESIGN:
            raise StoreError(
                f"presigned URLs: expected 1 to {_LONGEST_PRESIGN} seconds (a week), got {seconds}"
            )
        with translating_errors(self.root.at(path), "GetObject"):
            url: str = make_presigning_client(self.root.config).generate_presigned_url(
                "get_object",
                Params={"Bucket": self.root.name, "Key": self.root.key(path)},
                ExpiresIn=seconds,
            )
        return url

    def _create(self, path: str, data: bytes) -> bool:
        with translating_errors(self.root.at(path), "PutObject"):
            try:
                self.root.connection.create_only.put_object(
                    Body=data, **self.root.write_arguments(path)
                )
            except Exception as error:
                if code_of(error) not in LOST:
                    raise
            else:
                return True
        # If the response to a successful write is lost, its retry is refused: compare the bytes.
        try:
            return self.read(path) == data
        except FileNotFoundError:
            raise StoreUnavailableError(
                f"{self.root.at(path)}: PutObject expected to create it or to find it, got a "
                "conflict with another writer and no object. Run again."
            ) from None
