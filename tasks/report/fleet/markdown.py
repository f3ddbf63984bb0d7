"""The report of a fleet run for Prefect's UI: three tables and a summary in markdown.

Prefect has two UIs. The one it opens shows a table artifact's cells as plain text, one line each;
the older one takes every cell for markdown. So a cell reads well as either: addresses stand bare,
which the older UI turns into links by itself, and only what would be markup there is escaped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tasks.report.fleet import words
from tasks.report.fleet.facts import FleetFacts, FleetRow
from tasks.report.fleet.links import safe_url
from tasks.report.render import render

_MOST_ROWS = 200
_REASON = 300
_COLUMNS = ("conversion", "ending", "why", "worst error", "seconds", "report")
#: Markup anywhere in a line; an underscore only where it is not inside a word, as in `input_ids`.
_MARKUP = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])")
#: Markup only where a line begins: headings, lists, quotes, rules.
_START = re.compile(r"^([#+=-]|\d+(?=[.)]))")


def fleet_markdown(facts: FleetFacts, report_url: str) -> str:
    """Return the summary.

    Args:
        facts: what came of the run.
        report_url: address of the whole page; empty: none was written.
    """
    return render(
        "fleet.md",
        facts=facts,
        report_url=report_url,
        words=words,
        safe_url=safe_url,
        unfinished=words.list_unfinished(facts),
        refused=words.list_refused(facts),
    )


def fleet_table(facts: FleetFacts) -> list[dict[str, str]]:
    """Return a table artifact: what failed, changed or is refused; the fresh ones are one row."""
    shown = (*words.list_unfinished(facts), *words.list_changed(facts), *words.list_refused(facts))
    # The last row is for all that have none.
    kept = shown if len(shown) < _MOST_ROWS else shown[: _MOST_ROWS - 1]
    rows = [_row(row) for row in kept]
    rest = (*shown[len(kept) :], *facts.ended("fresh"))
    if rest:
        folded = _fold(rest, more=bool(rows))
        rows.append({**dict.fromkeys(_COLUMNS, ""), "conversion": folded})
    return rows


def _fold(rest: Sequence[FleetRow], *, more: bool) -> str:
    """Return how many entries have no row of their own."""
    counts = Counter(row.ending for row in rest)
    if list(counts) == ["fresh"]:
        are = "is" if len(rest) == 1 else "are"
        return f"{len(rest):,} {'more ' if more else ''}{are} fresh"
    folded = [f"{counts[ending]:,} {ending}" for ending in words.SIGNS if counts[ending]]
    return f"{len(rest):,} more: {', '.join(folded)}"


def _row(row: FleetRow) -> dict[str, str]:
    return {
        "conversion": _cell(words.title(row)),
        "ending": f"{words.SIGNS[row.ending]} {row.ending}",
        "why": _cell(words.reason(row)),
        "worst error": words.error(row),
        "seconds": "" if row.seconds is None else f"{row.seconds:.1f}",
        "report": _address(row.report_url),
    }


def failure_table(facts: FleetFacts) -> list[dict[str, str]]:
    """Return a table artifact of what is not current, each with what to do about it."""
    return [
        {
            "conversion": _cell(words.title(row)),
            "type": _cell(words.kind(row)),
            "reason": _cell(row.why),
            "next step": _cell(row.next_step),
            "run": _address(row.run_url),
        }
        for row in words.list_unfinished(facts)[:_MOST_ROWS]
    ]


def refusal_table(facts: FleetFacts) -> list[dict[str, str]]:
    """Return a table artifact of what was refused before, and was not tried."""
    return [
        {
            "conversion": _cell(words.title(row)),
            "since": words.since(row),
            "type": _cell(words.kind(row)),
            "reason": _cell(row.why),
            "next step": _cell(row.next_step),
        }
        for row in words.list_refused(facts)[:_MOST_ROWS]
    ]


def _cell(text: str) -> str:
    return _START.sub(r"\\\1", _MARKUP.sub(r"\\\g<0>", words.clip(text, _REASON)))


def _address(url: str | None) -> str:
    """Return an address as both UIs show it; anything else is text."""
    if not url:
        return ""
    return safe_url(url, ("http", "https")) or _cell(url)
