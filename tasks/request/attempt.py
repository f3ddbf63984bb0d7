"""Make the ``Attempt`` of a request: what its refusal depends on (``tasks.publish.refusals``)."""

from __future__ import annotations

from typing import Any

from tasks.fetch.source import Resolved
from tasks.publish.identity import Identity
from tasks.publish.refusals import Attempt
from tasks.request.conversion import ConversionRequest

#: Limits and permissions of a request that are no part of a conversion's identity.
_OUTSIDE = ("allow_pickle", "trust_remote_code", "memory_limit_mb", "threads")


def make_attempt(request: ConversionRequest, identity: Identity) -> Attempt:
    """Return the attempt to convert what a request asks for.

    Args:
        request: The request.
        identity: Its identity.
    """
    variant = identity.variant
    known = {
        "source": identity.source,
        "revision": None,
        "commit": identity.commit,
        "task": variant.task,
        "lengths": identity.lengths,
        "options": identity.options,
        "toolchain": identity.toolchain,
        "recipe": identity.recipe,
    }
    return _make(request, known)


def make_early_attempt(
    request: ConversionRequest, found: Resolved | None, task: str | None = None
) -> Attempt:
    """Return the attempt to find out what a request asks for, which a plan makes each time.

    Args:
        request: The request.
        found: Its checkpoint; None: it was refused.
        task: Its task; None: unknown.
    """
    place: dict[str, str | None]
    if found is None:
        place = {"source": request.source, "revision": request.revision, "commit": None}
    else:
        place = {"source": found.source, "revision": None, "commit": found.commit}
    known = {
        **place,
        "task": request.task or task,
        "lengths": request.lengths,
        "options": request.identity_options,
        "toolchain": None,
    }
    return _make(request, known)


def _make(request: ConversionRequest, known: dict[str, Any]) -> Attempt:
    outside = {name: getattr(request, name) for name in (*_OUTSIDE, "backend", "dtype", "batch")}
    # A request that crossed a server has 3600.0 where its default is 3600.
    timeout = float(request.timeout_seconds)
    return Attempt(timeout_seconds=timeout, **outside, **known)
