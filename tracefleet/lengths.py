"""Standard lengths: check a set of them, and find the one that serves an input.

Used by requests, manifests and the reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tracefleet.errors import InputTooLongError


def check_lengths(lengths: Iterable[int]) -> tuple[int, ...]:
    """Return the standard lengths in ascending order.

    Args:
        lengths: token counts, in any order.

    Raises:
        ValueError: there is none, one is not a positive whole number, or one occurs twice.
    """
    wanted = list(lengths)
    if not wanted:
        raise ValueError("lengths: expected at least one standard length, got none")
    for length in wanted:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"lengths: expected whole numbers of at least 1, got {length!r}")
    twice = sorted({length for length in wanted if wanted.count(length) > 1})
    if twice:
        raise ValueError(f"lengths: expected each length once, got {twice} more than once")
    return tuple(sorted(wanted))


def smallest_fit(lengths: Sequence[int], tokens: int, *, row: int | None = None) -> int:
    """Return the smallest standard length that holds ``tokens`` tokens.

    Args:
        lengths: the standard lengths.
        tokens: how many there are.
        row: which of several rows has them, for the message; None: there is one.

    Raises:
        InputTooLongError: no standard length is that long.
    """
    for length in sorted(lengths):
        if tokens <= length:
            return length
    which = "input" if row is None else f"row {row}"
    raise InputTooLongError(
        f"{which} has {tokens} tokens; expected at most {max(lengths)}, the largest standard "
        "length of this conversion. Truncate the input or convert with a longer length."
    )
