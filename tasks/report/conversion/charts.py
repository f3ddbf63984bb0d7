"""The report's two charts: errors and latency at each standard length.

Nothing is shown by colour alone: bars stand in the legend's order, and failed ones are crossed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.report.bars import Bar, Chart, Tick
from tasks.report.conversion.words import figure, milliseconds, number
from tasks.validate.verdict import ValidationReport

_SERIES = ("--one", "--two", "--three", "--four", "--five", "--six")
#: Share of a length's slot that its bars take.
_GROUP = 0.76
#: More bars than these have no room for texts above them.
_MOST_TEXTS = 16


def shown_outputs(report: ValidationReport) -> list[str]:
    """Return the outputs that the chart shows: all, or the worst ones of very many."""
    worst: dict[str, float] = {}
    for verdict in report.lengths():
        for output, found in report.by_output(verdict.length).items():
            worst[output] = max(worst.get(output, 0.0), found.max_rel)
    kept = sorted(worst, key=lambda output: -worst[output])[: len(_SERIES)]
    return [output for output in worst if output in kept]


def error_chart(report: ValidationReport) -> Chart:
    """Return the worst relative error of each output at each length, against the tolerance."""
    lengths = [verdict.length for verdict in report.lengths()]
    outputs = shown_outputs(report)
    worst = {length: report.by_output(length) for length in lengths}
    errors = [found.max_rel for one in worst.values() for found in one.values()]
    scale = _Scale(report.tolerance.rtol, errors)
    texts = len(lengths) * len(outputs) <= _MOST_TEXTS
    bars = []
    for place, length in enumerate(lengths):
        for index, output in enumerate(outputs):
            at, width = _side_by_side(place, index, len(outputs))
            found = worst[length][output]
            bars.append(
                Bar(
                    at=at,
                    width=width,
                    height=scale.share(found.max_rel),
                    colour=_SERIES[index],
                    text="" if found.passed or not texts else figure(found.max_rel),
                    name=f"{output}, length {length}: {figure(found.max_rel)}",
                    hollow=found.max_rel == 0,
                    crossed=not found.passed,
                )
            )
    tolerance = f"tolerance {number(report.tolerance.rtol)}: above it is refused"
    return Chart(
        label="Worst relative error of each output at each length, against the tolerance",
        slots=max(len(lengths), 1),
        bars=tuple(bars),
        x_ticks=_length_ticks(lengths),
        notes=_axis_title(lengths),
        y_ticks=scale.ticks(),
        y_title="relative error, log scale",
        legend=tuple(zip(_SERIES, outputs, strict=False)),
        limit=Tick(at=scale.share(report.tolerance.rtol), text=tolerance),
    )


def latency_chart(report: ValidationReport) -> Chart | None:
    """Return the time of one call, eager and traced, at each length; None: not measured."""
    lengths = sorted(report.latency_eager.keys() & report.latency_traced.keys())
    if not lengths:
        return None
    kinds = (("--grey", "eager", report.latency_eager), ("--one", "traced", report.latency_traced))
    # Room above the longest bar for its text.
    top = max(latency[n] for _, _, latency in kinds for n in lengths) * 1.15 or 1.0
    bars = []
    for place, length in enumerate(lengths):
        for index, (colour, name, latency) in enumerate(kinds):
            at, width = _side_by_side(place, index, len(kinds))
            time = milliseconds(latency[length])
            bars.append(
                Bar(
                    at=at,
                    width=width,
                    height=latency[length] / top,
                    colour=colour,
                    text=time if len(lengths) * 2 <= _MOST_TEXTS else "",
                    name=f"{name}, length {length}: {time} ms",
                )
            )
    return Chart(
        label="Milliseconds of one call, eager and traced, at each length",
        slots=len(lengths),
        bars=tuple(bars),
        x_ticks=_length_ticks(lengths),
        notes=_axis_title(lengths),
        y_ticks=_even_ticks(top),
        y_title="milliseconds",
        legend=tuple((colour, name) for colour, name, _ in kinds),
    )


class _Scale:
    """The logarithmic axis; what is exact lies on its floor, what can't be compared at its top."""

    def __init__(self, tolerance: float, errors: Sequence[float]) -> None:
        seen = [error for error in errors if 0 < error < math.inf] or [tolerance]
        self.exact = 0 in errors
        self.infinite = math.inf in errors
        # What is exact gets a decade of its own, so that it does not look like a measured value.
        self.bottom = math.floor(math.log10(min(*seen, tolerance / 100))) - self.exact
        self.top = math.ceil(math.log10(max(*seen, tolerance * 10)))

    def share(self, error: float) -> float:
        """Return the height of an error, as a share of the plot's."""
        if error == 0:
            return self._share(self.bottom)
        if error == math.inf:
            return self._share(self.top + 1)
        return self._share(math.log10(error))

    def _share(self, exponent: float) -> float:
        floor = self.bottom - 0.4
        ceiling = self.top + (2.2 if self.infinite else 0.9)
        return (exponent - floor) / (ceiling - floor)

    def ticks(self) -> tuple[Tick, ...]:
        """Return the texts of the axis: some decades, and the two ends."""
        step = max(1, math.ceil((self.top - self.bottom) / 7))
        texts = {n: number(10.0**n) for n in range(self.top, self.bottom, -step)}
        if self.exact:
            texts[self.bottom] = "exact"
        if self.infinite:
            texts[self.top + 1] = "no figure"
        return tuple(Tick(at=self._share(n), text=text) for n, text in texts.items())


def _side_by_side(place: int, index: int, count: int) -> tuple[float, float]:
    """Return the left edge and the width of one of a length's bars, in slots."""
    step = _GROUP / max(count, 2)
    left = place + 0.5 - step * count / 2
    return left + step * (index + 0.05), step * 0.9


def _length_ticks(lengths: Sequence[int]) -> tuple[Tick, ...]:
    return tuple(Tick(at=place + 0.5, text=str(one)) for place, one in enumerate(lengths))


def _axis_title(lengths: Sequence[int]) -> tuple[Tick, ...]:
    return (Tick(at=len(lengths) / 2, text="standard length"),)


def _even_ticks(top: float) -> tuple[Tick, ...]:
    """Return four to nine round numbers from zero to the top."""
    decade = 10.0 ** math.floor(math.log10(top / 4))
    step = decade * max(n for n in (1, 2, 5) if decade * n <= top / 4)
    return tuple(
        Tick(at=n * step / top, text=number(n * step)) for n in range(math.floor(top / step) + 1)
    )
