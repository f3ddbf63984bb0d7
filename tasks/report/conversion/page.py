"""What a person reads about a conversion: one self-contained HTML page.

The verdict first, then errors and latency as plots, then tables; a failed gate gets the same page
with its failures at the top. ``tasks.report.conversion.markdown`` tells the same in markdown.
"""

from __future__ import annotations

from tasks.report.conversion import sections
from tasks.report.conversion import words as wording
from tasks.report.conversion.facts import ReportFacts
from tasks.report.conversion.plots import error_plot, latency_plot, milliseconds, shown_outputs
from tasks.report.conversion.words import figure, number
from tasks.report.markup import Html, element, items, join, page, table
from tasks.validate.verdict import ProbeResult, ValidationReport
from tracefleet.manifest_types import LengthVerdict


def html_report(facts: ReportFacts, report: ValidationReport) -> str:
    """Return the whole page; opens from a disk or an S3 bucket, needs nothing else."""
    variant = facts.variant
    what = (variant.task, variant.backend, variant.dtype, f"batch {variant.batch}")
    return page(
        f"{'Validated' if report.passed else 'Refused'}: {facts.source} {variant.label}",
        element("h1", facts.source),
        element("p", f"Conversion report · {' · '.join(what)}", class_="soft"),
        _verdict(facts, report),
        _plots(report),
        _lengths(facts, report),
        _errors(report),
        sections.signature(facts),
        sections.proof(facts, report),
        _probes(report),
        sections.tied(facts),
        sections.steps(facts),
        sections.provenance(facts),
    )


def _verdict(facts: ReportFacts, report: ValidationReport) -> Html:
    word, sign = ("passed", "✓") if report.passed else ("failed", "✗")
    told = [element("strong", f"{sign} {wording.headline(report)}")]
    told.append(items(wording.proof(report) if report.passed else wording.failures(report)))
    told += [element("p", "⚠ ", line, class_="warn") for line in wording.warnings(facts, report)]
    if accuracy := wording.accuracy(report):
        told.append(element("p", accuracy))
    return element("div", *told, class_=f"verdict {word}")


def _plots(report: ValidationReport) -> Html:
    if not report.probes:
        return Html()
    shown = shown_outputs(report)
    everything = {name for probe in report.probes for name in probe.outputs}
    part = "" if len(shown) == len(everything) else f" The worst {len(shown)} of {len(everything)}."
    errors = (
        "The worst over all probes, for each output. Lower is better. "
        f"Hollow marks on the floor are exact, crossed ones failed.{part}"
    )
    latency = (
        "The fastest call that was seen, eager model against bundle. Lower is better. A length "
        "with one probe has one or two calls, which a busy machine makes look slow."
    )
    figures = [_figure("Error against eager", error_plot(report), errors)]
    if report.latency_eager.keys() & report.latency_traced.keys():
        figures.append(_figure("Latency", latency_plot(report), latency))
    return element("div", *figures, class_="plots")


def _figure(title: str, svg: str, caption: str) -> Html:
    return element("figure", element("strong", title), Html(svg), element("figcaption", caption))


def _lengths(facts: ReportFacts, report: ValidationReport) -> Html:
    header = (
        "length", "verdict", "worst error", "probes that count", "eager ms", "traced ms",
        "speed-up", "other lengths", "other batches",
    )  # fmt: skip
    rows = [_length_row(report, verdict) for verdict in report.lengths()]
    return join(
        element("h2", "Each standard length"),
        table(header, rows, numbers=header[2:7], wide=True),
        element("p", wording.graphs(facts, report), class_="soft"),
        element("p", "Other lengths, other batches: ", wording.generality(report), class_="soft"),
    )


def _length_row(report: ValidationReport, verdict: LengthVerdict) -> tuple[object, ...]:
    eager = report.latency_eager.get(verdict.length)
    traced = report.latency_traced.get(verdict.length)
    return (
        verdict.length,
        _mark(verdict.passed),
        figure(verdict.max_rel_error),
        verdict.probes,
        "–" if eager is None else milliseconds(eager),
        "–" if traced is None else milliseconds(traced),
        f"{number(eager / traced)}×" if eager and traced else "–",
        verdict.other_lengths,
        verdict.other_batches,
    )


def _errors(report: ValidationReport) -> Html:
    header = ("length", "output", "verdict", "relative", "absolute", "cosine", "top-1")
    rows = [
        (
            verdict.length,
            element("code", output),
            _mark(found.passed),
            figure(found.max_rel),
            figure(found.max_abs),
            f"{found.cosine:.7f}",
            f"{found.top1:.1%}",
        )
        for verdict in report.lengths()
        for output, found in report.by_output(verdict.length).items()
    ]
    return join(
        element("h2", "Error of each output"),
        table(header, rows, numbers=header[3:], wide=True),
        element(
            "p",
            "The worst of each figure over all probes. The relative error alone decides; cosine "
            "and top-1 hide large errors and are told beside it.",
            class_="soft",
        ),
    )


def _probes(report: ValidationReport) -> Html:
    explained = [element("p", "○ ", wording.vacuous(report), class_="soft")]
    return join(
        element("h2", "Each probe"),
        *(_probes_at(report, verdict) for verdict in report.lengths()),
        *(explained if any(probe.vacuous for probe in report.probes) else ()),
    )


def _probes_at(report: ValidationReport, verdict: LengthVerdict) -> Html:
    probes = [probe for probe in report.probes if probe.length == verdict.length]
    # Failed ones first: they are what somebody opens this for.
    probes.sort(key=lambda probe: probe.difference.passed)
    failed = sum(not probe.difference.passed for probe in probes)
    idle = f", {len(verdict.vacuous)} prove nothing" if verdict.vacuous else ""
    told = f"{failed or len(probes)} of {len(probes)} {'failed' if failed else 'passed'}"
    return element(
        "details",
        element("summary", _mark(verdict.passed), f" Length {verdict.length}: {told}{idle}"),
        table(("probe", "verdict", "error"), [_probe_row(probe) for probe in probes], wide=True),
        open=None if verdict.passed else "",
    )


def _probe_row(probe: ProbeResult) -> tuple[object, ...]:
    lines = [
        element("div", element("code", output), " ", found.reason or figure(found.max_rel))
        for output, found in zip(probe.outputs, probe.differences, strict=True)
    ]
    idle = probe.vacuous and probe.difference.passed
    tried = element("div", wording.tries(probe.name), class_="soft")
    verdict = element("span", "○ proves nothing", class_="soft") if idle else None
    return join(probe.name, tried), verdict or _mark(probe.difference.passed), join(*lines)


def _mark(passed: bool) -> Html:
    return (
        element("span", "✓ passed", class_="good")
        if passed
        else element("span", "✗ failed", class_="bad")
    )
