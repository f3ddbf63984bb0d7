"""A prefix of a bucket: clients, keys, and what the server behind it can be relied on for.

``tracefleet.store.s3`` and ``tracefleet.store.s3_upload`` are built on it.
"""

from __future__ import annotations

import functools
import logging
import mimetypes
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracefleet.canonical import check_relative
from tracefleet.errors import StoreError
from tracefleet.store.base import Upload
from tracefleet.store.s3_client import Connection, download_config
from tracefleet.store.s3_errors import LOST, code_of, explained, refusal_for
from tracefleet.store.streams import ArrivingFile, Sink

if TYPE_CHECKING:
    from botocore.config import Config

_PROBE = "probe/conditional-write"
_WRONG = "probe/wrong-checksum"
#: What servers answer to bytes that do not have the checksum sent with them.
_REFUSED_CHECKSUM = {"BadDigest", "InvalidDigest", "InvalidRequest", "XAmzContentChecksumMismatch"}

#: S3 User Guide, "Deleting multiple objects".
_DELETE_AT_ONCE = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Where a store lies on S3.

    Attributes:
        name: the bucket's.
        prefix: what every key begins with, without slashes around; may be empty.
        config: of botocore, over ours and the environment's: timeouts, for example.
    """

    name: str
    prefix: str = ""
    config: Config | None = field(default=None, repr=False)
    _connections: dict[int, Connection] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        """Leave the clients behind: each process connects by itself."""
        make = functools.partial(Bucket, name=self.name, prefix=self.prefix, config=self.config)
        return make, ()

    @property
    def url(self) -> str:
        """As an ``s3://`` URL."""
        return f"s3://{self.name}/{self.prefix}".rstrip("/")

    def key(self, path: str) -> str:
        """Return the key of a path below the prefix; ``""`` gives what all keys begin with.

        Raises:
            ManifestError: the path could leave the prefix.
        """
        inside = check_relative(path) if path else ""
        return f"{self.prefix}/{inside}" if self.prefix else inside

    def at(self, path: str) -> str:
        """Return the URL of a path below the prefix."""
        return f"s3://{self.name}/{self.key(path)}"

    def path(self, key: str) -> str:
        """Return the path below the prefix that has this key."""
        return key[len(self.key("")) :]

    @property
    def connected(self) -> Connection:
        """This process's clients."""
        process = os.getpid()  # s3fs refuses to be used across a fork
        if process not in self._connections:
            with explained(self.url, "connect"):
                self._connections[process] = Connection(self.config)
        return self._connections[process]

    @functools.cached_property
    def _honours_conditions(self) -> bool:
        """Whether a second conditional write of one key is refused; asked once a process."""
        data = b"tracefleet checks here that this server honours If-None-Match: *\n"
        with explained(self.at(_PROBE), "PutObject"):
            for _ in range(2):
                try:
                    self.connected.once.put_object(Body=data, **self.written(_PROBE))
                except Exception as error:
                    if code_of(error) not in LOST:
                        raise
                    return True
        return False

    def check_conditions(self) -> None:
        """Return if this server's conditional writes can be relied on.

        Raises:
            StoreError: it ignores them: two publishers would overwrite each other.
        """
        if not self._honours_conditions:
            raise StoreError(
                f"{self.at(_PROBE)}: PutObject with If-None-Match: * expected 412 for a key that "
                "is there, got success: this server ignores conditional writes, so publishers "
                "could overwrite each other. Nothing was published; use AWS S3 or a server that "
                "honours them."
            )

    @functools.cached_property
    def checks_what_it_receives(self) -> bool:
        """Whether bytes that do not have the checksum sent with them are refused."""
        wrong = {"Body": b"tracefleet", "ChecksumCRC32": "AAAAAA=="}
        with explained(self.at(_WRONG), "PutObject"):
            try:
                self.connected.s3.put_object(**self.written(_WRONG), **wrong)
            except Exception as error:
                if code_of(error) not in _REFUSED_CHECKSUM:
                    raise
                return True
        logger.info("%s does not check what it receives: files are read back", self.url)
        with suppress(StoreError):  # not every publisher may remove
            self.remove([_WRONG])
        return False

    def copy_out(self, path: str, sink: Sink) -> None:
        """Write an object into ``sink``: parallel ranges of one version of it, put in order."""
        self._download(path, _InOrder(sink))

    def fetch(self, path: str, file: ArrivingFile) -> None:
        """Write an object into a file: parallel ranges of one version of it, as they come."""
        self._download(path, _AnyOrder(file))

    def _download(self, path: str, target: _InOrder) -> None:
        try:
            with explained(self.at(path), "GetObject"):
                self.connected.s3.download_fileobj(
                    self.name, self.key(path), target, Config=download_config()
                )
        except StoreError:
            if target.error is not None:
                raise target.error from None  # where it was written to failed, not the store
            raise

    def remove(self, paths: Iterable[str]) -> None:
        """Remove objects; those that are gone already count as removed."""
        keys = [{"Key": self.key(path)} for path in paths]
        for start in range(0, len(keys), _DELETE_AT_ONCE):
            batch = {"Objects": keys[start : start + _DELETE_AT_ONCE], "Quiet": True}
            with explained(self.url, "DeleteObjects"):
                answer = self.connected.s3.delete_objects(Bucket=self.name, Delete=batch)
            for failed in answer.get("Errors", ()):
                code, said = str(failed.get("Code")), f" ({failed.get('Message')})"
                refusal = refusal_for(code, "DeleteObjects", said)
                raise refusal.as_error(f"s3://{self.name}/{failed.get('Key')}")

    def unfinished(self, key: str) -> Iterator[Upload]:
        """Yield the multipart uploads below a key that were begun and not completed."""
        with explained(self.url, "ListMultipartUploads"):
            pages = self.connected.s3.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.name, Prefix=key):
                for found in page.get("Uploads", ()):
                    yield Upload(
                        path=self.path(found["Key"]),
                        identifier=found["UploadId"],
                        started=found["Initiated"].timestamp(),
                    )

    def abort(self, upload: Upload) -> None:
        """Abort a multipart upload; one that is gone already counts as aborted."""
        with suppress(FileNotFoundError), explained(self.at(upload.path), "AbortMultipartUpload"):
            try:
                self.connected.s3.abort_multipart_upload(
                    Bucket=self.name, Key=self.key(upload.path), UploadId=upload.identifier
                )
            except Exception as error:
                if code_of(error) != "NoSuchUpload":
                    raise

    def written(self, path: str) -> dict[str, Any]:
        """Return what every write of a path carries."""
        media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return {
            "Bucket": self.name,
            "Key": self.key(path),
            "ContentType": media_type,
            **self.connected.extra,
        }


class _InOrder:
    """Shows the transfer client a target that can't seek, so that bytes come in order."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.error: OSError | None = None

    def write(self, data: bytes) -> None:
        try:
            self._sink.write(data)
        except OSError as error:
            self.error = error
            raise


class _AnyOrder(_InOrder):
    """Shows it one that can, so that nothing has to wait in memory for its turn."""

    def __init__(self, file: ArrivingFile) -> None:
        super().__init__(file)
        self.seekable, self.seek, self.tell = file.seekable, file.seek, file.tell
