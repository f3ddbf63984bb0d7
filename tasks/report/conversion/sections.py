"""The lower half of the page: how to call it, what it was held to, what it took."""

from __future__ import annotations

from tasks.report.conversion import words as wording
from tasks.report.conversion.facts import ReportFacts
from tasks.report.conversion.words import number
from tasks.report.markup import Html, element, facts_table, items, join, table
from tasks.validate.verdict import ValidationReport
from tracefleet.manifest_types import InputSpec, OutputSpec


def signature(facts: ReportFacts) -> Html:
    """Return how the bundle is called and what it returns."""
    rows = [
        *(_tensor("input", one, wording.padding(one)) for one in facts.inputs),
        *(_tensor("output", one, "") for one in facts.outputs),
    ]
    return join(
        element("h2", "Inputs and outputs"),
        table(("kind", "name", "axes", "dtype", "if shorter; if left out"), rows, wide=True),
    )


def _tensor(kind: str, spec: InputSpec | OutputSpec, note: str) -> tuple[object, ...]:
    return (
        kind,
        element("code", spec.name),
        element("code", wording.shape(spec)),
        spec.dtype,
        element("div", note) if note else "",
    )


def proof(facts: ReportFacts, report: ValidationReport) -> Html:
    """Return the tolerance, where it comes from, and what the gate itself had to catch."""
    tolerance, caught = report.tolerance, report.negative_controls
    bound = f"{number(tolerance.atol)} + {number(tolerance.rtol)} · max|eager|"
    controls = [f"✓ {name}: {wording.CONTROLS.get(name, 'the probes failed')}" for name in caught]
    return join(
        element("h2", "What it was held to"),
        facts_table(
            {
                "tolerance": join(
                    element("code", f"max|traced − eager| ≤ {bound}"),
                    element("p", wording.tolerance_source(facts, report), class_="soft"),
                ),
                "planted faults caught": items(controls) if controls else "none",
                "weights": wording.weights(report),
            }
        ),
    )


def tied(facts: ReportFacts) -> Html:
    """Return the names that shared storage."""
    groups = [element("code", " = ".join(group)) for group in facts.tied_groups]
    note = (
        "Untied here: each name has a copy of its own, with the same bits. Never train this model; "
        "the copies would part."
    )
    told = join(items(groups), element("p", note, class_="soft"))
    return join(element("h2", "Tied groups"), told if groups else element("p", "None."))


def steps(facts: ReportFacts) -> Html:
    """Return the time and memory of each step."""
    whole = sum(facts.seconds.values())
    rows = [
        (step, f"{took:.2f}", _bar(took / whole if whole else 0.0), _peak(facts, step))
        for step, took in facts.seconds.items()
    ]
    total = ("all", f"{whole:.2f}", "", _peak(facts, *facts.peak_bytes))
    header = ("step", "seconds", "share", "peak memory")
    return join(
        element("h2", "Steps"),
        table(header, [*rows, total], numbers=("seconds", "peak memory")),
    )


def _bar(share: float) -> Html:
    return element("span", class_="bar", style=f"--share:{share:.3f}")


def _peak(facts: ReportFacts, *steps: str) -> str:
    peak = max((facts.peak_bytes.get(step, 0) for step in steps), default=0)
    return f"{peak / 1e6:,.0f} MB" if peak else "–"


def provenance(facts: ReportFacts) -> Html:
    """Return what identifies the conversion."""
    chosen = "; ".join(f"{name} {value}" for name, value in facts.options.items()) or "none"
    return join(
        element("h2", "Where it comes from"),
        facts_table(
            {
                "commit": element("code", facts.commit),
                "options": chosen,
                "bundle": wording.bundle_size(facts),
                "toolchain": wording.toolchain(facts),
            }
        ),
    )
