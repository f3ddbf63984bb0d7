"""Types that every source shares: checkpoint files, resolved and fetched checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks.errors import UnsafeCheckpointError
from tracefleet.canonical import canonical_json, check_relative
from tracefleet.errors import ManifestError

_NAMES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """One file of a checkpoint.

    Attributes:
        path: relative to the checkpoint's folder, ``/`` between segments.
        size: in bytes.
        sha256: hex digest, where the source reports it or once the bytes were hashed.
    """

    path: str
    size: int
    sha256: str | None

    @property
    def is_weights(self) -> bool:
        """Whether the file holds or lists weights, the part that is fetched last."""
        return self.path.endswith((".safetensors", ".bin", ".index.json"))


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A checkpoint that is known but not fetched.

    Attributes:
        source: normalised, without a revision.
        revision: as requested.
        commit: what that resolved to; a digest of the content for local and S3 sources.
        files: exactly the files that this conversion needs, sorted by path.
        alias: the source as it was asked for, where the hub has another name for it; else None.
    """

    source: str
    revision: str | None
    commit: str
    files: tuple[CheckpointFile, ...]
    alias: str | None = None

    @property
    def weight_bytes(self) -> int:
        """Size of the weights, and of the files that list them."""
        return sum(file.size for file in self.files if file.is_weights)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine, which is read in place."""
        return self.source.startswith("file://")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on this machine, verified.

    Attributes:
        source: normalised, without a revision.
        revision: as requested.
        commit: what that resolved to.
        folder: holds the files; others may lie beside them. Not to be written to.
        files: exactly the files that this conversion needs, sorted by path.
        license: as the checkpoint's card declares it, if it does.
    """

    source: str
    revision: str | None
    commit: str
    folder: Path
    files: tuple[CheckpointFile, ...]
    license: str | None


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """The checkpoint that a request names, and what the request permits.

    Attributes:
        source: normalised, without a revision.
        revision: branch, tag or commit of a hub source.
        allow_pickle: take pickle weights if there are no others.
        trust_remote_code: take the checkpoint's own Python files.
    """

    source: str
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


class SourceModule(Protocol):
    """What a module for one scheme offers."""

    def resolve(self, request: SourceRequest) -> Resolved:
        """Return commit and needed files, without fetching weights."""

    def describe(self, resolved: Resolved) -> Path:
        """Return a folder that holds every file but the weights."""

    def fetch(self, resolved: Resolved) -> tuple[Path, tuple[CheckpointFile, ...]]:
        """Return a folder that holds every file, and the files with the digests now known."""


def safe_path(path: object, *, origin: str) -> str:
    """Return a file name that came from outside, if it can't leave the checkpoint's folder.

    Raises:
        UnsafeCheckpointError: it is absolute, not normalised or has ``..``.
    """
    try:
        if not isinstance(path, str):
            raise ManifestError("not a string")
        return check_relative(path)
    except ManifestError as error:
        raise UnsafeCheckpointError(
            f"{origin}: expected file names that are relative and normalised, got {path!r}. "
            "The checkpoint was made to reach outside its folder, or by mistake does; nothing "
            "was read. Do not use it."
        ) from error


def content_commit(entries: Iterable[tuple[str, int, str]]) -> str:
    """Return the commit of a source that has none: sha256 over sorted [path, size, digest]."""
    return hashlib.sha256(canonical_json([list(entry) for entry in sorted(entries)])).hexdigest()


def join_names(names: Sequence[str]) -> str:
    """Return the first few names for an error message."""
    if not names:
        return "nothing"
    more = len(names) - _NAMES_SHOWN
    return ", ".join(sorted(names)[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
