"""Fetch: a source and a revision become a commit, then a verified folder on this machine.

``resolve`` is cheap and says what would be converted; ``fetch_description`` brings config and
tokenizer; ``fetch`` brings the weights. One module of this package for each scheme. Errors of
the network keep their library's type, so that they can be retried; all others are typed.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from tasks.errors import RequestError
from tasks.fetch import hub, local, s3, verify
from tasks.fetch.needed import CARD
from tasks.fetch.source import Checkpoint, CheckpointFile, Resolved, SourceModule, SourceRequest
from tracefleet.source import normalise

__all__ = [
    "Checkpoint",
    "CheckpointFile",
    "Resolved",
    "fetch",
    "fetch_description",
    "normalise_source",
    "resolve",
]

_BY_SCHEME: dict[str, SourceModule] = {"hf": hub, "file": local, "s3": s3}
_MAX_CARD_BYTES = 256 << 10
_MAX_LICENSE = 200


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Resolved:
    """Return what a source holds now: its commit and the files that a conversion needs.

    Weights are not read, but those of a local folder that was not hashed before.

    Args:
        source: any name that `tracefleet.source` can read, such as ``hf://org/name``.
        revision: branch, tag or commit of a hub source; the default branch if left out.
        allow_pickle: take pickle weights if there are no safetensors.
        trust_remote_code: take the checkpoint's own Python files; a hub source must then be
            pinned to a full commit.

    Raises:
        RequestError: no such source or revision, no permission, or a request that contradicts
            itself.
        UnsupportedCheckpointError: no ``config.json``, or no weights.
        UnsafeCheckpointError: pickle weights only, or file names that lead out of the folder.
    """
    plain, revision = _choose_revision(normalise_source(source), revision)
    request = SourceRequest(
        source=plain,
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    return _module_of(plain).resolve(request)


def fetch_description(resolved: Resolved) -> Path:
    """Return a folder with config, tokenizer and card, without the weights."""
    return _module_of(resolved.source).describe(resolved)


def fetch(resolved: Resolved) -> Checkpoint:
    """Return the checkpoint with its weights, verified.

    Raises:
        UnsafeCheckpointError: a file is damaged, or the source changed since it was resolved.
        RequestError: the files can't be had any more.
    """
    folder, files = _module_of(resolved.source).fetch(resolved)
    verify.check_files(folder, files)
    paths = {file.path for file in files}
    return Checkpoint(
        source=resolved.source,
        revision=resolved.revision,
        commit=resolved.commit,
        folder=folder,
        files=files,
        license=_license(folder) if CARD in paths else None,
    )


def normalise_source(source: str | Path) -> str:
    """Return the one way to write a source, as `tracefleet.source.normalise` does.

    A ``@revision`` stays where it is: the result resolves to what ``source`` resolves to.

    Raises:
        RequestError: it is no name of a checkpoint.
    """
    try:
        return normalise(source)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _module_of(source: str) -> SourceModule:
    return _BY_SCHEME[source.partition("://")[0]]


def _choose_revision(source: str, revision: str | None) -> tuple[str, str | None]:
    if not source.startswith("hf://"):
        if revision is not None:
            raise RequestError(
                f"{source}: expected no revision, got {revision!r}. Only hf:// sources have "
                "revisions; folders and buckets are identified by their content. Leave it out."
            )
        return source, None
    plain, _, suffix = source.partition("@")
    if suffix and revision is not None and suffix != revision:
        raise RequestError(
            f"{source}: expected one revision, got {suffix!r} in the source and {revision!r} "
            "beside it. Leave one of them out."
        )
    return plain, suffix or revision


def _license(folder: Path) -> str | None:
    with (folder / CARD).open("rb") as file:
        text = file.read(_MAX_CARD_BYTES).decode(errors="replace")
    head, separator, rest = text.replace("\r\n", "\n").partition("---\n")
    if head.strip("\ufeff \n") or not separator:
        return None
    try:
        declared = yaml.safe_load(rest.partition("\n---")[0])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None  # a card is prose by strangers: informative, never a reason to fail
    name = declared.get("license") if isinstance(declared, dict) else None
    return name if isinstance(name, str) and 0 < len(name) <= _MAX_LICENSE else None
