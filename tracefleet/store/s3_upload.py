"""Create an immutable file on S3: hash it while it is uploaded, and check the object afterwards.

Called by ``tracefleet.store.s3``. Nothing is ever removed here: an object that holds other bytes
than it was to hold is written again, so that a publisher that was misled does no harm.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tracefleet.errors import (
    ArtifactError,
    DigestMismatchError,
    StoreError,
    StoreUnavailableError,
)
from tracefleet.store.s3_bucket import Bucket
from tracefleet.store.s3_client import transfer_config
from tracefleet.store.s3_errors import translating_errors
from tracefleet.store.streams import CheckedReader, CheckedSink, RewindingReader

logger = logging.getLogger(__name__)


#: S3 User Guide, "Uploading objects": the largest object that one PutObject takes.
MOST_IN_ONE = 5 << 30


def put_file(bucket: Bucket, path: str, local: Path, *, size: int, sha256: str) -> None:
    """Create an immutable object, unless it exists with exactly these bytes."""
    bucket.check_conditions()
    if not _holds(bucket, path, local, size, sha256):
        _send(bucket, path, local, size, sha256)
    if _goes_in_parts(bucket, path, size):
        _abort_leftovers(bucket, path)


def _goes_in_parts(bucket: Bucket, path: str, size: int) -> bool:
    """Return whether a file is uploaded in parts.

    Raises:
        StoreError: it must not be and is too large for one request.
    """
    if size < transfer_config(size).multipart_threshold:
        return False
    if bucket.honours_completions:
        return True
    if size > MOST_IN_ONE:
        raise StoreError(
            f"{bucket.at(path)}: expected at most {MOST_IN_ONE} bytes, got {size}: this server "
            "ignores If-None-Match: * where a multipart upload is completed, so that two "
            "publishers could overwrite each other, and one PutObject takes no more. Nothing was "
            "changed; use AWS S3 or a server that honours it."
        )
    return False


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


def _holds(bucket: Bucket, path: str, local: Path, size: int, sha256: str) -> bool:
    """Return whether the object exists with exactly these bytes, which it gets if it was to.

    Raises:
        StoreError: it has others.
    """
    held = _look_up(bucket, path)
    if held is None:
        return False
    if (held.size, held.sha256) == (size, sha256):
        return True
    if held.claimed == sha256:
        _send_again(bucket, path, local, size, sha256, found=held.sha256)
        return True
    raise StoreError(
        f"{bucket.at(path)}: expected {size} bytes with sha256 {sha256}, but the store already "
        f"holds {held.size} bytes with {held.sha256}. It was damaged or edited; move it away and "
        "publish again."
    )


def _send(bucket: Bucket, path: str, local: Path, size: int, sha256: str) -> None:
    """Upload the file, then check the object, which another writer may have created meanwhile."""
    client = bucket.connection.create_only
    with local.open("rb") as file, translating_errors(bucket.at(path), "PutObject"):
        try:
            _upload(bucket, path, _Local(file, local), size, sha256, client)
        except ArtifactError:
            raise  # the local file has changed or can't be read: no upload would be right
        except Exception:
            # Another writer was first, and may have aborted this upload.
            if not _holds(bucket, path, local, size, sha256):
                raise
            return
    if not _holds(bucket, path, local, size, sha256):
        raise StoreUnavailableError(
            f"{bucket.at(path)}: expected the object that was uploaded, got none. Another process "
            "may have removed it: run again."
        )


def _send_again(
    bucket: Bucket, path: str, local: Path, size: int, sha256: str, *, found: str
) -> None:
    """Write an object again whose bytes are not those that its writer meant, and ours are.

    Raises:
        StoreUnavailableError: the bytes differ from one look to the next, or did so again.
    """
    # Bytes may be changed on their way back as well.
    again = _look_up(bucket, path)
    if again is None or again.sha256 != found:
        raise StoreUnavailableError(
            f"{bucket.at(path)}: expected the same bytes at a second look, got sha256 {found} and "
            f"then {again and again.sha256}: they are changed in transit. Nothing was changed; "
            "run again."
        )
    logger.warning("%s holds other bytes than were sent: sending them again", bucket.at(path))
    client = bucket.connection.s3
    with local.open("rb") as file, translating_errors(bucket.at(path), "PutObject"):
        _upload(bucket, path, _Local(file, local), size, sha256, client)
    now = _look_up(bucket, path)
    if now is None or now.sha256 != sha256:
        raise StoreUnavailableError(
            f"{bucket.at(path)}: expected sha256 {sha256}, but the bytes were changed in transit, "
            "twice. Readers refuse them; run again: they will be sent once more."
        )


class _Local:
    """A local file whose errors are distinguished from the network's, which are OSErrors too."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def read(self, amount: int, /) -> bytes:
        try:
            return self._file.read(amount)
        except OSError as error:
            raise StoreError(
                f"{self._path}: expected a file to publish, but it can't be read: {error}. Nothing "
                "became visible; look at the disk, then run again."
            ) from error


def _upload(bucket: Bucket, path: str, file: _Local, size: int, sha256: str, client: Any) -> None:
    """Upload the bytes while hashing them; the object appears after the last of them."""
    arguments = {**bucket.write_arguments(path), "Metadata": {"sha256": sha256}}
    config = transfer_config(size)
    if _goes_in_parts(bucket, path, size):
        parts = CheckedReader(bucket.at(path), file, size=size, sha256=sha256)
        name, key = arguments.pop("Bucket"), arguments.pop("Key")
        client.upload_fileobj(parts, name, key, ExtraArgs=arguments, Config=config)
        return
    reader = RewindingReader(bucket.at(path), file, size=size, sha256=sha256)
    # One byte more, to detect a file that has grown.
    small = size < config.multipart_threshold
    client.put_object(Body=reader.read(size + 1) if small else reader, **arguments)


def _abort_leftovers(bucket: Bucket, path: str) -> None:
    """Abort unfinished uploads of an object that exists now."""
    try:
        for upload in bucket.list_unfinished(bucket.key(path)):
            if upload.path == path:
                bucket.abort(upload)
    except StoreError as error:
        # A publisher may lack the right to list uploads; gc and the lifecycle rule abort them too.
        logger.debug("unfinished uploads were not listed: %s", error)
