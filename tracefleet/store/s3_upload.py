"""Create an immutable file on S3: hash it while it is uploaded, and check the object afterwards.

Called by ``tracefleet.store.s3``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tracefleet.errors import (
    ArtifactError,
    DigestMismatchError,
    StoreError,
    StoreUnavailableError,
)
from tracefleet.store.s3_bucket import Bucket
from tracefleet.store.s3_client import transfer_config
from tracefleet.store.s3_errors import translating_errors
from tracefleet.store.streams import CheckedReader, CheckedSink, Stream

logger = logging.getLogger(__name__)


def put_file(bucket: Bucket, path: str, local: Path, *, size: int, sha256: str) -> None:
    """Create an immutable object, unless it exists with exactly these bytes."""
    bucket.check_conditions()
    if not _holds(bucket, path, size, sha256):
        _send(bucket, path, local, size, sha256)
    if size >= transfer_config(size).multipart_threshold:
        _abort_leftovers(bucket, path)


@dataclass(frozen=True)
class _Held:
    """An object of the store: size and digest of its bytes, and the digest in its metadata."""

    size: int
    sha256: str
    claimed: str | None


def _look_up(bucket: Bucket, path: str) -> _Held | None:
    try:
        with translating_errors(bucket.at(path), "HeadObject"):
            head = bucket.connection.s3.head_object(Bucket=bucket.name, Key=bucket.key(path))
    except FileNotFoundError:
        return None
    # Some servers capitalise the names.
    metadata = {name.lower(): str(value) for name, value in head["Metadata"].items()}
    size, claimed = int(head["ContentLength"]), metadata.get("sha256")
    if claimed and bucket.checks_what_it_receives:
        return _Held(size, claimed, claimed)
    sink = CheckedSink(bucket.at(path), size=size)
    try:
        bucket.copy_out(path, sink)
    except DigestMismatchError as error:
        return _Held(size, error.got, claimed)
    return _Held(sink.size, sink.sha256, claimed)


def _holds(bucket: Bucket, path: str, size: int, sha256: str) -> bool:
    """Return whether the object exists with exactly these bytes.

    Raises:
        StoreError: it has others.
    """
    held = _look_up(bucket, path)
    if held is None:
        return False
    if (held.size, held.sha256) == (size, sha256):
        return True
    raise StoreError(
        f"{bucket.at(path)}: expected {size} bytes with sha256 {sha256}, but the store already "
        f"holds {held.size} bytes with {held.sha256}. It was damaged or edited; move it away and "
        "publish again."
    )


def _send(bucket: Bucket, path: str, local: Path, size: int, sha256: str) -> None:
    """Upload the file, then check the object, which another writer may have created meanwhile."""
    with local.open("rb") as file, translating_errors(bucket.at(path), "PutObject"):
        try:
            _upload(bucket, path, _Local(file, local), size, sha256)
        except ArtifactError:
            raise  # the local file has changed or can't be read: no upload would be right
        except Exception:
            # Another writer was first, and may have aborted this upload.
            if not _holds(bucket, path, size, sha256):
                raise
            return
    if not bucket.checks_what_it_receives:
        _remove_if_corrupted(bucket, path, sha256)
    if not _holds(bucket, path, size, sha256):
        raise StoreUnavailableError(
            f"{bucket.at(path)}: expected the object that was uploaded, got none. Another process "
            "may have removed it: run again."
        )


class _Local:
    """A local file whose errors are distinguished from the network's, which are OSErrors too."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def read(self, amount: int, /) -> bytes:
        try:
            return self._file.read(amount)
        except OSError as error:
            raise StoreError(
                f"{self._path}: expected a file to publish, but it can't be read: {error}. Nothing "
                "became visible; look at the disk, then run again."
            ) from error


def _upload(bucket: Bucket, path: str, file: Stream, size: int, sha256: str) -> None:
    """Upload the bytes while hashing them; the object appears after the last of them."""
    config, client = transfer_config(size), bucket.connection.create_only
    arguments = {**bucket.write_arguments(path), "Metadata": {"sha256": sha256}}
    reader = CheckedReader(bucket.at(path), file, size=size, sha256=sha256)
    if size < config.multipart_threshold:
        # One byte more, to detect a file that has grown.
        client.put_object(Body=reader.read(size + 1), **arguments)
        return
    name, key = arguments.pop("Bucket"), arguments.pop("Key")
    client.upload_fileobj(reader, name, key, ExtraArgs=arguments, Config=config)


def _remove_if_corrupted(bucket: Bucket, path: str, sha256: str) -> None:
    """Remove the object that this process has just uploaded, if other bytes arrived.

    Raises:
        StoreUnavailableError: other bytes had arrived.
    """
    # This process has created the object, and no manifest names it yet: nothing older is removed.
    # Read twice, because the bytes may be changed on their way back as well.
    for _ in range(2):
        held = _look_up(bucket, path)
        if held is None or held.claimed != sha256 or held.sha256 == sha256:
            return
    try:
        bucket.remove([path])
    except StoreError as error:
        raise StoreError(
            f"{bucket.at(path)}: expected sha256 {sha256}, but the bytes were changed in transit "
            f"and the object can't be removed: {error} Remove it, then run again."
        ) from error
    raise StoreUnavailableError(
        f"{bucket.at(path)}: expected sha256 {sha256}, but the bytes were changed in transit. The "
        "object was removed; run again."
    )


def _abort_leftovers(bucket: Bucket, path: str) -> None:
    """Abort unfinished uploads of an object that exists now."""
    try:
        for upload in bucket.list_unfinished(bucket.key(path)):
            if upload.path == path:
                bucket.abort(upload)
    except StoreError as error:
        # A publisher may lack the right to list uploads; gc and the lifecycle rule abort them too.
        logger.debug("unfinished uploads were not listed: %s", error)
