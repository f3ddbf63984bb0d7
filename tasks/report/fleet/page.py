"""What a person reads about a fleet run: one self-contained HTML page.

The verdict first, then what failed and what to do about it, what was published and how near it
came to its tolerance, then everything in one table to sort and search. ``tasks.report.
fleet_markdown`` tells the same in Prefect's UI.
"""

from __future__ import annotations

from tasks.report.fleet import table as fleet_table
from tasks.report.fleet import words as fleet_words
from tasks.report.fleet.facts import FleetFacts, FleetRow
from tasks.report.fleet.links import link
from tasks.report.fleet.plots import plots
from tasks.report.fleet.table import Cell, Column, labels, search, sortable
from tasks.report.fleet.words import SIGNS, clip, kind
from tasks.report.markup import Html, element, facts_table, items, join, page

_FAILED = (
    Column(name="conversion", width=25),
    Column(name="type", width=20, kind="long"),
    Column(name="reason", width=26, kind="long"),
    Column(name="next step", width=19, kind="long"),
    Column(name="links", width=10, kind="plain"),
)
_CHANGED = (
    Column(name="conversion", width=27),
    Column(name="why", width=18, kind="long"),
    Column(name="commit", width=10),
    Column(name="worst error", width=12, kind="number"),
    Column(name="time", width=9, kind="number"),
    Column(name="bundle", width=9, kind="number"),
    Column(name="links", width=15, kind="plain"),
)
_ALL = (
    Column(name="conversion", width=22),
    Column(name="ending", width=9),
    Column(name="why", width=18, kind="long"),
    Column(name="worst error", width=11, kind="number"),
    Column(name="time", width=9, kind="number"),
    Column(name="memory", width=8, kind="number"),
    Column(name="bundle", width=8, kind="number"),
    Column(name="links", width=15, kind="plain"),
)
#: Rows of the upper tables: whoever wants more than these wants the whole table, and its search.
_MOST_FAILED, _MOST_CHANGED = 100, 50
#: Characters of a reason, where it has room and where it has none.
_REASON, _SHORT = 600, 140
_STYLE = (
    "body{max-width:84rem}.plots{margin-top:1.5rem;align-items:start}"
    ".plots td.number{white-space:nowrap}"
    "#all .published>:nth-child(2){color:var(--good)}#all .failed>:nth-child(2){color:var(--bad)}"
    + fleet_table.STYLE
    + labels("failed", _FAILED)
    + labels("changed", _CHANGED)
    + labels("all", _ALL)
)


def fleet_report(facts: FleetFacts, base_url: str = "") -> str:
    """Return the whole page.

    Args:
        facts: what came of the run.
        base_url: folder that the page is written to; links into the same store are relative to it,
            so that they hold at whatever address the store is read.
    """
    return page(
        f"{_sign(facts)} {facts.name}: {fleet_words.headline(facts)}",
        element("h1", facts.name),
        element("p", f"Fleet run {facts.run} · {_when(facts)}", class_="soft"),
        _verdict(facts),
        _failures(facts, base_url),
        _changes(facts, base_url),
        plots(facts),
        element("h2", "Totals"),
        facts_table(dict(fleet_words.totals(facts))),
        _everything(facts, base_url),
        style=_STYLE,
        script=fleet_table.SCRIPT,
    )


def _sign(facts: FleetFacts) -> str:
    return "✗" if fleet_words.unfinished(facts) else "✓"


def _when(facts: FleetFacts) -> str:
    return f"{facts.started:%Y-%m-%d %H:%M} to {facts.finished:%H:%M %Z}".rstrip()


def _verdict(facts: FleetFacts) -> Html:
    word = "failed" if fleet_words.unfinished(facts) else "passed"
    told = element("strong", f"{_sign(facts)} {fleet_words.headline(facts)}")
    lines = fleet_words.highlights(facts)
    return element("div", told, items(lines) if lines else "", class_=f"verdict {word}")


def _failures(facts: FleetFacts, base_url: str) -> Html:
    found = fleet_words.unfinished(facts)
    if not found:
        return Html()
    rows = [
        (
            row.ending,
            (
                _name(row),
                kind(row),
                clip(row.why, _REASON),
                clip(row.next_step, _REASON),
                _links(row, base_url),
            ),
        )
        for row in found[:_MOST_FAILED]
    ]
    return join(
        element("h2", "What failed, and what to do"),
        sortable("failed", _FAILED, rows),
        _more(len(found) - _MOST_FAILED, "the most common types come first"),
    )


def _changes(facts: FleetFacts, base_url: str) -> Html:
    found = fleet_words.changed(facts)
    if not found:
        return element("p", "Nothing was published in this run.", class_="soft")
    rows = [
        (
            row.ending,
            (
                _name(row),
                clip(row.why, _SHORT),
                _commit(row),
                _error(row),
                _time(row),
                _bytes(row.bundle_bytes),
                _links(row, base_url),
            ),
        )
        for row in found[:_MOST_CHANGED]
    ]
    return join(
        element("h2", "What was published"),
        sortable("changed", _CHANGED, rows),
        _more(len(found) - _MOST_CHANGED, "these are the nearest to their tolerances"),
    )


def _more(count: int, order: str) -> Html:
    if count <= 0:
        return Html()
    return element(
        "p", f"{count:,} more are in ", element("a", "the table of all", href="#all"), f"; {order}."
    )


def _everything(facts: FleetFacts, base_url: str) -> Html:
    rows = [
        (
            row.ending,
            (
                _name(row),
                f"{SIGNS[row.ending]} {row.ending}",
                clip(f"{row.error}: {row.why}" if row.error else row.why, _SHORT),
                _error(row),
                _time(row),
                _bytes(row.peak_bytes),
                _bytes(row.bundle_bytes),
                _links(row, base_url),
            ),
        )
        for row in facts.rows
    ]
    endings = [ending for ending in SIGNS if any(row.ending == ending for row in facts.rows)]
    return join(
        element("h2", f"All {len(rows):,} entries"),
        search("all", endings),
        sortable("all", _ALL, rows),
    )


def _name(row: FleetRow) -> Html:
    # Most entries are named after what they convert.
    source = "" if row.source in (row.name, f"hf://{row.name}") else f"{row.source} · "
    lengths = ", ".join(map(str, row.lengths))
    about = f"{source}{row.variant}{f' · {lengths}' if lengths else ''}"
    return join(row.name, element("small", about))


def _commit(row: FleetRow) -> Html:
    # The whole one is on the conversion's own page.
    return element("code", row.commit[:12]) if row.commit else Html()


def _error(row: FleetRow) -> Cell:
    """Return the error, sorted by its share of the tolerance: a fleet has many tolerances."""
    return Cell(shown=fleet_words.error(row), value=fleet_words.share(row))


def _time(row: FleetRow) -> Cell:
    shown = "" if row.seconds is None else fleet_words.duration(row.seconds)
    return Cell(shown=shown, value=row.seconds)


def _bytes(count: int | None) -> Cell:
    return Cell(shown="" if count is None else fleet_words.size(count), value=count)


def _links(row: FleetRow, base_url: str) -> Html:
    # Few servers list a folder; the manifest is a file on every one.
    manifest = f"{row.conversion_url.rstrip('/')}/manifest.json" if row.conversion_url else None
    named = (("report", row.report_url), ("manifest", manifest), ("run", row.run_url))
    return join(*(join(link(text, url, base_url), " ") for text, url in named if url))
