"""The plots of a fleet's report: how near errors come to their tolerances, what took longest.

Drawn here and not by matplotlib: bars alone, in the page's colours, and a fleet of thousands
costs no more bytes than one of ten.
"""

from __future__ import annotations

import math
from collections import Counter

from tasks.report.conversion.words import number
from tasks.report.fleet import words as fleet_words
from tasks.report.fleet.facts import FleetFacts
from tasks.report.markup import Html, element, join, table

_WIDTH, _HEIGHT, _LABELS = 460, 232, 16
_LEFT, _RIGHT, _TOP, _FLOOR = 26, 434, 44, 208
#: Bars for each decade of error.
_STEPS = 2
#: Decades shown at least and at most, seen from the tolerance.
_LEAST, _MOST = (-3, 1), (-7, 6)
_SLOWEST = 8


def plots(facts: FleetFacts) -> Html:
    """Return the figures that this run has numbers for."""
    shares = [found for row in facts.rows if (found := fleet_words.share(row)) is not None]
    figures = []
    if shares:
        figures.append(_figure("Worst errors against their tolerance", _errors(shares), _CAPTION))
    if slow := fleet_words.slowest(facts, _SLOWEST):
        longest = slow[0].seconds or 1.0
        rows = [
            (
                row.name,
                element("span", class_="bar", style=f"--share:{(row.seconds or 0) / longest:.3f}"),
                fleet_words.duration(row.seconds or 0.0),
            )
            for row in slow
        ]
        bars = table(("conversion", "", "time"), rows, numbers=("time",))
        figures.append(_figure("Slowest", bars, "Wall time of each conversion."))
    return element("div", *figures, class_="plots") if figures else Html()


_CAPTION = (
    "Conversions by the worst relative error of each, as a multiple of its own tolerance, on a log "
    "scale. Everything right of the line is refused. Only what was measured in this run."
)


def _figure(title: str, drawn: Html, caption: str) -> Html:
    return element("figure", element("strong", title), drawn, element("figcaption", caption))


def _errors(shares: list[float]) -> Html:
    """Return a histogram over the decades around the tolerance."""
    exponents = [math.log10(found) for found in shares if 0 < found < math.inf]
    low = max(min([_LEAST[0], *map(math.floor, exponents)]), _MOST[0])
    high = min(max([_LEAST[1], *map(math.ceil, exponents)]), _MOST[1])
    last = (high - low) * _STEPS
    # What is exact and what has no figure get a bar of their own at either end.
    counts = Counter(_place(found, low, last) for found in shares)
    first, end = (-2 if counts[-2] else 0), (last + 2 if counts[last + 1] else last)
    wide = (_RIGHT - _LEFT) / (end - first)
    tallest = max(counts.values())
    limit = _LEFT + (-low * _STEPS - first) * wide
    bars = [
        _bar(_LEFT + (place - first) * wide, wide, count, tallest, bad=place >= -low * _STEPS)
        for place, count in sorted(counts.items())
    ]
    ticks = [
        _text(_LEFT + ((n - low) * _STEPS - first) * wide, _FLOOR + 17, f"{number(10.0**n)}×")
        for n in range(low, high + 1, 1 + (high - low) // 7)
    ]
    ends = [
        _text(_LEFT + (place - first + 0.5) * wide, _FLOOR + 17 + _LABELS, word)
        for place, word in ((-2, "exact"), (last + 1, "no figure"))
        if counts[place]
    ]
    return element(
        "svg",
        *_ground(limit),
        *bars,
        *ticks,
        *ends,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT + (_LABELS if ends else 0)}",
        role="img",
        aria_label="Number of conversions by worst error against tolerance",
    )


def _place(found: float, low: int, last: int) -> int:
    if found == 0:
        return -2
    if math.isinf(found):
        return last + 1
    # An error equal to its tolerance is within it.
    step = math.ceil((math.log10(found) - low) * _STEPS) - 1
    return min(max(step, 0), last - 1)


def _ground(limit: float) -> list[Html]:
    """Return what lies behind the bars: the refused side, the floor, the tolerance."""
    box = {"x": f"{limit:.1f}", "y": _TOP - 14, "height": _FLOOR - _TOP + 14}
    refused = element("rect", **box, width=f"{_RIGHT - limit:.1f}", style=_fill("--bad", 0.08))
    line = {"x1": f"{limit:.1f}", "x2": f"{limit:.1f}", "y1": _TOP - 14, "y2": _FLOOR}
    floor = {"x1": _LEFT, "x2": _RIGHT, "y1": _FLOOR, "y2": _FLOOR}
    return [
        refused,
        element("line", **floor, style="stroke:var(--line)"),
        element("line", **line, style="stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 3"),
        _text(limit, _TOP - 22, "the tolerance", colour="--bad"),
    ]


def _bar(x: float, wide: float, count: int, tallest: int, *, bad: bool) -> Html:
    height = max(count / tallest * (_FLOOR - _TOP - 6), 2.0)
    top = _FLOOR - height
    colour = "--bad" if bad else "--one"
    box = {"x": f"{x + 1:.1f}", "y": f"{top:.1f}", "width": f"{wide - 2:.1f}"}
    drawn = element("rect", **box, height=f"{height:.1f}", style=_fill(colour))
    return join(drawn, _text(x + wide / 2, top - 4, f"{count:,}", colour="--ink"))


def _fill(colour: str, opacity: float = 1.0) -> str:
    return f"fill:var({colour})" + (f";opacity:{opacity}" if opacity < 1 else "")


def _text(x: float, y: float, text: str, colour: str = "--soft") -> Html:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text_anchor": "middle", "font_size": 12}
    return element("text", text, **place, style=_fill(colour))
