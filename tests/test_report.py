"""The report: what its two forms say, and that nothing of outside gets to act in them."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import math
import pickle
import re
from typing import Any

import jinja2
import markupsafe
import pytest

from flows.convert import convert
from flows.engine import prefect_steps
from tasks import child
from tasks.errors import NumericsMismatchError
from tasks.report import render as rendering
from tasks.report.bars import Bar, Chart
from tasks.report.conversion import words
from tasks.report.conversion import words as wording
from tasks.report.conversion.charts import choose_outputs, error_chart, latency_chart
from tasks.report.conversion.facts import Origin, ReportFacts
from tasks.report.conversion.markdown import render_markdown
from tasks.report.conversion.page import render_html
from tasks.report.render import environment, render
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tasks.validate.difference import Difference, incomparable
from tasks.validate.verdict import TOLERANCES, ProbeResult, ValidationReport
from tests.test_pipeline import _gate_without_bits, _mistrace
from tracefleet.manifest_types import (
    InputSpec,
    OutputSpec,
    Toolchain,
    Variant,
)
from tracefleet.verdict_types import (
    DIFFERS,
    HOLDS,
    Accuracy,
    Tolerance,
)

OUTPUTS = ("logits", "encoder_last_hidden_state")
TEXT = ("batch", "length")
ORIGIN = Origin(
    date="2026-11-29T10:00:00+00:00",
    host="builder-7",
    key="beef",
    store="s3://bucket/models",
    folder="s3://bucket/models/conversions/hf.acme.tiny-1/beef",
)
FACTS = ReportFacts(
    source="hf://acme/tiny",
    commit="0123abcd",
    variant=Variant(task="fill-mask"),
    options={},
    inputs=(
        InputSpec(name="input_ids", dtype="int64", axes=TEXT, pad_value=3),
        InputSpec(name="attention_mask", dtype="int64", axes=TEXT, pad_value=0, fill_value=1),
    ),
    outputs=(OutputSpec(name="logits", dtype="float32", axes=(*TEXT, "256")),),
    shared=True,
    same_program=True,
    toolchain=Toolchain(python="3.11", torch="2.13.0", transformers="5.23.0"),
    tied_groups=(("a.weight", "b.weight"),),
    seconds={"trace": 1.5, "validate": 0.5},
    peak_bytes={"trace": 321_000_000},
    bundle_bytes=2_000_000,
    weight_bytes=1_600_000,
    origin=ORIGIN,
)


def _off(error: float) -> Difference:
    return Difference(
        max_abs=error, max_rel=error, cosine=1 - error, top1=1.0, reason="", passed=error <= 1e-5
    )


def _probe(name: str, length: int, *errors: float, vacuous: bool = False) -> ProbeResult:
    found = tuple(
        _off(e) if math.isfinite(e) else incomparable("raised: <img src=x>") for e in errors
    )
    return ProbeResult(
        name=name, length=length, vacuous=vacuous, outputs=OUTPUTS, differences=found
    )


def _report(*probes: ProbeResult, **fields: Any) -> ValidationReport:
    failed = [probe for probe in probes if not probe.difference.passed]
    made = {
        "tolerance": TOLERANCES["float32"],
        "probes": probes,
        "negative_controls": ("wrong-weight", "dropped-mask"),
        "weights_matched": 46,
        "latency_eager": {16: 4.0, 48: 9.0},
        "latency_traced": {16: 2.0, 48: 3.0},
        "failures": tuple(f"{p.name} at length {p.length}: {p.output}: off" for p in failed),
        "measured": ((16, "length", HOLDS), (16, "batch", DIFFERS)),
    }
    return ValidationReport(**{**made, **fields})


PASSED = _report(
    _probe("traced-input", 16, 0.0, 3e-7),
    _probe("right-pad-4", 16, 5e-7, 0.0, vacuous=True),
    _probe("dispatch-47", 48, 0.0, 0.0),
)
FAILED = _report(
    _probe("traced-input", 16, 1e-7, 1e-7),
    _probe("fresh-0", 16, 0.25, 1e-7),
    _probe("hole", 16, 0.5, math.inf),
    _probe("dispatch-47", 48, 1e-7, 1e-7),
)


class _Balanced(html.parser.HTMLParser):
    """Walks a page; every element that was opened has to be closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _walk(page: str) -> list[tuple[str, dict[str, str | None]]]:
    walker = _Balanced()
    walker.feed(page)
    walker.close()
    assert walker.open == []
    return walker.seen


def _words(page: str) -> str:
    """What a person reads: no tags, no styles."""
    bare = re.sub(r"<(style|svg)\b.*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare)))


@pytest.mark.parametrize("report", [PASSED, FAILED, _report()], ids=["passed", "failed", "empty"])
def test_the_page_is_whole_and_loads_nothing(report):
    page = render_html(FACTS, report)
    seen = _walk(page)
    assert "http" not in page.replace("http-equiv", "")
    assert not {tag for tag, _ in seen} & {"script", "link", "img", "iframe", "object"}
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not any("src" in attributes for _, attributes in seen)
    assert not re.search(r"@import|url\((?!#)", page)
    links = [attributes["href"] for _, attributes in seen if "href" in attributes]
    inside = [link for link in links if link is not None and link.startswith("#")]
    assert set(links) - set(inside) <= {"../../conversions/hf.acme.tiny-1/beef/manifest.json"}
    ids = [attributes["id"] for _, attributes in seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in inside} <= set(ids)


def test_a_passed_report_says_what_was_proved():
    words = _words(render_html(FACTS, PASSED))
    order = ["✓ Validated.", "Error against eager", "Latency", "Each standard length", "Each probe"]
    assert [words.index(part) for part in order] == sorted(words.index(part) for part in order)
    for part in (
        "agrees with the untouched model on 2 probes at the standard lengths 16, 48",
        "worst relative error is 5e-7, 20 times below the tolerance of 1e-5",
        "46 tensors equal the checkpoint's file bit for bit",
        "wrong-weight: one weight matrix was corrupted",
        "input_ids batch × length int64 padded with 3; has to be given",
        "attention_mask batch × length int64 padded with 0; 1 everywhere",
        "logits batch × length × 256 float32",
        "It is the pipeline's own for float32",
        "the request did not override it",
        "The bundle guards its graphs; this is what they would do without the guard.",
        "16 ✓ passed 5e-7 1 4.0 2.0 about 2.0× as eager silently different",
        "2026-11-29T10:00:00+00:00 on builder-7",
        "key beef",
        "manifest.json in s3://bucket/models/conversions/hf.acme.tiny-1/beef",
        'tracefleet.open("s3://bucket/models", "hf://acme/tiny", task="fill-mask")',
        "model(input_ids=[[5, 6, 7], [8, 9]])",
        "// tracefleet pull s3://bucket/models hf://acme/tiny --to ./model auto bundle",
        "bundle.forward({input_ids, attention_mask}).toTuple()",
        "--as triton tritonserver --model-repository=./repository",
        "docs/gate.md of tracefleet",
        "right-pad-4 prove nothing here and do not count",
        "○ proves nothing",
        "a.weight = b.weight",
        "2.0 MB, 1.250 times its weights (1.6 MB)",
        "trace 1.50",
        "321 MB",
        "torch 2.13.0, transformers 5.23.0, Python 3.11",
    ):
        assert part in words, part
    assert "✗" not in words


def test_what_is_in_a_folder_is_used_from_there_and_what_was_refused_not_at_all():
    folder = "file:///srv/models/conversions/hf.acme.tiny-1/beef"
    here = dataclasses.replace(ORIGIN, store="file:///srv/models", folder=folder)
    words = _words(render_html(dataclasses.replace(FACTS, origin=here), PASSED))
    assert 'torch::jit::load("/srv/models/conversions/hf.acme.tiny-1/beef/model/1' in words
    named = dataclasses.replace(here, name="support", text="A [MASK] sentence.")
    words = _words(render_html(dataclasses.replace(FACTS, origin=named), PASSED))
    assert 'tracefleet.open("file:///srv/models", "support", task="fill-mask")' in words
    assert 'model.predict("A [MASK] sentence.")' in words
    assert "--to ./model" not in words
    refused = _words(
        render_html(
            dataclasses.replace(FACTS, origin=dataclasses.replace(here, folder=None)), FAILED
        )
    )
    assert "on builder-7" in refused
    assert "Use it" not in refused
    assert "manifest.json" not in refused
    neuron = Variant(task="fill-mask", backend="neuronx", dtype="bfloat16", batch=4)
    words = _words(render_html(dataclasses.replace(FACTS, variant=neuron), PASSED))
    assert 'dtype="bfloat16", backend="neuronx", batch=4)' in words
    assert "Triton" not in words


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (1, "1.0"),
        (0.97, "0.97"),
        (9.64, "9.6"),
        (16.9, "17"),
        (207.3, "210"),
        (5321, "5,300"),
    ],
)
def test_times_have_the_digits_that_one_or_two_calls_are_worth(time, text):
    assert words.milliseconds(time) == text


def test_a_failed_report_says_why_at_its_top():
    page = render_html(FACTS, FAILED)
    words = _words(page)
    top = words[: words.index("Error against eager")]
    assert "✗ Refused: nothing was published." in top
    assert "Length 16: 2 of 3 probes fail. Worst: hole, output encoder_last_hidden_state" in top
    assert "The traced input agrees: the graph has recorded" in top
    assert "Length 48" not in top
    assert "fresh-0" not in top, "the tables have the single probes"
    opened = [attributes for tag, attributes in _walk(page) if tag == "details"]
    assert ["open" in attributes for attributes in opened] == [True, False]
    assert words.index("fresh-0 other random ids") < words.index("traced-input the input"), "first"


@pytest.mark.parametrize(
    ("failed", "hint"),
    [
        ({"traced-input", "fresh-0", "hole", "batch-2"}, "Even the input that was traced"),
        ({"hole"}, "Only masked and padded inputs"),
        ({"batch-2"}, "Only calls through the dispatcher"),
        ({"fresh-0", "hole"}, "belongs to that input alone"),
    ],
)
def test_the_pattern_of_failures_tells_where_to_look(failed, hint):
    names = ("traced-input", "fresh-0", "hole", "batch-2")
    report = _report(*(_probe(n, 16, 0.3 if n in failed else 0.0, 0.0) for n in names))
    (line,) = wording.failures(report)
    assert hint in line


def test_a_length_with_few_probes_gets_no_hint():
    (line,) = wording.failures(_report(_probe("dispatch-47", 48, 0.3, 0.0)))
    assert line.endswith("30,000 times the tolerance.")


def test_other_complaints_are_told_as_they_are():
    calls = [
        f"traced-input at length 16, {n} call with the default executor: relative error 0.1"
        for n in ("first", "second", "third")
    ]
    blind = "negative control: expected a corrupted weight to fail a probe, got a pass"
    report = _report(_probe("traced-input", 16, 0.0, 0.0), failures=(*calls, blind))
    assert wording.failures(report) == [
        "As C++ and Triton run it (default executor), 3 of the first calls of traced-input at "
        "length 16 fail too: relative error 0.1.",
        blind,
    ]
    assert "negative control" in render_markdown(FACTS, report)


def test_errors_are_kept_for_each_output():
    probe = _probe("fresh-0", 16, 1e-7, 0.25)
    assert (probe.output, probe.difference.max_rel) == (OUTPUTS[1], 0.25)
    worst = FAILED.by_output(16)
    assert [(name, found.max_rel, found.passed) for name, found in worst.items()] == [
        ("logits", 0.5, False),
        ("encoder_last_hidden_state", math.inf, False),
    ]
    assert PASSED.by_output(16)["logits"].max_rel == 5e-7
    assert PASSED.by_output(16)["encoder_last_hidden_state"].max_rel == 3e-7
    words = _words(render_html(FACTS, PASSED))
    assert "16 encoder_last_hidden_state ✓ passed 3e-7" in words
    assert "48 logits ✓ passed exact exact 1.0000000 100.0%" in words


def test_the_verdict_of_a_length_is_the_worst_of_all_outputs():
    """Not that of each probe's worst output alone: another one may have the smallest cosine."""
    probe = _probe("fresh-0", 16, 9e-6, 8e-6)
    turned = dataclasses.replace(probe.differences[1], cosine=0.5, max_abs=7.0)
    report = _report(dataclasses.replace(probe, differences=(probe.differences[0], turned)))
    (verdict,) = report.lengths()
    assert (verdict.max_rel_error, verdict.max_abs_error, verdict.min_cosine) == (9e-6, 7.0, 0.5)


def test_a_report_is_pickled_small():
    """It goes from the gate's process to its parent; output names are stored once."""
    probes = [_probe(f"fresh-{n}", 16, 1e-7 * n, 2e-7 * n) for n in range(100)]
    assert len(pickle.dumps(_report(*probes))) < 25_000


EVIL = "<script>alert('x')</script>"


def _evil() -> tuple[ReportFacts, ValidationReport]:
    evil = EVIL
    facts = dataclasses.replace(
        FACTS,
        source=f"file:///{evil}",
        commit=evil,
        tied_groups=((evil, "b"),),
        inputs=(dataclasses.replace(FACTS.inputs[0], name=evil),),
        options={"pooling": evil},
        seconds={evil: 1.0},
        origin=dataclasses.replace(ORIGIN, folder=None, host=evil, store=evil, key=evil),
    )
    probes = [
        dataclasses.replace(probe, name=f"{evil}-{probe.name}", outputs=(evil, "b$x$"))
        for probe in FAILED.probes
    ]
    return facts, _report(*probes, failures=(f"x: {evil}",))


def test_what_comes_from_outside_is_text():
    facts, report = _evil()
    page = render_html(facts, report)
    tags = {tag for tag, _ in _walk(page)}
    assert not tags & {"script", "img", "iframe", "object", "a"}
    assert page.count(str(markupsafe.escape(EVIL))) >= 10
    outside_code = re.sub(r"```.*?```|`[^`]*`", "", render_markdown(facts, report), flags=re.S)
    assert "<" not in outside_code
    assert "[" not in render_markdown(dataclasses.replace(FACTS, source="[a](b)"), PASSED).replace(
        "\\[", ""
    )


def test_a_template_that_escapes_nothing_would_be_seen(monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr(
        rendering,
        "environment",
        lambda *, markdown: environment(markdown=markdown).overlay(autoescape=False, finalize=None),
    )
    facts, report = _evil()
    assert "<script>alert" in render_html(facts, report)
    outside_code = re.sub(r"```.*?```|`[^`]*`", "", render_markdown(facts, report), flags=re.S)
    assert "<script>alert" in outside_code


@pytest.mark.parametrize("markdown", [False, True])
def test_a_name_that_a_template_does_not_know_is_an_error(markdown):
    made = environment(markdown=markdown)
    assert made.from_string("{{ name }}").render(name="a b") == "a b"
    for wrong in ("{{ other }}", "{{ name.other }}", "{% if other %}{% endif %}"):
        with pytest.raises(jinja2.UndefinedError, match="other"):
            made.from_string(wrong).render(name="a b")
    with pytest.raises(jinja2.UndefinedError, match="report"):
        render("conversion.md" if markdown else "conversion.html", facts=FACTS)


def test_each_form_escapes_its_own_markup():
    value = "<b> *a* `c` [d](e)"
    text = {m: environment(markdown=m).from_string("*{{ value }}*") for m in (False, True)}
    assert text[False].render(value=value) == "*&lt;b&gt; *a* `c` [d](e)*"
    assert text[True].render(value=value) == r"*&lt;b&gt; \*a\* \`c\` \[d\](e)*"
    kept = {m: environment(markdown=m).from_string("{{ value | safe }}") for m in (False, True)}
    assert kept[False].render(value=value) == kept[True].render(value=value) == value


def test_an_overridden_tolerance_is_told_and_a_risky_one_is_warned_of():
    loose = _report(_probe("traced-input", 16, 0.0, 0.0), tolerance=Tolerance(atol=0.0, rtol=5e-5))
    told = wording.tolerance_source(dataclasses.replace(FACTS, options={"rtol": "5e-05"}), loose)
    assert told.startswith("Overridden by the request: 5e-5 and not 1e-5")
    risky = dataclasses.replace(FACTS, options={"rtol": "0.01", "accept_tolerance_risk": "true"})
    for form in (_words(render_html(risky, loose)), render_markdown(risky, loose)):
        assert form.index("⚠") < form.index("Error against eager")
    assert "⚠" not in render_html(FACTS, loose)


def test_what_quantisation_costs_is_told_beside_the_verdict():
    accuracy = Accuracy(max_rel_error=0.031, min_cosine=0.9912, top1_agreement=0.975)
    report = dataclasses.replace(PASSED, accuracy=accuracy)
    facts = dataclasses.replace(FACTS, variant=dataclasses.replace(FACTS.variant, dtype="int8"))
    expected = "relative error up to 0.031, cosine at least 0.9912, the same top-1 in 97.5%"
    for form in (_words(render_html(facts, report)), render_markdown(facts, report)):
        assert "agrees with the quantised model" in form
        assert "46 tensors equal the quantised model's bit for bit" in form
        assert form.index("Validated") < form.index(expected) < form.index("Error against eager")
    assert "quantisation" not in render_html(FACTS, PASSED)


def test_the_markdown_has_the_verdict_the_plots_and_the_tables():
    text = render_markdown(FACTS, PASSED, "s3://bucket/reports/1/index.html")
    order = ["**✓ Validated.**", "## Error against eager", "## Latency", "## Each standard length"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "| 16 | passed | 5e-7 | 5e-7 | 1 | as eager | silently different |" in text
    assert re.search(r"16  eager   █+ 4\.0 ms\n +16  traced  █+ 2\.0 ms", text)
    assert "a.weight = b.weight" in text
    assert "`s3://bucket/reports/1/index.html`" in text
    bars = re.findall(r"(\w+) +([█·]+┃[█·]+)  (\S+)", text)
    assert ("logits", "exact") in {(name, error) for name, _, error in bars}
    assert len({bar.index("┃") for _, bar, _ in bars}) == 1, "one tolerance line"
    exact = next(bar for _, bar, error in bars if error == "exact")
    assert "█" not in exact
    failed = render_markdown(FACTS, FAILED)
    assert "**✗ Refused: nothing was published.**\n\n- Length 16: 2 of 3" in failed
    assert re.search(r"16  logits +█+┃█+·*  0\.5  FAILED", failed)
    assert "no figure  FAILED" in failed


def _draw(report: ValidationReport) -> str:
    return render("chart.svg", chart=error_chart(report))


def test_the_plot_shows_exact_failed_and_incomparable_ones():
    passed, failed = _draw(PASSED), _draw(FAILED)
    assert ">exact</text>" in passed
    assert ">no figure</text>" not in passed
    assert {">no figure</text>", ">0.5</text>"} <= set(re.findall(r">[^<]+</text>", failed))
    assert ">tolerance 1e-5: above it is refused</text>" in passed
    assert not re.search(r"#[0-9a-f]{3}|rgb", passed), "every colour is one of the page's"
    assert passed == _draw(PASSED)


def _bars(chart: Chart) -> list[Bar]:
    return [bar for bars in chart.groups for bar in bars]


def test_bars_over_the_tolerance_are_those_that_failed():
    for report in (PASSED, FAILED):
        chart = error_chart(report)
        assert chart.limit is not None
        bars = _bars(chart)
        assert [bar.crossed for bar in bars] == [bar.height > chart.limit.at for bar in bars]
        assert any(bar.crossed for bar in bars) == (not report.passed)
        assert [bar.hollow for bar in bars] == ["exact" in bar.name for bar in bars]
        _is_inside(chart)


def _is_inside(chart: Chart) -> None:
    """Nothing is drawn outside of the plot, nor one bar over another."""
    edges = [chart.edges(s, i) for s, bars in enumerate(chart.groups) for i in range(len(bars))]
    assert all(chart.left <= left < right <= chart.right for left, right in edges)
    assert all(right <= left for (_, right), (left, _) in itertools.pairwise(edges))
    assert all(0 < bar.height <= 1 for bar in _bars(chart))
    assert all(0 <= tick.at <= 1 for tick in chart.y_ticks)


@pytest.mark.parametrize("longest", [0.0, 0.03, 0.9, 4.0, 17.0, 30.0, 1234.5])
def test_latency_is_drawn_to_scale(longest):
    report = dataclasses.replace(PASSED, latency_traced={16: longest / 2, 48: longest})
    report = dataclasses.replace(report, latency_eager={16: longest, 48: longest, 64: 1.0})
    chart = latency_chart(report)
    assert chart is not None
    assert [tick.text for tick in chart.x_ticks] == ["16", "48"], "where both were measured"
    heights = [bar.height for bar in _bars(chart)]
    assert heights[1] * 2 == pytest.approx(heights[0])
    assert heights[0] == heights[2] == heights[3]
    if longest:
        _is_inside(chart)
        assert 4 <= len(chart.y_ticks) <= 10
        top = chart.y_ticks[-1]
        scale = float(top.text.replace(",", "")) / top.at
        assert scale == pytest.approx(longest / heights[0], rel=5e-3)


def test_texts_stand_where_there_is_room_for_them():
    def drawn(lengths: int) -> str:
        found = {2**n: 1.0 for n in range(lengths)}
        report = dataclasses.replace(PASSED, latency_eager=found, latency_traced=found)
        return render("chart.svg", chart=latency_chart(report))

    assert drawn(8).count(">1.0</text>") == 16
    assert drawn(9).count(">1.0</text>") == 0
    assert "rotate(-60" not in drawn(10)
    assert drawn(11).count("rotate(-60") == 11


def test_without_latencies_there_is_no_such_chart():
    report = dataclasses.replace(PASSED, latency_eager={})
    assert latency_chart(report) is None
    assert "Latency" not in render_html(FACTS, report)
    assert "Latency" in render_html(FACTS, PASSED)


def test_of_very_many_outputs_the_worst_are_plotted():
    names = tuple(f"hidden_{n}" for n in range(9))
    found = tuple(_off(1e-9 * (n + 1)) for n in range(9))
    probe = ProbeResult(name="fresh-0", length=16, vacuous=False, outputs=names, differences=found)
    assert choose_outputs(_report(probe)) == list(names[3:])
    assert "The worst 6 of 9." in _words(render_html(FACTS, _report(probe)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (5e-7, "5e-7"),
        (5.04e-7, "5e-7"),
        (1e-5, "1e-5"),
        (0.2283, "0.228"),
        (1234.5, "1,234"),
    ],
)
def test_numbers_are_written_as_people_write_them(value, text):
    assert wording.number(value) == text


def test_the_artifact_has_one_key_for_each_checkpoint_and_variant(monkeypatch):
    made: list[dict[str, str]] = []
    monkeypatch.setattr(
        prefect_steps, "create_markdown_artifact", lambda **fields: made.append(fields)
    )
    prefect_steps.PrefectSteps().show(FACTS, FAILED, "s3://b/index.html")
    (artifact,) = made
    assert re.fullmatch(r"hf-acme-tiny-[0-9a-f]+-fill-mask-jit-float32-b1", artifact["key"])
    assert artifact["markdown"] == render_markdown(FACTS, FAILED, "s3://b/index.html")


def test_a_refused_conversion_shows_which_output_is_wrong(checkpoint, tmp_path):
    """The pooler alone was spoiled: the hidden state of the very same calls is right."""
    shown: list[tuple[ReportFacts, ValidationReport, str]] = []

    def run(function: Any, *arguments: Any, **options: Any) -> Any:
        replaced = {"trace": _mistrace, "validate": _gate_without_bits}
        return child.run(replaced.get(options["step"], function), *arguments, **options)

    request = make_request(
        {
            "source": f"file://{checkpoint('bert')}",
            "task": "feature-extraction",
            "lengths": [8],
            "store": f"file://{tmp_path / 'store'}",
        }
    )

    class Shown(Steps):
        def show(self, *given: Any) -> None:
            shown.append(given)

    with pytest.raises(NumericsMismatchError):
        convert(request, Shown(run=run, run_id="bad"))
    ((facts, report, url),) = shown
    assert url == f"file://{tmp_path}/store/reports/bad/index.html"
    found = report.by_output(8)
    assert found["last_hidden_state"].passed
    assert not found["pooler_output"].passed
    assert facts.inputs[0].name == "input_ids"
    page = (tmp_path / "store/reports/bad/index.html").read_text()
    assert page == render_html(facts, report)
    assert "Refused" in page


def test_a_device_is_told_of_without_what_is_true_for_jit_alone():
    neuron = dataclasses.replace(
        FACTS, variant=dataclasses.replace(FACTS.variant, backend="neuronx"), weight_bytes=0
    )
    sealed = dataclasses.replace(PASSED, weights_matched=0)
    page = render_html(neuron, sealed)
    assert "on neuronx with its cast" in page
    assert "weights can&#39;t be read" in page or "weights can't be read" in page
    assert "holds no weights" not in page
    assert "0 tensors" not in page
    assert "on neuronx" not in render_html(FACTS, PASSED)
