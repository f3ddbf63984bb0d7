"""A comparison as a picture: the ratio of each peer to the reference, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracefleet.bench.optional import import_optional
from tracefleet.bench.results import Figure, Report
from tracefleet.printing import format_count

#: Told apart by people who see colours differently (Okabe and Ito).
_COLOURS = ("#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_INCHES_A_BAR, _INCHES_A_PANEL, _LEAST_INCHES = 0.22, 3.2, 7.0


def save_plot(report: Report, path: Path) -> None:
    """Draw one panel for each number of threads, one group of bars for each case.

    Args:
        report: the comparison.
        path: file to write, ``.svg`` or ``.png``.

    Raises:
        BenchError: matplotlib is missing.
        OSError: the file can't be written.
    """
    figures = import_optional("matplotlib.figure")
    threads = list(dict.fromkeys(number for number, _, _ in report.cases))
    cases = len(report.cases) // len(threads)
    width = max(_LEAST_INCHES, cases * (len(report.peers) + 1) * _INCHES_A_BAR + 1)
    picture = figures.Figure(
        figsize=(width, _INCHES_A_PANEL * len(threads) + 1), layout="constrained"
    )
    panels = picture.subplots(len(threads), 1, squeeze=False)[:, 0]
    for panel, number in zip(panels, threads, strict=True):
        _draw(panel, report, number)
    panels[-1].set_xlabel("tokens of a row × rows of a call")
    name = report.source.rstrip("/").rpartition("/")[2]
    picture.suptitle(f"{name}, {report.task}: rows a second relative to {report.reference}")
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    picture.savefig(path, dpi=150)


def _draw(panel: Any, report: Report, threads: int) -> None:
    cases = [one for (number, _, _), one in report.cases.items() if number == threads]
    share = 0.8 / len(report.peers)
    for number, peer in enumerate(one.name for one in report.peers):
        places, ratios, errors = [], [], []
        for place, figures in enumerate(cases):
            ratio = report.ratio(figures[peer])
            if ratio is not None:
                places.append(place - 0.4 + share * (number + 0.5))
                ratios.append(ratio)
                errors.append(_spread(figures[peer], ratio))
        panel.bar(
            places,
            ratios,
            width=share,
            color=_COLOURS[number % len(_COLOURS)],
            yerr=list(zip(*errors, strict=True)) or None,
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
            label=_describe(report, peer),
        )
    panel.axhline(1, color="#333333", linewidth=0.8)
    panel.set_xticks(range(len(cases)), [_label(next(iter(one.values()))) for one in cases])
    panel.set_title(format_count(threads, "thread"), loc="left", fontsize=10)
    panel.set_ylabel("times as fast")
    panel.spines[["top", "right"]].set_visible(False)


def _spread(figure: Figure, ratio: float) -> tuple[float, float]:
    """Return how far the slowest and the fastest round are from the median, as ratios."""
    unit = ratio / figure.median
    return ratio - min(figure.rates) * unit, max(figure.rates) * unit - ratio


def _describe(report: Report, peer: str) -> str:
    difference = report.difference(peer)
    if peer == report.reference or difference is None:
        return peer
    return f"{peer} (differs by {difference:.1e})"


def _label(figure: Figure) -> str:
    return f"{'mixed' if figure.length is None else figure.length} × {figure.rows}"
