"""The report as markdown, for Prefect's UI: the same words, and plots made of characters."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tasks.report.conversion import words
from tasks.report.conversion.facts import ReportFacts
from tasks.report.render import render
from tasks.validate.verdict import ValidationReport

_WIDTH = 30
#: Decades below the tolerance at which the plot's bars begin.
_DEPTH = 4


def render_markdown(facts: ReportFacts, report: ValidationReport, url: str = "") -> str:
    """Return the summary.

    Args:
        facts: what is known beside the validation.
        report: the gate's record.
        url: address of the whole page.
    """
    return render(
        "conversion.md",
        facts=facts,
        report=report,
        url=url,
        words=words,
        errors=tuple(_error_plot(report)),
        latency=tuple(_latency_plot(report)),
    )


def _error_plot(report: ValidationReport) -> Iterator[str]:
    """Yield one bar for each output and length, on a log scale with the tolerance as a line."""
    found = [
        (verdict.length, output, difference)
        for verdict in report.lengths()
        for output, difference in report.by_output(verdict.length).items()
    ]
    if not found:
        return
    rtol = report.tolerance.rtol
    finite = [d.max_rel for _, _, d in found if math.isfinite(d.max_rel)]
    decades = _DEPTH + math.log10(max(*finite, rtol * 10, rtol) / rtol)
    limit = round(_DEPTH / decades * _WIDTH)
    wide = max(len(output) for _, output, _ in found)
    for length, output, difference in found:
        # What is exact is as good as far below the first bar.
        above = math.log10(max(difference.max_rel / rtol, 1e-9))
        filled = round(min(max((above + _DEPTH) / decades, 0.0), 1.0) * _WIDTH)
        bar = "█" * filled + "·" * (_WIDTH - filled)
        bar = f"{bar[:limit]}┃{bar[limit:]}"
        word = "" if difference.passed else "  FAILED"
        yield f"{length:>6}  {output:<{wide}}  {bar}  {words.figure(difference.max_rel)}{word}"
    yield f"log scale; ┃ is the tolerance, {words.number(rtol)}"


def _latency_plot(report: ValidationReport) -> Iterator[str]:
    lengths = sorted(report.latency_eager.keys() & report.latency_traced.keys())
    kinds = (("eager ", report.latency_eager), ("traced", report.latency_traced))
    times = [latency[length] for _, latency in kinds for length in lengths]
    longest = max(times, default=0.0) or 1.0
    for length in lengths:
        for name, latency in kinds:
            bar = "█" * max(1, round(latency[length] / longest * _WIDTH))
            yield f"{length:>6}  {name}  {bar} {words.milliseconds(latency[length])} ms"
