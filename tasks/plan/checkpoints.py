"""The checkpoints of a fleet's requests, each resolved once; used by ``tasks.plan.fleet``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tasks.fetch.checkpoint import resolve
from tasks.fetch.source import Resolved
from tasks.plan.concurrently import catching_errors, map_concurrently
from tasks.request.conversion import ConversionRequest

#: Source, revision and permissions: entries that share them are resolved together.
Checkpoint = tuple[str, str | None, bool, bool]


def list_unnamed(
    requests: Iterable[ConversionRequest],
    resolved: Mapping[Checkpoint, Resolved | Exception],
    fields: Iterable[str],
) -> set[Resolved]:
    """Return the checkpoints of requests that leave out one of the fields."""
    unnamed = set()
    for request in requests:
        found = resolved[checkpoint_of(request)]
        left_out = None in [getattr(request, name) for name in fields]
        if left_out and isinstance(found, Resolved):
            unnamed.add(found)
    return unnamed


def checkpoint_of(request: ConversionRequest) -> Checkpoint:
    """Return what a request's checkpoint is known by."""
    return request.source, request.revision, request.allow_pickle, request.trust_remote_code


def resolve_all(
    requests: Iterable[ConversionRequest],
) -> dict[Checkpoint, Resolved | Exception]:
    """Return every checkpoint with its commit, or with the error that hides it."""
    checkpoints = dict.fromkeys(map(checkpoint_of, requests))
    found = map_concurrently(
        checkpoints, catching_errors(_resolve), url=lambda one: one[0], what="checkpoints resolved"
    )
    return dict(found)


def _resolve(checkpoint: Checkpoint) -> Resolved:
    source, revision, allow_pickle, trust_remote_code = checkpoint
    return resolve(
        source,
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
