"""Put an immutable file on S3: hashed while it is sent, there once, and looked at afterwards.

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
from tracefleet.store.s3_errors import explained
from tracefleet.store.streams import CheckedReader, CheckedSink, Stream

logger = logging.getLogger(__name__)


def put_file(bucket: Bucket, path: str, local: Path, *, size: int, sha256: str) -> None:
    """Create an immutable object, or find that exactly these bytes are there."""
    bucket.check_conditions()
    if not _holds(bucket, path, size, sha256):
        _send(bucket, path, local, size, sha256)
    if size >= transfer_config(size).multipart_threshold:
        _tidy(bucket, path)


@dataclass(frozen=True)
class _Held:
    """What is there: the size and digest of its bytes, and the digest that its writer claimed."""

    size: int
    sha256: str
    claimed: str | None


def _held(bucket: Bucket, path: str) -> _Held | None:
    try:
        with explained(bucket.at(path), "HeadObject"):
            head = bucket.connected.s3.head_object(Bucket=bucket.name, Key=bucket.key(path))
    except FileNotFoundError:
        return None
    # Some servers answer with capitalised names.
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
    """Return whether exactly these bytes are there.

    Raises:
        StoreError: others are.
    """
    held = _held(bucket, path)
    if held is None or (held.size, held.sha256) == (size, sha256):
        return held is not None
    raise StoreError(
        f"{bucket.at(path)}: expected {size} bytes with sha256 {sha256}, but the store already "
        f"holds {held.size} bytes with {held.sha256}. It was damaged or edited; move it away and "
        "publish again."
    )


def _send(bucket: Bucket, path: str, local: Path, size: int, sha256: str) -> None:
    """Upload, then look at what is there; whoever else uploaded the same did us a service."""
    with local.open("rb") as file, explained(bucket.at(path), "PutObject"):
        try:
            _upload(bucket, path, _Local(file, local), size, sha256)
        except ArtifactError:
            raise  # the local file is not what it was, or can't be read: no upload can be right
        except Exception:
            # Another writer was first, or aborted this upload after it was first.
            if not _holds(bucket, path, size, sha256):
                raise
            return
    if not bucket.checks_what_it_receives:
        _remove_if_spoilt(bucket, path, sha256)
    if not _holds(bucket, path, size, sha256):
        raise StoreUnavailableError(
            f"{bucket.at(path)}: expected the object that was put, got none. Was it removed by "
            "somebody? Run again."
        )


class _Local:
    """A local file whose own failures are told apart from the network's, which are OSErrors too."""

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
    """Send the bytes that are hashed, once; the object appears with the last of them."""
    config = transfer_config(size)
    written = {**bucket.written(path), "Metadata": {"sha256": sha256}}
    reader = CheckedReader(bucket.at(path), file, size=size, sha256=sha256)
    if size < config.multipart_threshold:
        # One byte more, so that a file that has grown is noticed.
        bucket.connected.once.put_object(Body=reader.read(size + 1), **written)
        return
    name, key = written.pop("Bucket"), written.pop("Key")
    bucket.connected.once.upload_fileobj(reader, name, key, ExtraArgs=written, Config=config)


def _remove_if_spoilt(bucket: Bucket, path: str, sha256: str) -> None:
    """Take away what this process has just put if other bytes arrived: no manifest names it yet.

    Looked at twice, since bytes can be changed on their way back just as well. What was there
    before is never removed.

    Raises:
        StoreUnavailableError: it was so.
    """
    if not all(
        (held := _held(bucket, path)) and held.claimed == sha256 != held.sha256 for _ in range(2)
    ):
        return
    try:
        bucket.remove([path])
    except StoreError as error:
        raise StoreError(
            f"{bucket.at(path)}: expected sha256 {sha256}, but the bytes were changed on the way "
            f"and the object can't be removed: {error} Remove it, then run again."
        ) from error
    raise StoreUnavailableError(
        f"{bucket.at(path)}: expected sha256 {sha256}, but the bytes were changed on the way. The "
        "object was removed; run again."
    )


def _tidy(bucket: Bucket, path: str) -> None:
    """Abort what interrupted uploads of a file that is there now left behind."""
    try:
        for upload in bucket.unfinished(bucket.key(path)):
            if upload.path == path:
                bucket.abort(upload)
    except StoreError as error:
        # Not every publisher may list uploads; gc and the bucket's lifecycle rule do the same.
        logger.debug("unfinished uploads were not looked for: %s", error)
