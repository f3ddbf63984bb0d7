"""Sha256 of files on this machine, remembered, so that a repeat reads no weights.

Used by the sources. The cache is a folder of small JSON files; deleting it costs time, nothing
else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from tasks.errors import UnsafeCheckpointError
from tracefleet.store.cache import cache_root

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20
_WORTH_LOGGING_BYTES = 256 << 20

# git's "racy" problem: a file written again within one tick of the clock keeps its times, so a
# digest taken right after a write could be remembered for bytes that are no longer there. Two
# seconds is the coarsest tick of the file systems in use (FAT). A file that was written or
# renamed so recently is hashed again next time; older ones get a new ctime with every write,
# which nobody can set back.
_RACY_NS = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """What a write to a file can't leave unchanged."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def file_sha256(path: Path) -> str:
    """Return the file's sha256, reading it only if it changed since it was last hashed.

    Raises:
        UnsafeCheckpointError: the file was written to while it was read.
    """
    with path.open("rb") as file:
        # Of the open file, not of the name: the name may point elsewhere a moment later.
        identity = _identity(path, os.fstat(file.fileno()))
        if (known := _recall(identity)) is not None:
            return known
        started_ns = time.time_ns()
        digest = hash_stream(file, path.name)
        if _identity(path, os.fstat(file.fileno())) != identity:
            raise UnsafeCheckpointError(
                f"{path}: expected a file that stays as it is, got one that was written to while "
                "it was read. Wait until whatever writes it is done, then run again.",
                lasting=False,
            )
    if started_ns - max(identity.mtime_ns, identity.ctime_ns) >= _RACY_NS:
        _remember(identity, digest)
    return digest


def hash_stream(file: BinaryIO, name: str) -> str:
    """Return the sha256 of everything left in ``file``."""
    digest, size, start = hashlib.sha256(), 0, time.perf_counter()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    if size >= _WORTH_LOGGING_BYTES:
        logger.info("hashed %s: %s", name, rate(size, time.perf_counter() - start))
    return digest.hexdigest()


def rate(size: int, seconds: float) -> str:
    """Return ``size`` bytes in ``seconds`` for a log line."""
    return f"{size / 1e6:.1f} MB, {size / 1e6 / max(seconds, 1e-9):.0f} MB/s"


def _identity(path: Path, stat: os.stat_result) -> _Identity:
    return _Identity(
        path=str(path.absolute()),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        inode=stat.st_ino,
    )


def _entry(identity: _Identity) -> Path:
    # One entry for each path, so that the cache can't outgrow the files it knows.
    name = hashlib.sha256(os.fsencode(identity.path)).hexdigest()
    return cache_root() / "digests" / f"{name}.json"


def _recall(identity: _Identity) -> str | None:
    try:
        entry = json.loads(_entry(identity).read_bytes())
        digest = entry.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, or damaged: hash again
    whole = isinstance(digest, str) and len(digest) == 64
    return digest if whole and entry == asdict(identity) else None


def _remember(identity: _Identity, digest: str) -> None:
    entry = _entry(identity)
    text = json.dumps(asdict(identity) | {"sha256": digest})
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=entry.parent, prefix=".")
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(temporary).replace(entry)
    except OSError as error:
        # A full or read-only cache folder costs the next run time; it must not fail this one.
        logger.debug("digest of %s not remembered: %s", identity.path, error)
