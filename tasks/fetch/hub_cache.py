"""The hub library's settings and cache: where they are now, and what an offline run finds there.

Used by ``hub``. The library reads its environment when it is imported; it is read again here, so
that it holds when it is set later, by a worker's job variables or by a test.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from tasks.errors import RequestError
from tasks.fetch.source import CheckpointFile, Resolved, SourceRequest, join_names

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEFAULT_BRANCH = "main"
_TRUE = ("1", "ON", "YES", "TRUE")


def endpoint() -> str | None:
    """Return the hub's address if the environment names one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def offline() -> bool:
    """Whether the environment forbids the network."""
    from huggingface_hub import constants

    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in _TRUE or constants.is_offline_mode()


def root() -> Path:
    """Return the folder in which the library keeps repositories."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(hub or f"{home}/hub")).expanduser()


def repo(source: str) -> str:
    """Return ``org/name``."""
    return source.removeprefix("hf://")


def repo_folder(source: str) -> Path:
    """Return the folder in which the library keeps this repository."""
    from huggingface_hub.file_download import repo_folder_name

    return root() / repo_folder_name(repo_id=repo(source), repo_type="model")


def snapshot(source: str, commit: str) -> Path:
    """Return the folder in which the library shows the files of one commit."""
    return repo_folder(source) / "snapshots" / commit


def find_cached_commit(request: SourceRequest) -> str:
    """Return the commit that the revision was when it was last fetched.

    Raises:
        RequestError: nothing of it is cached.
    """
    revision = request.revision or _DEFAULT_BRANCH
    ref = repo_folder(request.source) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    if not snapshot(request.source, commit).is_dir():
        raise make_cache_error(request.source, request.revision)
    return commit


def list_cached_files(source: str, commit: str) -> list[CheckpointFile]:
    """Return the files of a commit that are cached."""
    folder = snapshot(source, commit)
    return [_find_cached_file(folder, path) for path in folder.rglob("*") if path.is_file()]


def remember_revision(resolved: Resolved) -> None:
    """Write down what the revision was, as the library does, for offline runs.

    Ours to do, because the library is only ever given the commit.
    """
    revision = resolved.revision or _DEFAULT_BRANCH
    if offline() or revision == resolved.commit:
        return
    ref = repo_folder(resolved.source) / "refs" / revision
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(resolved.commit)
    except OSError as error:
        logger.debug("%s not written: %s", ref, error)  # a read-only cache serves as well


def make_cache_error(source: str, revision: str | None, *, why: str = "") -> RequestError:
    """Return the error for an offline run that can't be served."""
    refs = repo_folder(source) / "refs"
    names = [ref.name for ref in refs.glob("*")]
    got = why or f"these revisions: {join_names(names)}"
    return RequestError(
        f"{source}: offline, and expected revision {revision or _DEFAULT_BRANCH!r} whole in the "
        f"cache {root()}, got {got}. Unset HF_HUB_OFFLINE and run once with a network."
    )


def _find_cached_file(folder: Path, path: Path) -> CheckpointFile:
    # The library names a cached LFS file by its sha256, others by another digest. One link only
    # is followed: the next one may lead to a store that is shared and names files otherwise.
    name = path.readlink().name if path.is_symlink() else ""
    return CheckpointFile(
        path=path.relative_to(folder).as_posix(),
        size=path.stat().st_size,
        sha256=name if _SHA256.fullmatch(name) else None,
    )
