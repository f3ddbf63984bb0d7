"""A prefix of a bucket: clients, keys, transfers, and probes of the server's guarantees.

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
from tracefleet.store import s3_probes
from tracefleet.store.base import Upload
from tracefleet.store.s3_client import Connection, download_config
from tracefleet.store.s3_errors import code_of, refusal_for, translating_errors
from tracefleet.store.streams import ArrivingFile, Sink

if TYPE_CHECKING:
    from botocore.config import Config

#: S3 User Guide, "Deleting multiple objects".
_DELETE_AT_ONCE = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """A bucket and a prefix of keys in it.

    Attributes:
        name: name of the bucket.
        prefix: prefix of every key, without slashes at its ends; may be empty.
        config: configuration of botocore that overrides ours and the environment's.
    """

    name: str
    prefix: str = ""
    config: Config | None = field(default=None, repr=False)
    _connections: dict[int, Connection] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without the clients: each process makes its own."""
        make = functools.partial(Bucket, name=self.name, prefix=self.prefix, config=self.config)
        return make, ()

    @property
    def url(self) -> str:
        """The bucket and prefix as an ``s3://`` URL."""
        return f"s3://{self.name}/{self.prefix}".rstrip("/")

    def key(self, path: str) -> str:
        """Return the key of a path below the prefix; of ``""``, the beginning of all keys.

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
    def connection(self) -> Connection:
        """This process's clients."""
        process = os.getpid()  # s3fs refuses to be used across a fork
        if process not in self._connections:
            with translating_errors(self.url, "connect"):
                self._connections[process] = Connection(self.config)
        return self._connections[process]

    @functools.cached_property
    def _honours_conditions(self) -> bool:
        where = s3_probes.CONDITION
        with translating_errors(self.at(where), "PutObject"):
            client = self.connection.create_only
            return s3_probes.honours_conditions(client, self.write_arguments(where))

    def check_conditions(self) -> None:
        """Return if this server's conditional writes can be relied on.

        Raises:
            StoreError: it ignores them: two publishers would overwrite each other.
        """
        if not self._honours_conditions:
            raise StoreError(
                f"{self.at(s3_probes.CONDITION)}: PutObject with If-None-Match: * expected 412 for "
                "an existing key, got success: this server ignores conditional writes, so "
                "publishers could overwrite each other. Nothing was published; use AWS S3 or a "
                "server that honours them, and no versioning on a server that drops them with it."
            )

    @functools.cached_property
    def honours_completions(self) -> bool:
        """Whether a second conditional completion of one key's multipart upload is refused."""
        where = s3_probes.COMPLETION
        with translating_errors(self.at(where), "CompleteMultipartUpload"):
            client = self.connection.create_only
            honours = s3_probes.honours_completions(client, self.write_arguments(where))
        if not honours:
            logger.info("%s ignores If-None-Match where parts are completed", self.url)
        return honours

    @functools.cached_property
    def checks_what_it_receives(self) -> bool:
        """Whether bytes that don't have the checksum sent with them are refused."""
        where = s3_probes.WRONG
        with translating_errors(self.at(where), "PutObject"):
            client = self.connection.s3
            checks = s3_probes.checks_checksums(client, self.write_arguments(where))
        if checks:
            return True
        logger.info("%s does not check what it receives: files are read back", self.url)
        with suppress(StoreError):  # a publisher may lack the right to remove
            self.remove([where])
        return False

    def copy_out(self, path: str, sink: Sink) -> None:
        """Download an object into ``sink``, in parallel ranges that are put in order."""
        self._download(path, _InOrder(sink))

    def fetch(self, path: str, file: ArrivingFile) -> None:
        """Download an object into a file, in parallel ranges as they arrive."""
        self._download(path, _AnyOrder(file))

    def _download(self, path: str, target: _InOrder) -> None:
        try:
            with translating_errors(self.at(path), "GetObject"):
                self.connection.s3.download_fileobj(
                    self.name,
                    self.key(path),
                    target,
                    Config=download_config(in_order=type(target) is _InOrder),
                )
        except StoreError:
            if target.error is not None:
                raise target.error from None  # writing the target failed, not the store
            raise

    def remove(self, paths: Iterable[str]) -> None:
        """Remove objects; missing ones count as removed."""
        keys = [{"Key": self.key(path)} for path in paths]
        for start in range(0, len(keys), _DELETE_AT_ONCE):
            batch = {"Objects": keys[start : start + _DELETE_AT_ONCE], "Quiet": True}
            with translating_errors(self.url, "DeleteObjects"):
                response = self.connection.s3.delete_objects(Bucket=self.name, Delete=batch)
            for failed in response.get("Errors", ()):
                message = f" ({failed.get('Message')})"
                refusal = refusal_for(str(failed.get("Code")), "DeleteObjects", message)
                raise refusal.as_error(f"s3://{self.name}/{failed.get('Key')}")

    def list_unfinished(self, key: str) -> Iterator[Upload]:
        """Yield the unfinished multipart uploads below a key."""
        with translating_errors(self.url, "ListMultipartUploads"):
            pages = self.connection.s3.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.name, Prefix=key):
                for found in page.get("Uploads", ()):
                    yield Upload(
                        path=self.path(found["Key"]),
                        identifier=found["UploadId"],
                        started=found["Initiated"].timestamp(),
                    )

    def abort(self, upload: Upload) -> None:
        """Abort a multipart upload; a missing one counts as aborted."""
        with (
            suppress(FileNotFoundError),
            translating_errors(self.at(upload.path), "AbortMultipartUpload"),
        ):
            try:
                self.connection.s3.abort_multipart_upload(
                    Bucket=self.name, Key=self.key(upload.path), UploadId=upload.identifier
                )
            except Exception as error:
                if code_of(error) != "NoSuchUpload":
                    raise

    def write_arguments(self, path: str) -> dict[str, Any]:
        """Return the request's arguments that every write of a path has."""
        media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return {
            "Bucket": self.name,
            "Key": self.key(path),
            "ContentType": media_type,
            **self.connection.extra,
        }


class _InOrder:
    """A target that can't seek, for which the transfer client puts the bytes in order."""

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
    """A target that can seek, for which nothing waits in memory to be put in order."""

    def __init__(self, file: ArrivingFile) -> None:
        super().__init__(file)
        self.seekable, self.seek, self.tell = file.seekable, file.seek, file.tell
