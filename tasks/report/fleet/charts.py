"""The chart of a fleet's report: how near errors come to their tolerances.

It has as many bars for thousands of conversions as for ten.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tasks.report.bars import Bar, Chart, Tick
from tasks.report.conversion.words import number

#: Bars for each decade of error.
_STEPS = 2
#: Decades shown at least and at most, counted from the tolerance.
_LEAST, _MOST = (-3, 1), (-7, 6)
#: Place of what is exact, counted in bars from the lowest decade; an empty place follows.
_EXACT = -2


def error_histogram(shares: Sequence[float]) -> Chart:
    """Return the number of conversions by their worst error, over the decades around the tolerance.

    Args:
        shares: worst error of each conversion as a multiple of its tolerance; infinite: no figure.
    """
    exponents = [math.log10(share) for share in shares if 0 < share < math.inf]
    low = max(min([_LEAST[0], *map(math.floor, exponents)]), _MOST[0])
    high = min(max([_LEAST[1], *map(math.ceil, exponents)]), _MOST[1])
    last = (high - low) * _STEPS
    counts = Counter(_place(share, low, last) for share in shares)
    # What is exact and what has no figure get a bar of their own at either end.
    first = _EXACT if counts[_EXACT] else 0
    end = last + 2 if counts[last + 1] else last
    tolerance = -low * _STEPS
    ends = ((_EXACT, "exact"), (last + 1, "no figure"))
    groups = [_group(counts, place, tolerance) for place in range(first, end)]
    decades = range(low, high + 1, 1 + (high - low) // 7)
    ticks = [Tick(at=(n - low) * _STEPS - first, text=f"{number(10.0**n)}×") for n in decades]
    notes = [Tick(at=at - first + 0.5, text=text) for at, text in ends if counts[at]]
    return Chart(
        label="Number of conversions by worst error against tolerance",
        groups=tuple(groups),
        filled=1.0,
        x_ticks=tuple(ticks),
        notes=tuple(notes),
        limit=Tick(at=tolerance - first, text="the tolerance"),
    )


def _group(counts: Counter[int], place: int, tolerance: int) -> tuple[Bar, ...]:
    """Return the bar at one place, if there is any."""
    if not counts[place]:
        return ()
    share = counts[place] / max(counts.values())
    colour = "--bad" if place >= tolerance else "--one"
    # A single conversion among thousands stays visible; room for the number above.
    return (Bar(height=max(share, 0.01) * 0.9, colour=colour, text=f"{counts[place]:,}"),)


def _place(share: float, low: int, last: int) -> int:
    if share == 0:
        return _EXACT
    if math.isinf(share):
        return last + 1
    # An error equal to its tolerance is within it.
    step = math.ceil((math.log10(share) - low) * _STEPS) - 1
    return min(max(step, 0), last - 1)
