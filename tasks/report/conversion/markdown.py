"""The report as markdown, for Prefect's UI: the same words, and plots made of characters."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from tasks.report.conversion import words as wording
from tasks.report.conversion.facts import ReportFacts
from tasks.report.conversion.plots import milliseconds
from tasks.report.conversion.words import figure
from tasks.validate.verdict import ValidationReport

_WIDTH = 30
#: Decades below the tolerance at which the plot's bars begin.
_DEPTH = 4


def markdown_report(facts: ReportFacts, report: ValidationReport, url: str = "") -> str:
    """Return the summary; ``url`` says where the whole page lies."""
    blocks = [
        f"# {_text(facts.source)}",
        _text(facts.variant.label),
        *_verdict(facts, report),
        "## Error against eager",
        _code_block(_error_plot(report)),
        *_latency(report),
        "## Each standard length",
        *_lengths(facts, report),
        "## What it was held to",
        _list(_facts(facts, report)),
        "## Steps",
        _table(("step", "seconds", "peak MB"), _steps(facts)),
        f"The whole page, with every probe: {_code(url)}" if url else "",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _verdict(facts: ReportFacts, report: ValidationReport) -> Iterator[str]:
    yield f"**{'✓' if report.passed else '✗'} {_text(wording.headline(report))}**"
    yield _list(wording.proof(report) if report.passed else wording.failures(report))
    yield from (f"⚠ {_text(line)}" for line in wording.warnings(facts, report))
    yield _text(wording.accuracy(report))


def _error_plot(report: ValidationReport) -> Iterator[str]:
    """Yield one bar for each output and length, on a log scale with the tolerance as a line."""
    found = [
        (str(v.length), output, difference)
        for v in report.lengths()
        for output, difference in report.by_output(v.length).items()
    ]
    if not found:
        return
    rtol = report.tolerance.rtol
    finite = [d.max_rel for _, _, d in found if math.isfinite(d.max_rel)]
    decades = _DEPTH + 1 + max(0.0, math.log10(max(*finite, rtol * 10, rtol) / rtol) - 1)
    limit = round(_DEPTH / decades * _WIDTH)
    wide = max(len(output) for _, output, _ in found)
    for length, output, difference in found:
        above = (
            math.log10(max(difference.max_rel, rtol * 1e-9) / rtol) if difference.max_rel else -9
        )
        filled = round(min(max((above + _DEPTH) / decades, 0.0), 1.0) * _WIDTH)
        bar = ["█" if place < filled else "·" for place in range(_WIDTH)]
        bar.insert(limit, "┃")
        word = "" if difference.passed else "  FAILED"
        yield f"{length:>6}  {output:<{wide}}  {''.join(bar)}  {figure(difference.max_rel)}{word}"
    yield f"log scale; ┃ is the tolerance, {wording.number(rtol)}"


def _latency(report: ValidationReport) -> Iterator[str]:
    lengths = sorted(report.latency_eager.keys() & report.latency_traced.keys())
    if lengths:
        yield "## Latency of one call"
        yield _code_block(_latency_plot(report, lengths))


def _latency_plot(report: ValidationReport, lengths: Sequence[int]) -> Iterator[str]:
    kinds = (("eager ", report.latency_eager), ("traced", report.latency_traced))
    longest = max(latency[length] for _, latency in kinds for length in lengths) or 1.0
    for length in lengths:
        for name, latency in kinds:
            bar = "█" * max(1, round(latency[length] / longest * _WIDTH))
            yield f"{length:>6}  {name}  {bar} {milliseconds(latency[length])} ms"


def _lengths(facts: ReportFacts, report: ValidationReport) -> Iterator[str]:
    header = ("length", "verdict", "max abs", "max rel", "probes", "other lengths", "other batches")
    rows = [
        (
            str(v.length),
            "passed" if v.passed else "**FAILED**",
            figure(v.max_abs_error),
            figure(v.max_rel_error),
            str(v.probes),
            v.other_lengths,
            v.other_batches,
        )
        for v in report.lengths()
    ]
    yield _table(header, rows)
    yield _text(wording.graphs(facts, report))
    yield f"Other lengths, other batches: {_text(wording.generality(report))}"


def _facts(facts: ReportFacts, report: ValidationReport) -> Iterator[str]:
    tied = "; ".join(" = ".join(group) for group in facts.tied_groups) or "none"
    rtol = wording.number(report.tolerance.rtol)
    yield f"tolerance {rtol}: {wording.tolerance_source(facts, report)}"
    yield f"planted faults caught: {', '.join(report.negative_controls) or 'none'}"
    if any(probe.vacuous for probe in report.probes):
        yield wording.vacuous(report)
    for kind, specs in (("inputs", facts.inputs), ("outputs", facts.outputs)):
        named = (f"{one.name} ({wording.shape(one)}, {one.dtype})" for one in specs)
        yield f"{kind}: {', '.join(named)}"
    yield f"tied groups, untied here, never to be trained: {tied}"
    yield f"bundle: {wording.bundle_size(facts)}"
    yield f"toolchain: {wording.toolchain(facts)}"
    yield f"commit: {facts.commit}"


def _steps(facts: ReportFacts) -> Iterator[tuple[str, ...]]:
    for step, took in facts.seconds.items():
        peak = facts.peak_bytes.get(step)
        yield _text(step), f"{took:.2f}", f"{peak / 1e6:,.0f}" if peak else "–"


def _text(text: str) -> str:
    """Escape what markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", html.escape(_line(text), quote=False))


def _code(text: str) -> str:
    return f"`{_line(text).replace('`', chr(39))}`"


def _line(text: str) -> str:
    return " ".join(text.split())


def _code_block(lines: Iterable[str]) -> str:
    kept = [line.replace("`", "'") for line in lines]
    return "\n".join(("```text", *kept, "```")) if kept else ""


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
