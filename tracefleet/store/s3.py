"""A store on S3 or on any server that speaks its API and honours ``If-None-Match: *``.

Promises of ``tracefleet.store.base`` by conditional writes: an object is visible whole or not at
all, and of many that create one key exactly one wins. Files are hashed while they are sent, and
what they were hashed to stands in their metadata. Where a server does not check what it receives,
each file is read back before it counts as put.
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
from tracefleet.store.s3_client import presigning_client
from tracefleet.store.s3_errors import LOST, code_of, explained
from tracefleet.store.s3_upload import put_file
from tracefleet.store.streams import Sink

if TYPE_CHECKING:
    from botocore.config import Config

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
#: SigV4 URLs live for a week at most (S3 User Guide, "Presigned URL expiration").
_LONGEST_PRESIGN = 7 * 24 * 3600

#: Keys in the first request of a listing; S3 gives 1,000 in each of the others.
_FIRST_KEYS = 50

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class S3Store:
    """A prefix of a bucket. Safe for many machines at once.

    Attributes:
        root: the bucket and prefix.
        cache: where downloads go.
    """

    root: Bucket
    cache: Cache = field(default_factory=Cache, repr=False)

    @classmethod
    def at(cls, url: str, config: Config | None = None) -> S3Store:
        """Return the store at ``s3://bucket/prefix``.

        Args:
            url: of its root.
            config: of botocore, over ours and the environment's: timeouts, for example.

        Raises:
            StoreError: the URL is malformed.
        """
        name, *segments = url.removeprefix("s3://").rstrip("/").split("/")
        odd = any(part in ("", ".", "..") or set(part) & set("?#\\\0") for part in segments)
        if not _BUCKET.fullmatch(name) or odd:
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
        """Probe conditional writes, which leaves one tiny object under ``probe/``."""
        self.root.check_conditions()
        logger.debug("%s: checks what it receives: %s", self.url, self.root.checks_what_it_receives)

    def put_new(self, path: str, data: bytes) -> bool:
        self.root.check_conditions()
        return self._create(path, data)

    def put_file(self, path: str, local: Path, *, size: int, sha256: str) -> None:
        put_file(self.root, path, local, size=size, sha256=sha256)

    def put_over(self, path: str, data: bytes) -> None:
        with explained(self.root.at(path), "PutObject"):
            self.root.connected.s3.put_object(Body=data, **self.root.written(path))

    def read(self, path: str) -> bytes:
        with explained(self.root.at(path), "GetObject"):
            data: bytes = self.root.connected.files.cat_file(
                f"{self.root.name}/{self.root.key(path)}"
            )
        return data

    def names(self, prefix: str) -> list[str]:
        folder = f"{self.root.name}/{self.root.key(prefix)}".rstrip("/")
        try:
            with explained(self.root.at(prefix), "ListObjectsV2"):
                listed = self.root.connected.files.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        # A file has no children: it is listed as itself.
        return sorted(path.rpartition("/")[2] for path in listed if path != folder)

    def walk(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield every file below a folder: one request for each thousand."""
        where = {
            "Bucket": self.root.name,
            "Prefix": f"{self.root.key(prefix)}/" if prefix else self.root.key(""),
            **({"StartAfter": self.root.key(after)} if after else {}),
        }
        with explained(self.root.at(prefix), "ListObjectsV2"):
            s3 = self.root.connected.s3
            # Servers take their time for a thousand keys; who wants the first few has them soon.
            first = s3.list_objects_v2(MaxKeys=_FIRST_KEYS, **where)
            yield from self._stored(first)
            if first["IsTruncated"]:
                where["StartAfter"] = first["Contents"][-1]["Key"]
                for page in s3.get_paginator("list_objects_v2").paginate(**where):
                    yield from self._stored(page)

    def _stored(self, page: dict[str, Any]) -> Iterator[Stored]:
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
        with suppress(StoreError):  # a read-only cache serves what it holds
            for path, data in files.items():
                mirror.put_over(path, data)

    def remove(self, paths: Iterable[str]) -> None:
        self.root.remove(paths)

    def uploads(self) -> Iterator[Upload]:
        return self.root.unfinished(self.root.key(""))

    def abort(self, upload: Upload) -> None:
        self.root.abort(upload)

    def presign(self, path: str, *, seconds: int) -> str:
        """Return a URL signed with these credentials.

        Raises:
            StoreError: more than a week, or no credentials.
        """
        if not 0 < seconds <= _LONGEST_PRESIGN:
            raise StoreError(
                f"presigned URLs: expected 1 to {_LONGEST_PRESIGN} seconds (a week), got {seconds}"
            )
        with explained(self.root.at(path), "GetObject"):
            url: str = presigning_client(self.root.config).generate_presigned_url(
                "get_object",
                Params={"Bucket": self.root.name, "Key": self.root.key(path)},
                ExpiresIn=seconds,
            )
        return url

    def _create(self, path: str, data: bytes) -> bool:
        with explained(self.root.at(path), "PutObject"):
            try:
                self.root.connected.once.put_object(Body=data, **self.root.written(path))
            except Exception as error:
                if code_of(error) not in LOST:
                    raise
            else:
                return True
        # The answer to a write that won can get lost, and its retry is refused: whose is it?
        try:
            return self.read(path) == data
        except FileNotFoundError:
            raise StoreUnavailableError(
                f"{self.root.at(path)}: PutObject expected to create it or to find it, got a "
                "conflict with another writer and no object. Run again."
            ) from None
