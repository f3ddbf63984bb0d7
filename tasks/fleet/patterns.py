"""Patterns over sources in a fleet file: ``file:///models/bert-*`` and the like on S3 and the hub.

``*``, ``?`` and ``[…]`` in the last part of a source match every folder, prefix or repository at
that place. A pattern without a scheme is one over folders if its folder exists. Each costs one
listing, never a walk. ``tasks.fleet.spec`` calls this.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tasks.errors import RequestError, first_line
from tasks.fetch import hub_cache, hub_errors, s3
from tasks.fetch.checkpoint import normalise_source
from tracefleet.source import split
from tracefleet.store.s3_client import share_connection

_MAGIC = re.compile(r"[*?]|\[[^]]+\]")
_CONFIG = "config.json"
_AT_ONCE = 16
_REFUSED = (401, 403, 404)


class Patterns:
    """Looks up patterns, each once; a hub that is away is asked for one of them alone."""

    def __init__(self) -> None:
        self._found: dict[str, list[str] | None] = {}
        self._away: Exception | None = None

    def __call__(self, source: str) -> list[str] | None:
        """Return what `match_sources` returns; what it raises is looked up again next time."""
        if source not in self._found:
            self._found[source] = self._look_up(source)
        return self._found[source]

    def ask_again(self) -> None:
        """Ask a hub that was away once more."""
        self._away = None

    def _look_up(self, source: str) -> list[str] | None:
        asks_hub = is_pattern(source) and _find_scheme(source) == "hf"
        # The library tries for half a minute.
        if asks_hub and self._away is not None:
            raise self._away
        try:
            return match_sources(source)
        except Exception as error:
            if asks_hub and hub_errors.is_connection_lost(error):
                self._away = error
            raise


def is_pattern(source: str) -> bool:
    """Return whether a source has a wildcard."""
    return _MAGIC.search(source) is not None


def match_sources(source: str) -> list[str] | None:
    """Return the sources that match a pattern, sorted; None: it is no pattern, but a source.

    A folder or prefix whose own name looks like a pattern is a source.

    Raises:
        RequestError: nothing matches, or its folder, bucket or organisation can't be listed.
            Errors of the network keep their library's type.
    """
    if not is_pattern(source):
        return None
    scheme = _find_scheme(source)
    found = _FINDERS[scheme](source)
    if found is not None and not found:
        raise RequestError(
            f"expected {_WANTED[scheme]} that match the pattern, got none for {source!r}; check it"
        )
    return found


def _find_scheme(source: str) -> str:
    try:
        scheme, rest = split(source)
    except ValueError as error:
        raise RequestError(str(error)) from None
    # As for a name without wildcards: a folder at hand comes before the hub.
    head = rest.rpartition("/")[0]
    if head and "://" not in source and Path(head).is_dir():
        return "file"
    return scheme


def _match_folders(source: str) -> list[str] | None:
    head, slash, pattern = source.rstrip("/").rpartition("/")
    _check_head(source, head)
    parent = Path(normalise_source(head + slash or "./").removeprefix("file://"))
    try:
        if (parent / pattern).exists():
            return None
        home = parent.resolve(strict=True)
        found = []
        for child in parent.iterdir():
            # A link that leads elsewhere would bring in what nobody put into this folder.
            inside = _fits(child.name, pattern) and child.resolve().is_relative_to(home)
            if inside and (child / _CONFIG).is_file():
                found.append(f"file://{child}")
        return sorted(found)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise RequestError(
            f"expected a folder that can be listed, got {first_line(error)}; check the path"
        ) from error


def _match_prefixes(source: str) -> list[str] | None:
    plain = normalise_source(source).removeprefix("s3://")
    parent, _, pattern = plain.rpartition("/")
    _check_head(source, parent)
    with s3.explaining_errors(f"prefixes like {source!r}"):
        files = share_connection().files
        if _is_checkpoint(files, plain):
            return None
        matching = []
        for entry in files.ls(parent, detail=True):
            if entry["type"] == "directory" and _is_child(entry["name"], parent, pattern):
                matching.append(entry["name"])
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            is_checkpoint = list(pool.map(lambda name: _is_checkpoint(files, name), matching))
        found = itertools.compress(matching, is_checkpoint)
        return sorted(f"s3://{name}" for name in found)


def _is_checkpoint(files: Any, prefix: str) -> bool:
    try:
        return bool(files.info(f"{prefix}/{_CONFIG}")["type"] == "file")
    except FileNotFoundError:
        return False


def _match_repositories(source: str) -> list[str]:
    owner, _, pattern = source.removeprefix("hf://").rstrip("/").partition("/")
    if not pattern or "/" in pattern or "@" in pattern:
        raise RequestError(
            f"expected a pattern such as hf://org/name-*, got {source!r}; one over folders begins "
            "with ./, and a revision has a field of its own"
        )
    _check_head(source, owner)
    if hub_cache.offline():
        raise RequestError(
            f"expected a hub that can list {owner!r}, got offline mode; unset HF_HUB_OFFLINE, or "
            "name the repositories"
        )
    from huggingface_hub import HfApi

    with _refuse_hub_errors(source, owner):
        listed = HfApi(endpoint=hub_cache.endpoint()).list_models(author=owner)
        names = {str(info.id) for info in listed}
    return sorted(f"hf://{name}" for name in names if _is_child(name, owner, pattern))


@contextmanager
def _refuse_hub_errors(source: str, owner: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:  # first: some of them are ValueErrors too
        if error.response.status_code not in _REFUSED:
            raise
        raise RequestError(
            f"expected a hub that lists {owner!r}, got HTTP {error.response.status_code}; check "
            "the organisation, and HF_TOKEN if its repositories are private"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(
            f"expected the answer of a Hugging Face hub, got {first_line(error)}; if HF_ENDPOINT "
            "is set, check that it names one"
        ) from error
    except hub_errors.connection_errors() as error:
        hub_errors.tell_host(source, error)
        raise


def _check_head(source: str, head: str) -> None:
    if is_pattern(head):
        raise RequestError(
            f"expected *, ? and [] in the last part alone, got {source!r}; write one pattern for "
            "each folder, as a list"
        )


def _is_child(name: str, parent: str, pattern: str) -> bool:
    """Return whether a name in a server's listing is directly under ``parent``, and fits."""
    head, _, last = name.rpartition("/")
    return head == parent and _fits(last, pattern)


def _fits(name: str, pattern: str) -> bool:
    """Return whether a name fits; hidden ones only if the pattern names the dot."""
    if name in ("", ".", "..") or (name.startswith(".") and not pattern.startswith(".")):
        return False
    return fnmatchcase(name, pattern)


_FINDERS: dict[str, Callable[[str], list[str] | None]] = {
    "file": _match_folders,
    "s3": _match_prefixes,
    "hf": _match_repositories,
}
_WANTED = {
    "file": f"folders with a {_CONFIG}",
    "s3": f"prefixes with a {_CONFIG}",
    "hf": "repositories",
}
