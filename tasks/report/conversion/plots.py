"""The report's two plots, as SVG inside its page: errors and latency for each standard length.

Labels are text, and colours are the page's variables, so that both follow its dark mode. Nothing
is told by colour alone: outputs have their own marks, and what failed is crossed.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from tasks.report.conversion.words import figure, number
from tasks.validate.verdict import Difference, ValidationReport

#: matplotlib draws in these, the page's stylesheet says what they are.
_VARIABLES = {
    "#010101": "--ink", "#010102": "--soft", "#010103": "--line", "#010104": "--bad",
    "#010105": "--grey", "#010106": "--paper", "#010111": "--one", "#010112": "--two",
    "#010113": "--three", "#010114": "--four", "#010115": "--five", "#010116": "--six",
}  # fmt: skip
_COLOUR = {variable: colour for colour, variable in _VARIABLES.items()}
_SERIES = ("--one", "--two", "--three", "--four", "--five", "--six")
_MARKS = "os^DvP"
#: More outputs than there are marks, or more values than fit: the worst ones, and no labels.
_MOST_LABELS = 24
_SIZE = (5.6, 3.7)


def shown_outputs(report: ValidationReport) -> list[str]:
    """Return the outputs that the plot shows: all, or the worst ones of very many."""
    worst: dict[str, float] = {}
    for verdict in report.lengths():
        for output, found in report.by_output(verdict.length).items():
            worst[output] = max(worst.get(output, 0.0), found.max_rel)
    kept = sorted(worst, key=lambda output: -worst[output])[: len(_MARKS)]
    return [output for output in worst if output in kept]


def error_plot(report: ValidationReport) -> str:
    """Return the worst relative error of each output at each length, against the tolerance."""
    lengths = [verdict.length for verdict in report.lengths()]
    worst = [report.by_output(length) for length in lengths]
    scale = _Scale(report.tolerance.rtol, [d.max_rel for one in worst for d in one.values()])

    def draw(axes: Any) -> None:
        _draw_limits(axes, scale)
        outputs = shown_outputs(report)
        for index, output in enumerate(outputs):
            shift = 0.5 * (index - (len(outputs) - 1) / 2) / len(outputs)
            _draw_output(axes, index, output, [one[output] for one in worst], shift, scale)
        _finish(axes, lengths, columns=min(len(outputs), 2))

    label = "Worst relative error of each output at each length, against the tolerance"
    return _svg(draw, "errors", label)


def latency_plot(report: ValidationReport) -> str:
    """Return the time of one call, eager and traced, at each length."""
    lengths = sorted(report.latency_eager.keys() & report.latency_traced.keys())
    pairs = (
        ("eager", report.latency_eager, "--grey", -0.2),
        ("traced", report.latency_traced, "--one", 0.2),
    )

    def draw(axes: Any) -> None:
        for name, latency, variable, shift in pairs:
            times = [latency[length] for length in lengths]
            places = [place + shift for place in range(len(lengths))]
            bars = axes.bar(places, times, 0.36, color=_COLOUR[variable], label=name)
            if len(lengths) * 2 <= _MOST_LABELS:
                texts = [milliseconds(time) for time in times]
                axes.bar_label(bars, texts, color=_COLOUR["--ink"], fontsize=10, padding=2)
        axes.margins(y=0.15)
        axes.set_ylabel("milliseconds", color=_COLOUR["--soft"])
        _finish(axes, lengths, columns=2)

    return _svg(draw, "latency", "Milliseconds of one call, eager and traced, at each length")


def milliseconds(time: float) -> str:
    """Return a time with as many digits as it is worth."""
    return f"{time:.2f}" if time < 1 else f"{time:.1f}" if time < 100 else f"{time:,.0f}"


class _Scale:
    """The logarithmic axis; what is exact lies on its floor, what can't be compared at its top."""

    def __init__(self, tolerance: float, errors: Sequence[float]) -> None:
        self.tolerance = tolerance
        seen = [e for e in errors if 0 < e < math.inf] or [tolerance]
        self.exact = any(e == 0 for e in errors)
        self.infinite = any(e == math.inf for e in errors)
        # What is exact gets a decade of its own, so that it does not look like a measured value.
        self.bottom = math.floor(math.log10(min(*seen, tolerance / 100))) - self.exact
        self.top = math.ceil(math.log10(max(*seen, tolerance * 10)))

    def place(self, error: float) -> float:
        exponent = math.log10(error) if 0 < error < math.inf else 0.0
        return self.bottom if error == 0 else self.top + 1 if error == math.inf else exponent

    def ticks(self) -> dict[float, str]:
        step = max(1, math.ceil((self.top - self.bottom) / 7))
        decades = {float(n): number(10.0**n) for n in range(self.top, self.bottom, -step)}
        exact = {float(self.bottom): "exact"} if self.exact else {}
        return {**decades, **exact, **({self.top + 1.0: "no figure"} if self.infinite else {})}


def _draw_limits(axes: Any, scale: _Scale) -> None:
    limit, top = math.log10(scale.tolerance), scale.top + (1.5 if scale.infinite else 0.3)
    bad = _COLOUR["--bad"]
    axes.axhline(limit, color=bad, linestyle="--", linewidth=1.5)
    axes.axhspan(limit, top, color=bad, alpha=0.07, linewidth=0)
    axes.annotate(
        f"tolerance {number(scale.tolerance)}: above it is refused",
        (0.02, limit),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        color=bad,
        fontsize=10,
        bbox={"facecolor": _COLOUR["--paper"], "edgecolor": "none", "pad": 1, "alpha": 0.8},
    )
    ticks = scale.ticks()
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(scale.bottom - 0.4, top)
    axes.set_ylabel("relative error, log scale", color=_COLOUR["--soft"])


def _draw_output(
    axes: Any, index: int, output: str, found: list[Difference], shift: float, scale: _Scale
) -> None:
    colour = _COLOUR[_SERIES[index]]
    for place, one in enumerate(found):
        height = scale.place(one.max_rel)
        axes.vlines(
            place + shift, scale.bottom - 0.4, height, color=colour, alpha=0.35, linewidth=2
        )
        face = "none" if one.max_rel == 0 else colour
        label = output if place == 0 else None
        style = {"markersize": 8, "markeredgecolor": colour, "markerfacecolor": face}
        axes.plot(place + shift, height, _MARKS[index], label=label, **style)
        if not one.passed:
            axes.plot(
                place + shift, height, "x", color=_COLOUR["--bad"], markersize=15, markeredgewidth=2
            )
            axes.annotate(
                figure(one.max_rel),
                (place + shift, height),
                xytext=(11, -4),
                textcoords="offset points",
                color=_COLOUR["--ink"],
                fontsize=10,
            )


def _finish(axes: Any, lengths: Sequence[int], *, columns: int) -> None:
    """Give both plots the same x axis, quiet frames, and a legend that covers nothing."""
    soft, line = _COLOUR["--soft"], _COLOUR["--line"]
    crowded = len(lengths) > 8
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.tick_params(axis="x", rotation=60 if crowded else 0)
    axes.tick_params(colors=soft, length=0)
    axes.set_xlim(-0.6, max(len(lengths), 1) - 0.4)
    axes.set_xlabel("standard length", color=soft)
    axes.grid(axis="y", color=line, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(line)
    if lengths:
        axes.figure.legend(
            loc="outside upper left", ncols=columns, frameon=False, labelcolor=_COLOUR["--ink"]
        )


def _svg(draw: Any, name: str, label: str) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The salt makes equal plots equal bytes.
    options = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11}
    with mpl.rc_context({**options, "text.parse_math": False}):
        canvas = Figure(figsize=_SIZE, layout="constrained")
        canvas.patch.set_visible(False)
        axes = canvas.subplots()
        axes.patch.set_visible(False)
        draw(axes)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(out, format="svg", metadata=nothing)
    return _for_a_page(out.getvalue(), name, label)


def _for_a_page(svg: str, name: str, label: str) -> str:
    """Make a file's SVG part of a page: no addresses, ids of its own, the page's colours."""
    root, rest = svg[svg.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', root)
    assert box is not None
    rest = rest.replace("xlink:href=", "href=")
    rest = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", rest)
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, f"var({variable})")
    return f'<svg role="img" aria-label="{label}" {box.group()}>{rest}'
