"""How the conversions of one backend are shared out: which of them make a batch run together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from flows.fan_out.assignment import Assignment

MOST_ENTRIES = 16
MOST_BYTES = 2_000_000_000
#: What a conversion takes besides what grows with its weights: 1.2 s for a tiny one, and 37 s more
#: for each gigabyte (`make bench-fleet`).
_BYTES_OF_THE_SMALLEST = 32_000_000
#: To take over fewer is not worth the start of a process.
_WORTH_TAKING = 3
T = TypeVar("T")


def share(work: Sequence[Assignment], places: int) -> list[list[Assignment]]:
    """Deal conversions evenly into batches, longest first; each batch is longest first too.

    As many batches as there are places, or a multiple where they would hold too much; what is too
    large for company is a batch of its own.

    Args:
        work: conversions of one backend.
        places: how many batch runs can be under way at once.
    """
    batches: list[list[Assignment]] = [[] for _ in range(_number(work, places))]
    for one in sorted(work, key=lambda one: -one.weight_bytes):
        roomy = [batch for batch in batches if _has_room(batch, one)]
        if roomy:
            min(roomy, key=_load).append(one)
        else:
            batches.append([one])
    return sorted((batch for batch in batches if batch), key=_load, reverse=True)


def half_of(left: Sequence[T]) -> list[T]:
    """Return what another place should take over of what a batch has not begun: from its end."""
    if len(left) < _WORTH_TAKING:
        return []
    return list(left[-(len(left) // 2) :])


def _number(work: Sequence[Assignment], places: int) -> int:
    weights = sum(one.weight_bytes for one in work)
    rounds = max(len(work) / MOST_ENTRIES, weights / MOST_BYTES) / places
    return min(len(work), places * max(1, math.ceil(rounds)))


def _has_room(batch: list[Assignment], one: Assignment) -> bool:
    weights = sum(other.weight_bytes for other in batch) + one.weight_bytes
    return not batch or (len(batch) < MOST_ENTRIES and weights < MOST_BYTES)


def _load(batch: list[Assignment]) -> int:
    return sum(one.weight_bytes + _BYTES_OF_THE_SMALLEST for one in batch)
