"""Checkpoints in folders: ``file:///absolute/folder``.

The folder is used where it is. Its commit is a digest of the needed files' content.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tasks.errors import RequestError, UnsafeCheckpointError
from tasks.fetch.digests import file_sha256
from tasks.fetch.needed import list_needed_files
from tasks.fetch.source import CheckpointFile, Resolved, SourceRequest, content_commit

logger = logging.getLogger(__name__)

_SCHEME = "file://"


def resolve(request: SourceRequest) -> Resolved:
    """Hash the needed files, as far as their digests are not known yet."""
    folder = _folder(request.source)
    try:
        paths = list_needed_files(_Folder(folder), request)
        logger.info("%s: %d files", request.source, len(paths))
        files = tuple(_hash(folder, path) for path in paths)
    except PermissionError as error:
        raise RequestError(
            f"{request.source}: expected files that can be read, got {error}. "
            "Give this user permission to read them."
        ) from error
    return Resolved(source=request.source, revision=None, commit=_commit(files), files=files)


def describe(resolved: Resolved) -> Path:
    """Return the folder itself."""
    return _folder(resolved.source)


def fetch(resolved: Resolved) -> tuple[Path, tuple[CheckpointFile, ...]]:
    """Return the folder itself, if its files are still those that were resolved.

    Raises:
        UnsafeCheckpointError: a file changed or went away since.
    """
    folder = _folder(resolved.source)
    for file in resolved.files:
        now = _hash(folder, file.path) if (folder / file.path).is_file() else None
        if now != file:
            got = "no file" if now is None else f"{now.size} bytes with sha256 {now.sha256}"
            raise UnsafeCheckpointError(
                f"{folder / file.path}: expected {file.size} bytes with sha256 {file.sha256}, got "
                f"{got}. The folder changed since this conversion began; run it again when "
                "nothing writes there.",
                lasting=False,
            )
    return folder, resolved.files


class _Folder:
    """A folder as a listing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir() if path.is_file()]

    def has(self, path: str) -> bool:
        return (self._folder / path).is_file()

    def read(self, path: str, limit: int) -> bytes:
        with (self._folder / path).open("rb") as file:
            return file.read(limit)


def _folder(source: str) -> Path:
    folder = Path(source.removeprefix(_SCHEME))
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise RequestError(
            f"{source}: expected a folder with a checkpoint, got {got}. Check the path; on a "
            "worker, it must exist on the worker's machine."
        )
    return folder


def _hash(folder: Path, path: str) -> CheckpointFile:
    file = folder / path
    return CheckpointFile(path=path, size=file.stat().st_size, sha256=file_sha256(file))


def _commit(files: tuple[CheckpointFile, ...]) -> str:
    return content_commit((file.path, file.size, file.sha256 or "") for file in files)
