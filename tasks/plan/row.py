"""What a plan finds out about one request."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.plan.freshness import State
from tasks.publish.refusals import Attempt
from tasks.request.conversion import ConversionRequest


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """Finding of the plan about one request.

    Attributes:
        name: Name of the entry in the fleet file.
        request: The request; None: the entry makes none.
        state: ``fresh``: nothing to do; ``stale``, ``missing``: to be converted; ``invalid``: the
            request was refused, or the published conversion is damaged or withdrawn; ``refused``:
            the very same was refused before, so that it is not tried.
        why: Reasons for being stale or missing, or notes on a fresh one.
        source: Source as the hub has it; None: refused before that.
        commit: Commit that the revision resolved to; None: refused before that.
        task: Task of the request, or the one of the checkpoint's own files.
        lengths: Standard lengths of the request, or by default; None: refused before that.
        weight_bytes: Size of the checkpoint's weights; None: refused before that.
        key: Conversion key. Where only workers know the toolchain: the key with the toolchain of
            the current conversion, None if there is none.
        number: Current number of the channel; None: nothing is published in it.
        error: Type name of the error that refused it.
        message: Message of that error.
        transient: Whether the error came from the network, so that another try may help.
        since: When the very same was refused first, in ISO 8601; None: it was not.
        tried: When it was refused last, in seconds since the epoch.
        attempt: What a refusal of it depends on; None: it would not be remembered.
    """

    name: str
    request: ConversionRequest | None
    state: State
    why: tuple[str, ...] = ()
    source: str | None = None
    commit: str | None = None
    task: str | None = None
    lengths: tuple[int, ...] | None = None
    weight_bytes: int | None = None
    key: str | None = None
    number: int | None = None
    error: str | None = None
    message: str = ""
    transient: bool = False
    since: str | None = None
    tried: float | None = None
    attempt: Attempt | None = None
