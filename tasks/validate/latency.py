"""How long one call at a standard length takes, measured beside the probes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")
#: Milliseconds. A longer call is not repeated, so that timing does not hold up the gate.
_WORTH_REPEATING = 150.0


def time_call(function: Callable[..., R], *arguments: object) -> tuple[R, float]:
    """Call a function; return its result and the milliseconds that it took."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, (time.perf_counter() - started) * 1e3


def keep_latency(
    latency: dict[int, float],
    length: int,
    took: float,
    call_again: Callable[[], object] | None,
) -> None:
    """Keep the shortest time of a length.

    Args:
        latency: Milliseconds by length; changed in place.
        length: The standard length.
        took: Milliseconds of the call that was just made.
        call_again: Repeats that call; None: other probes time this length too.
    """
    # The first call at a length also prepares it: a bundle's takes up to 100 times a later one's.
    if call_again is not None and length not in latency and took < _WORTH_REPEATING:
        _, again = time_call(call_again)
        took = min(took, again)
    latency[length] = min(took, latency.get(length, took))
