"""The report's two charts: errors and latency at each standard length.

Nothing is shown by colour alone: bars stand in the legend's order, and failed ones are crossed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized

from tasks.report.bars import Bar, Chart, Tick
from tasks.report.conversion.words import figure, milliseconds, number
from tasks.validate.difference import Difference
from tasks.validate.verdict import ValidationReport

_SERIES = ("--one", "--two", "--three", "--four", "--five", "--six")
_LATENCIES = (("--grey", "eager"), ("--one", "traced"))


def choose_outputs(report: ValidationReport) -> list[str]:
    """Return the outputs that the chart shows: all, or the worst ones of very many."""
    worst: dict[str, float] = {}
    for verdict in report.lengths():
        for output, found in report.by_output(verdict.length).items():
            worst[output] = max(worst.get(output, 0.0), found.max_rel)
    kept = sorted(worst, key=lambda output: -worst[output])[: len(_SERIES)]
    return [output for output in worst if output in kept]


def error_chart(report: ValidationReport) -> Chart:
    """Return the worst relative error of each output at each length, against the tolerance."""
    tolerance = report.tolerance.rtol
    colours = dict(zip(choose_outputs(report), _SERIES, strict=False))
    worst = {verdict.length: report.by_output(verdict.length) for verdict in report.lengths()}
    scale = _Scale(tolerance, [one.max_rel for found in worst.values() for one in found.values()])
    groups = {}
    for length, found in worst.items():
        groups[length] = tuple(
            _error_bar(found[output], scale, colour, f"{output}, length {length}")
            for output, colour in colours.items()
        )
    limit = f"tolerance {number(tolerance)}: above it is refused"
    return Chart(
        label="Worst relative error of each output at each length, against the tolerance",
        groups=tuple(groups.values()),
        x_ticks=_length_ticks(groups),
        notes=_axis_title(groups),
        y_ticks=scale.ticks(),
        y_title="relative error, log scale",
        legend=tuple((colour, output) for output, colour in colours.items()),
        limit=Tick(at=scale.share(tolerance), text=limit),
    )


def _error_bar(found: Difference, scale: _Scale, colour: str, name: str) -> Bar:
    error = figure(found.max_rel)
    return Bar(
        height=scale.share(found.max_rel),
        colour=colour,
        text="" if found.passed else error,
        name=f"{name}: {error}",
        hollow=found.max_rel == 0,
        crossed=not found.passed,
    )


def latency_chart(report: ValidationReport) -> Chart | None:
    """Return the time of one call, eager and traced, at each length; None: not measured."""
    lengths = sorted(report.latency_eager.keys() & report.latency_traced.keys())
    if not lengths:
        return None
    pairs = [(report.latency_eager[length], report.latency_traced[length]) for length in lengths]
    # Room above the longest bar for its text.
    top = max(max(pair) for pair in pairs) * 1.15 or 1.0
    groups = {}
    for length, pair in zip(lengths, pairs, strict=True):
        groups[length] = tuple(
            _latency_bar(time, top, colour, f"{name}, length {length}")
            for time, (colour, name) in zip(pair, _LATENCIES, strict=True)
        )
    return Chart(
        label="Milliseconds of one call, eager and traced, at each length",
        groups=tuple(groups.values()),
        x_ticks=_length_ticks(groups),
        notes=_axis_title(groups),
        y_ticks=_space_ticks(top),
        y_title="milliseconds",
        legend=_LATENCIES,
    )


def _latency_bar(time: float, top: float, colour: str, name: str) -> Bar:
    text = milliseconds(time)
    return Bar(height=time / top, colour=colour, text=text, name=f"{name}: {text} ms")


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


def _length_ticks(lengths: Iterable[int]) -> tuple[Tick, ...]:
    return tuple(Tick(at=slot + 0.5, text=str(length)) for slot, length in enumerate(lengths))


def _axis_title(lengths: Sized) -> tuple[Tick, ...]:
    return (Tick(at=len(lengths) / 2, text="standard length"),)


def _space_ticks(top: float) -> tuple[Tick, ...]:
    """Return four to nine round numbers from zero to the top."""
    decade = 10.0 ** math.floor(math.log10(top / 4))
    step = decade * max(n for n in (1, 2, 5) if decade * n <= top / 4)
    return tuple(
        Tick(at=n * step / top, text=number(n * step)) for n in range(math.floor(top / step) + 1)
    )
