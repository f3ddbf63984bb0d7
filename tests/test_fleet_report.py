"""The report of a fleet: what it says, in which order, and that nothing of outside acts in it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import html.parser
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import markupsafe
import pytest

from tasks.report import render as rendering
from tasks.report.fleet import markdown as fleet_markdown
from tasks.report.fleet import words as fleet_words
from tasks.report.fleet.charts import error_histogram
from tasks.report.fleet.facts import Ending, FleetFacts, FleetRow
from tasks.report.fleet.links import href
from tasks.report.fleet.page import fleet_report
from tasks.report.render import TEMPLATES, environment

STORE = "s3://bucket/models"
BASE = f"{STORE}/reports/fleet-1"
EVIL = "<script>alert('x')</script>\"|[a](javascript:b)`"


def _row(name: str, ending: Ending, **fields: Any) -> FleetRow:
    made: dict[str, Any] = {
        "name": name,
        "source": f"hf://{name}",
        "commit": "0123456789abcdef",
        "variant": "fill-mask.jit.float32.b1",
        "lengths": (16, 32),
    }
    return FleetRow(**{**made, **fields, "ending": ending})


def _published(name: str, error: float = 1e-6, seconds: float = 10.0, **fields: Any) -> FleetRow:
    made: dict[str, Any] = {
        "why": "new commit",
        "worst_error": error,
        "tolerance": 1e-5,
        "seconds": seconds,
        "peak_bytes": 900_000_000,
        "bundle_bytes": 400_000_000,
        "conversion_url": f"{STORE}/conversions/{name}/abc",
        "report_url": f"{STORE}/reports/{name}-run/index.html",
        "run_url": "https://prefect.example/runs/1",
    }
    return _row(name, "published", **{**made, **fields})


def _fresh(name: str) -> FleetRow:
    url = f"{STORE}/conversions/{name}/abc"
    return _row(name, "fresh", bundle_bytes=100_000_000, conversion_url=url)


def _failed(name: str, error: str = "TraceError", **fields: Any) -> FleetRow:
    made = {"error": error, "why": f"why of {name}", "next_step": f"mend {name}"}
    return _row(name, "failed", **{**made, **fields})


def _facts(*rows: FleetRow, seconds: float = 60.0) -> FleetFacts:
    start = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    return FleetFacts(
        name="nightly",
        run="amber-fox",
        started=start,
        finished=start + timedelta(seconds=seconds),
        rows=rows,
    )


MIXED = _facts(
    _fresh("a/fresh"),
    _failed("a/rare", "RequestError"),
    _published("a/near", 9e-6),
    _published("a/exact", 0.0, 75.0),
    _failed("a/common-1"),
    _row("a/stopped", "cancelled", next_step="run the fleet again"),
    _failed("a/common-2"),
)


class _Page(html.parser.HTMLParser):
    """Reads a page; every element that was opened has to be closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.targets: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag in ("meta", "col", "input") else [tag]
        self.targets += [value or "" for name, value in attrs if name == "href"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else "title"
        self.words += [] if inside in ("style", "script", "title") else [data]


def _read(whole: str) -> _Page:
    read = _Page()
    read.feed(whole)
    read.close()
    return read


def _refused(name: str, day: str = "2025-12-24", **fields: Any) -> FleetRow:
    made = {"error": "TraceError", "why": f"why of {name}", "next_step": f"mend {name}"}
    return _row(name, "refused", **{**made, "since": f"{day}T02:00:00+00:00", **fields})


KNOWN = _facts(_fresh("a/fresh"), _refused("a/old"), _refused("a/new", "2026-01-01"))
ENDINGS: list[tuple[FleetFacts, str, str]] = [
    (MIXED, "✗", "3 of 7 conversions are current: 2 published now, 1 was fresh; 3 failed, 1 canc"),
    (_facts(_fresh("a"), _fresh("b")), "✓", "2 of 2 conversions are current: 2 were fresh."),
    (
        _facts(_row("a", "moved"), _published("b")),
        "✓",
        "2 of 2 conversions are current: 1 published now, 1 channel moved back.",
    ),
    (_facts(_published("a")), "✓", "1 of 1 conversion is current: 1 published now."),
    (_facts(_failed("a"), _failed("b")), "✗", "0 of 2 conversions are current; 2 failed."),
    (_facts(), "✓", "The fleet has no entries."),
    (_facts(_row("a", "cancelled")), "✗", "0 of 1 conversion is current; 1 cancelled."),
    (KNOWN, "⊘", "1 of 3 conversions are current: 1 was fresh; 2 refused before."),
    (_facts(_failed("a"), _refused("b")), "✗", "0 of 2 conversions are current; 1 failed, 1 ref"),
]


@pytest.mark.parametrize(("facts", "sign", "headline"), ENDINGS)
def test_every_form_begins_with_the_verdict(facts, sign, headline):
    whole = fleet_report(facts)
    assert _read(whole).open == []
    color = {"✗": "failed", "⊘": "known", "✓": "passed"}[sign]
    assert f'class="verdict {color}"><strong>{sign} {headline}' in whole
    assert ("What failed" in whole) == (sign == "✗")
    markdown = fleet_markdown.fleet_markdown(facts, f"{BASE}/index.html")
    assert markdown.startswith(f"# nightly\n\n**{sign} {headline}")
    assert ("## What failed" in markdown) == (sign == "✗")


def test_what_was_refused_before_stands_apart_with_since_when_and_why():
    facts = _facts(*KNOWN.rows, _failed("a/now"))
    whole = _read(fleet_report(facts)).words
    text = " ".join(" ".join(whole).split())
    failed, refused = (
        text.index("What failed, and what to do"),
        text.index("What was refused before"),
    )
    assert failed < text.index("mend a/now") < refused < text.index("mend a/new")
    assert text.index("mend a/new") < text.index("mend a/old"), "the latest first"
    assert "2026-01-01 TraceError why of a/new" in text
    assert "TraceError since 2025-12-24: why of a/old" in text, "in the table of all"
    assert "Refused before, for the very same, and not tried: 2 × TraceError." in text
    markdown = fleet_markdown.fleet_markdown(facts, "")
    assert "| a/old (fill-mask.jit.float32.b1) | 2025-12-24 | TraceError |" in markdown
    assert [row["conversion"].split()[0] for row in fleet_markdown.failure_table(facts)] == [
        "a/now"
    ]
    new, old = fleet_markdown.refusal_table(facts)
    assert (new["since"], old["since"]) == ("2026-01-01", "2025-12-24")
    endings = [row["ending"] for row in fleet_markdown.fleet_table(facts)]
    assert endings == ["✗ failed", "⊘ refused", "⊘ refused", ""]
    assert "What was refused before" not in fleet_report(MIXED)
    assert fleet_markdown.refusal_table(MIXED) == []


def test_failures_come_first_then_what_changed_then_the_totals_then_all():
    words = " ".join(" ".join(_read(fleet_report(MIXED, BASE)).words).split())
    order = [
        "Failures: 2 × TraceError, 1 × RequestError.",
        "Worst error published: a/near (fill-mask.jit.float32.b1), 9e-6 of 1e-5 allowed.",
        "Slowest: a/exact, 1 min 15 s.",
        "Stored: 900.0 MB. One file for each length would take 900.0 MB more.",
        "What failed, and what to do",
        "why of a/common-1 mend a/common-1",
        "why of a/common-2 mend a/common-2",
        "why of a/rare mend a/rare",
        "What was published",
        "new commit 0123456789ab 9e-6 of 1e-5 10.0 s 400.0 MB",
        "new commit 0123456789ab exact 1 min 15 s 400.0 MB",
        "Worst errors against their tolerance",
        "Totals",
        "900.0 MB in 3 bundles, of which 800.0 MB in 2 bundles are new",
        "900.0 MB against one file per length",
        "1 min 0 s, from 2026-01-02 03:04:00 UTC",
        "1 min 25 s, 1.4 at a time",
        "per minute 2 published",
        "All 7 entries",
    ]
    places = [words.index(part) for part in order]
    assert places == sorted(places)
    every = words[words.index("All 7 entries") :]
    assert [every.index(row.name) for row in MIXED.rows] == sorted(
        every.index(row.name) for row in MIXED.rows
    ), "all of them, as the fleet file has them"


def test_two_entries_of_one_conversion_store_it_once():
    one = _published("a")
    twice = dataclasses.replace(one, name="again", ending="fresh")
    assert fleet_words.totals(_facts(one, twice))["bytes stored"].startswith(
        "400.0 MB in 1 bundle,"
    )
    other = dataclasses.replace(twice, conversion_url=f"{STORE}/conversions/b/abc")
    assert fleet_words.totals(_facts(one, other))["bytes stored"].startswith("800.0 MB in 2 bun")


def test_what_is_not_known_leaves_no_trace():
    bare = [_row(word, word, commit=None, lengths=()) for word in ("published", "failed", "fresh")]
    facts = _facts(*bare, seconds=0.0)
    told = fleet_report(facts) + fleet_markdown.fleet_markdown(facts, "")
    assert not re.search(r"\bNone\b|\bnan\b|href=\"\"", told)
    assert "<figure" not in told
    assert "<figure" in fleet_report(MIXED)
    (first, *_), (failure,) = fleet_markdown.fleet_table(facts), fleet_markdown.failure_table(facts)
    assert (first["worst error"], first["seconds"], first["report"]) == ("", "", "")
    assert (failure["type"], failure["run"]) == ("unknown", "")


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_an_error_without_a_figure_is_the_worst(error):
    facts = _facts(_failed("a", worst_error=error, tolerance=1e-5), _published("b"))
    whole = fleet_report(facts)
    assert 'data-value="Infinity">no figure<' in whole
    assert ">no figure</text>" in whole
    assert ">no figure</text>" not in fleet_report(MIXED)


def test_an_error_equal_to_its_tolerance_is_within_it():
    within, over = (
        fleet_report(_facts(_published("a", error))).count('fill:var(--bad)"></rect>')
        for error in (1e-5, 1.01e-5)
    )
    assert (within, over) == (0, 1)


def test_the_only_program_is_the_one_whose_digest_the_policy_has():
    whole = fleet_report(MIXED)
    (script,) = re.findall(r"<script>(.*?)</script>", whole, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', whole)
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert script == (TEMPLATES / "sort.js").read_text("utf-8")
    assert "innerHTML" not in script


def _evil() -> FleetFacts:
    row = _failed(
        EVIL, EVIL, source=EVIL, commit=EVIL, variant=EVIL, why=EVIL, next_step=EVIL,
        report_url="javascript:alert(1)", run_url=f"https://x/{EVIL}", conversion_url=EVIL,
    )  # fmt: skip
    return dataclasses.replace(
        _facts(row, dataclasses.replace(row, ending="published")), name=EVIL, run=EVIL
    )


def test_what_comes_from_outside_is_text():
    facts = _evil()
    whole = fleet_report(facts, BASE)
    assert whole.count("<script") == 1
    assert whole.count(str(markupsafe.escape(EVIL))) >= 12
    targets = _read(whole).targets
    assert targets
    assert all(target.startswith(("https://x/%3Cscript", "%3Cscript")) for target in targets)
    assert "report: javascript:alert(1)" in whole
    markdown = fleet_markdown.fleet_markdown(facts, "javascript:alert(1)")
    outside = re.sub(r"`[^`]*`|\]\(<https:[^>]*>\)|\\.", "", markdown)
    assert not re.search(r"[<`]|\]\(", outside)
    assert "`javascript:alert(1)`" in markdown


def test_a_template_that_escapes_nothing_would_be_seen(monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr(
        rendering,
        "environment",
        lambda *, markdown: environment(markdown=markdown).overlay(autoescape=False, finalize=None),
    )
    assert fleet_report(_evil(), BASE).count("<script") > 1
    markdown = fleet_markdown.fleet_markdown(_evil(), "javascript:alert(1)")
    outside = re.sub(r"`[^`]*`|\]\(<https:[^>]*>\)|\\.", "", markdown)
    assert re.search(r"[<`]|\]\(", outside)


def test_a_cell_of_an_artifact_reads_as_text_and_is_no_markup():
    facts = _facts(
        _failed(EVIL, why="# _a_ *b* input_ids ~c~ <i>", report_url="https://x/a b|c"),
        _failed("plain", why="1. item", report_url=f"{BASE}/index.html"),
    )
    for row in (*fleet_markdown.fleet_table(facts), *fleet_markdown.failure_table(facts)):
        for cell in row.values():
            assert not re.search(r"[<>`*\[\]|~]", re.sub(r"\\.", "", cell)), cell
    evil, plain = fleet_markdown.failure_table(facts)
    assert evil["reason"] == r"\# \_a\_ \*b\* input_ids \~c\~ \<i\>"
    assert plain["reason"] == r"\1. item"
    assert plain["next step"] == "mend plain"
    reports = [row["report"] for row in fleet_markdown.fleet_table(facts)]
    assert reports == ["https://x/a%20b%7Cc", f"{BASE}/index.html"]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (f"{STORE}/reports/child/index.html", "../child/index.html"),
        (f"{STORE}/conversions/a/b/manifest.json", "../../conversions/a/b/manifest.json"),
        (f"{BASE}/javascript:alert(1)", "./javascript:alert%281%29"),
        ("s3://bucket/models-2/reports/child/index.html", "s3://bucket/models-2/reports/child/in"),
        ("https://prefect.example/runs/1?a=b", "https://prefect.example/runs/1?a=b"),
        ("file:///s/a b", "file:///s/a%20b"),
        ("../other/index.html", "../other/index.html"),
        ("javascript:alert(1)", None),
        ("JavaScript:alert(1)", None),
        (" java\nscript:alert(1)", None),
        ("data:text/html,x", None),
        ("//evil.example/x", None),
        ("http://[", None),
    ],
)
def test_only_addresses_become_links_and_those_of_the_store_are_relative(url, target):
    found = href(url, BASE)
    assert (found or "").startswith(target or "")
    assert (found is None) == (target is None)
    whole = fleet_report(_facts(_failed("a", report_url=url)), BASE)
    assert _read(whole).targets == [found] * 2 * (target is not None)
    assert (f">report: {markupsafe.escape(url)}<" in whole) == (target is None)


def test_without_a_folder_of_its_own_a_page_has_whole_addresses():
    assert href(f"{STORE}/reports/a/index.html") == f"{STORE}/reports/a/index.html"
    assert href("file:///s/reports/a/index.html", "file:///s/reports/b/") == "../a/index.html"


def test_the_fresh_ones_are_one_row_of_the_artifact():
    table = fleet_markdown.fleet_table(MIXED)
    assert [row["conversion"].split(" ")[0] for row in table] == [
        "a/common-1", "a/common-2", "a/rare", "a/stopped", "a/near", "a/exact", "1",
    ]  # fmt: skip
    assert table[-1]["conversion"] == "1 more is fresh"
    assert table[4]["worst error"] == "9e-6 of 1e-5"
    assert fleet_markdown.fleet_table(_facts(_fresh("a")))[0]["conversion"] == "1 is fresh"
    assert len(fleet_markdown.fleet_table(_facts(*[_published("a")] * 200))) == 200
    long = fleet_markdown.fleet_table(_facts(*[_published("a")] * 300, _fresh("b")))
    assert len(long) == 200
    assert long[-1]["conversion"] == "102 more: 101 published, 1 fresh"
    assert len({tuple(row) for row in long}) == 1, "one set of columns"
    assert fleet_markdown.failure_table(_facts(_fresh("a"))) == []


@pytest.mark.parametrize(
    "make",
    [
        _fresh,
        lambda name: _published(name, run_url=f"https://prefect.example/{'r' * 120}"),
        lambda name: _failed(name, why="w" * 5000, next_step="n" * 5000),
    ],
    ids=["fresh", "published", "failed"],
)
def test_a_thousand_rows_take_less_than_a_megabyte(make):
    rows = [make(f"sentence-transformers/a-model-with-a-long-name-{n}") for n in range(1000)]
    whole = fleet_report(_facts(*rows), BASE)
    assert len(whole.encode()) < 1_000_000
    every = whole[whole.index('id="all"') :]
    assert every.count("<tr") == 1001
    assert ("more are in" in whole) == (make is not _fresh)


def test_the_histogram_has_a_bar_for_each_half_decade_and_for_both_ends():
    shares = (0.0, 0.0, 1e-12, 0.02, 0.09, 0.1, 1.0, 1.01, 1e9, math.inf)
    chart = error_histogram(shares)
    texts = [bars[0].text for bars in chart.groups if bars]
    assert texts == ["2", "1", "1", "2", "1", "1", "1", "1"]
    assert chart.limit is not None
    for slot, bars in enumerate(chart.groups):
        assert all((bar.colour == "--bad") == (slot >= chart.limit.at) for bar in bars)
    assert [note.text for note in chart.notes] == ["exact", "no figure"]
    assert [bool(chart.groups[int(note.at)]) for note in chart.notes] == [True, True]
    assert error_histogram([0.5]).notes == ()


def test_columns_are_sorted_by_values_and_their_widths_fit():
    whole = fleet_report(MIXED)
    assert 'data-value="0.9">9e-6 of 1e-5<' in whole
    assert 'data-value="75">1 min 15 s<' in whole
    for part in whole.split("<colgroup>")[1:]:
        head = part.partition("</thead>")[0]
        assert sum(map(int, re.findall(r"width:(\d+)%", head))) == 100
