"""Checkpoints on a Hugging Face hub: ``hf://org/name[@revision]``, through huggingface_hub.

A revision is resolved to a commit once; everything after that names the commit, so that a branch
that moves meanwhile can't mix two checkpoints. Resume, retries within a download and the cache
are the library's.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import RequestError, UnsafeCheckpointError, UnsupportedCheckpointError
from tasks.fetch import hub_cache
from tasks.fetch.digests import file_sha256, rate
from tasks.fetch.hub_errors import connection_errors, explain, no_hub
from tasks.fetch.needed import list_needed_files
from tasks.fetch.source import CheckpointFile, Resolved, SourceRequest, safe_path
from tracefleet.source import check_revision, normalise

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
# model_info has no time limit of its own; a server that never answers must not hold a worker.
_TIMEOUT_SECONDS = 30.0
# As many as the library's own snapshot_download.
_AT_ONCE = 8


def resolve(request: SourceRequest) -> Resolved:
    """Return commit and needed files, from the hub or offline from its cache."""
    revision = request.revision
    if revision is not None:
        _check_form(request.source, revision)
    if request.trust_remote_code and not _COMMIT.fullmatch(revision or ""):
        raise RequestError(
            f"{request.source}: expected a full commit of 40 hex digits with trust_remote_code, "
            f"got {revision!r}. A branch can be given other code at any time: read the code, then "
            "name the commit that you read."
        )
    with _explaining_errors(request.source, revision):
        listing = (
            _Snapshot.read_cache(request) if hub_cache.offline() else _Snapshot.ask_hub(request)
        )
        paths = _list_needed_files(listing, request)
    files = tuple(listing.files[path] for path in paths)
    logger.info("%s: commit %s, %d files", request.source, listing.commit[:12], len(files))
    alias = None if listing.source == request.source else request.source
    if alias is not None:
        logger.info("%s is %s on the hub", alias, listing.source)
    return Resolved(
        source=listing.source,
        revision=revision,
        commit=listing.commit,
        files=files,
        alias=alias,
    )


def describe(resolved: Resolved) -> Path:
    """Download every file but the weights."""
    return _download(resolved, [file for file in resolved.files if not file.is_weights])


def fetch(resolved: Resolved) -> tuple[Path, tuple[CheckpointFile, ...]]:
    """Download every file and compare digests.

    Raises:
        UnsafeCheckpointError: a file has not the digest that the hub lists; it leaves the cache.
    """
    folder = _download(resolved, resolved.files)
    files = tuple(_verify(folder, file) for file in resolved.files)
    hub_cache.remember_revision(resolved)
    return folder, files


def _list_needed_files(listing: _Snapshot, request: SourceRequest) -> tuple[str, ...]:
    try:
        return list_needed_files(listing, request)
    except (UnsupportedCheckpointError, UnsafeCheckpointError) as error:
        if not hub_cache.offline():
            raise
        # What is not there is most likely not cached; it says nothing about the checkpoint.
        raise hub_cache.make_cache_error(
            request.source, request.revision, why=str(error)
        ) from error


class _Snapshot:
    """One commit of a repository, as a listing."""

    def __init__(self, source: str, commit: str, files: dict[str, CheckpointFile]) -> None:
        self.source, self.commit, self.files = source, commit, files

    @classmethod
    def ask_hub(cls, request: SourceRequest) -> _Snapshot:
        from huggingface_hub import HfApi

        try:
            info = HfApi(endpoint=hub_cache.endpoint()).model_info(
                hub_cache.repo(request.source),
                revision=request.revision,
                files_metadata=True,
                timeout=_TIMEOUT_SECONDS,
            )
            # A repository that was moved answers under its old names too, and says its own.
            source = normalise(f"hf://{info.id or hub_cache.repo(request.source)}")
        except (ValueError, TypeError, KeyError) as error:
            raise no_hub(request.source, str(error)) from error
        if not _COMMIT.fullmatch(info.sha or ""):
            raise no_hub(request.source, f"the commit {info.sha!r}")
        files = (_describe(source, sibling) for sibling in info.siblings or ())
        return cls(source, str(info.sha), {file.path: file for file in files})

    @classmethod
    def read_cache(cls, request: SourceRequest) -> _Snapshot:
        commit = hub_cache.find_cached_commit(request)
        logger.warning("%s: offline; taking what is cached of %s", request.source, commit[:12])
        files = hub_cache.list_cached_files(request.source, commit)
        return cls(request.source, commit, {file.path: file for file in files})

    def names(self) -> list[str]:
        return list(self.files)

    def has(self, path: str) -> bool:
        return path in self.files

    def read(self, path: str, limit: int) -> bytes:
        with _local_path(self.source, self.commit, path).open("rb") as file:
            return file.read(limit)


def _describe(source: str, sibling: RepoSibling) -> CheckpointFile:
    path = safe_path(sibling.rfilename, origin=source)
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    return CheckpointFile(path=path, size=sibling.size or 0, sha256=sha256)


def _download(resolved: Resolved, files: Sequence[CheckpointFile]) -> Path:
    """Bring files into the cache, several at once; return the folder that shows them.

    ``snapshot_download`` maps the same ``hf_hub_download`` over the files, but lists the whole
    repository once more, and where that fails returns a folder with gaps without a word.
    """
    folder = hub_cache.snapshot(resolved.source, resolved.commit)

    def download(file: CheckpointFile) -> None:
        start = time.perf_counter()
        known = (folder / file.path).exists()
        _local_path(resolved.source, resolved.commit, file.path)
        took = "cached" if known else rate(file.size, time.perf_counter() - start)
        logger.info("%s: %s", file.path, took)

    with _explaining_errors(resolved.source, resolved.revision):
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(download, files))
        except (AttributeError, RuntimeError) as error:
            # Where it can't connect the library closes the client that all its threads share, and
            # those meet None or a closed one. One file at a time shows what is wrong.
            logger.info("one file at a time, after %s", error)
            for file in files:
                download(file)
    return folder


def _local_path(source: str, commit: str, path: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            hub_cache.repo(source),
            path,
            revision=commit,
            cache_dir=hub_cache.root(),
            endpoint=hub_cache.endpoint(),
            local_files_only=hub_cache.offline(),
        )
    )


def _verify(folder: Path, file: CheckpointFile) -> CheckpointFile:
    path = folder / file.path
    got = file_sha256(path)
    if file.sha256 is not None and got != file.sha256:
        # The bytes, or the library would take them again; then the name that leads nowhere.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise UnsafeCheckpointError(
            f"{file.path}: sha256 expected {file.sha256}, got {got}. It was damaged on the way or "
            "in the cache, and was removed from the cache; run again to download it afresh.",
            lasting=False,
        )
    return CheckpointFile(path=file.path, size=file.size, sha256=got)


@contextmanager
def _explaining_errors(source: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's refusals into ours; what may pass by itself keeps its type."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except (LocalEntryNotFoundError, connection_errors()) as error:
        explanation = explain(source, revision, error)
        if explanation is error:
            raise
        raise explanation from error


def _check_form(source: str, revision: str) -> None:
    try:
        check_revision(source, revision)
    except ValueError as error:
        raise RequestError(str(error)) from None
