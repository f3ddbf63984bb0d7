"""What a person reads about a conversion: one self-contained HTML page, one markdown summary.

Both say what was converted, the verdict of each length, the error and latency as plots, the
planted faults that were caught, the tied groups and the versions. A failed gate gets the same
page, with every probe that failed.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.verdict import ValidationReport
from tracefleet.manifest import Toolchain, Variant

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1c2330}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid #dde3ea;
font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}th{color:#5a6675;font-weight:600}
.passed{color:#12733a;font-weight:600}.failed{color:#b3261e;font-weight:600}
code{background:#f2f5f8;padding:.1rem .3rem;border-radius:3px;word-break:break-all}
svg{max-width:100%;height:auto}ul{padding-left:1.2rem}
"""


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the page says beside the validation.

    Attributes:
        source: where the checkpoint came from.
        commit: what it resolved to.
        variant: task, backend, dtype, batch.
        toolchain: versions.
        tied_groups: names that shared storage.
        seconds: wall time of each step.
        peak_bytes: largest resident size of each step's child.
        bundle_bytes: size of the bundle; 0 if there is none.
        weight_bytes: of that, weights.
    """

    source: str
    commit: str
    variant: Variant
    toolchain: Toolchain
    tied_groups: tuple[tuple[str, ...], ...]
    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    bundle_bytes: int
    weight_bytes: int


def html_report(facts: ReportFacts, report: ValidationReport) -> str:
    """Return the whole page; opens from a disk or an S3 bucket, needs nothing else."""
    title = f"{facts.source} — {facts.variant.label}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{_verdict_html(report)}</p>",
        _facts_html(facts),
        "<h2>Each standard length</h2>",
        _lengths_html(report),
        plot_svg(report),
        "<h2>Each probe</h2>",
        _probes_html(report),
        "<h2>Steps</h2>",
        _steps_html(facts),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"
    )


def markdown_report(facts: ReportFacts, report: ValidationReport) -> str:
    """Return a short summary for Prefect's UI."""
    rows = "\n".join(
        f"| {v.length} | {v.max_abs_error:.2e} | {v.max_rel_error:.2e} | "
        f"{'passed' if v.passed else '**failed**'} | {report.latency_eager.get(v.length, 0):.1f} | "
        f"{report.latency_traced.get(v.length, 0):.1f} |"
        for v in report.lengths()
    )
    failures = "".join(f"\n- {failure}" for failure in report.failures)
    return (
        f"# {facts.source} `{facts.variant.label}`\n\ncommit `{facts.commit}`\n\n"
        "| length | max abs error | relative | verdict | eager ms | traced ms |\n"
        f"|---|---|---|---|---|---|\n{rows}\n\n"
        f"Planted faults caught: {', '.join(report.negative_controls) or 'none'}. "
        f"Bundle {facts.bundle_bytes / 1e6:.1f} MB, weights {facts.weight_bytes / 1e6:.1f} MB."
        f"{failures}\n"
    )


def plot_svg(report: ValidationReport) -> str:
    """Return error against tolerance, and eager against traced latency, per length, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_errors(left, report)
    _plot_latency(right, report)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _plot_errors(axes: Any, report: ValidationReport) -> None:
    verdicts = report.lengths()
    labels = [str(v.length) for v in verdicts]
    floor = report.tolerance.rtol * 1e-4
    errors = [min(max(v.max_rel_error, floor), 1e3) for v in verdicts]
    colours = ["#2f7d4f" if v.passed else "#b3261e" for v in verdicts]
    axes.bar(labels, errors, color=colours)
    axes.axhline(report.tolerance.rtol, color="#b3261e", linestyle="--", label="tolerance")
    axes.set(yscale="log", title="worst relative error", xlabel="standard length (tokens)")
    axes.legend()


def _plot_latency(axes: Any, report: ValidationReport) -> None:
    lengths = sorted(report.latency_eager.keys() & report.latency_traced.keys())
    for name, latency, colour in (
        ("eager", report.latency_eager, "#8a94a3"),
        ("traced", report.latency_traced, "#2457a6"),
    ):
        axes.plot(lengths, [latency[n] for n in lengths], "o-", label=name, color=colour)
    axes.set(title="one call (ms)", xlabel="standard length (tokens)", ylim=(0, None))
    axes.legend()


def _verdict_html(report: ValidationReport) -> str:
    if report.passed:
        return (
            '<span class="passed">Validated.</span> Planted faults that the gate caught: '
            f"{html.escape(', '.join(report.negative_controls))}. Weights equal to the "
            f"checkpoint's file bit for bit: {report.weights_matched} tensors."
        )
    items = "".join(f"<li>{html.escape(failure)}</li>" for failure in report.failures)
    return f'<span class="failed">Refused; nothing was published.</span><ul>{items}</ul>'


def _facts_html(facts: ReportFacts) -> str:
    tied = "; ".join(" = ".join(group) for group in facts.tied_groups) or "none"
    ratio = facts.bundle_bytes / facts.weight_bytes if facts.weight_bytes else 0.0
    rows = {
        "commit": facts.commit,
        "versions": f"torch {facts.toolchain.torch}, transformers {facts.toolchain.transformers}, "
        f"Python {facts.toolchain.python}",
        "tied groups (untied here; never train the copies)": tied,
        "bundle": f"{facts.bundle_bytes / 1e6:.1f} MB, {ratio:.3f} × its weights",
    }
    return _table((), [(name, f"<code>{html.escape(text)}</code>") for name, text in rows.items()])


def _lengths_html(report: ValidationReport) -> str:
    header = (
        "length",
        "probes",
        "max abs",
        "max rel",
        "cosine",
        "top-1",
        "eager ms",
        "traced ms",
        "",
    )
    rows = [
        (
            str(v.length),
            str(v.probes),
            f"{v.max_abs_error:.2e}",
            f"{v.max_rel_error:.2e}",
            f"{v.min_cosine:.6f}",
            f"{v.top1_agreement:.3f}",
            f"{report.latency_eager.get(v.length, 0):.1f}",
            f"{report.latency_traced.get(v.length, 0):.1f}",
            _mark(v.passed),
        )
        for v in report.lengths()
    ]
    return _table(header, rows)


def _probes_html(report: ValidationReport) -> str:
    header = ("probe", "length", "worst output", "max rel", "")
    rows = [
        (
            html.escape(p.name),
            str(p.length),
            html.escape(p.output),
            html.escape(p.difference.reason) or f"{p.difference.max_rel:.2e}",
            "vacuous" if p.vacuous and p.difference.passed else _mark(p.difference.passed),
        )
        for p in report.probes
    ]
    return _table(header, rows)


def _steps_html(facts: ReportFacts) -> str:
    rows = [
        (step, f"{took:.2f}", f"{facts.peak_bytes.get(step, 0) / 1e6:.0f}")
        for step, took in facts.seconds.items()
    ]
    return _table(("step", "seconds", "peak MB"), rows)


def _mark(passed: bool) -> str:
    word = "passed" if passed else "failed"
    return f'<span class="{word}">{word}</span>'


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if header else ''}{body}</table>"
