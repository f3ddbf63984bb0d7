"""The report of a fleet run for Prefect's UI: two tables and a summary in markdown.

Prefect has two UIs. The one it opens shows a table artifact's cells as plain text, one line each;
the older one takes every cell for markdown. So a cell reads well as either: addresses stand bare,
which the older UI turns into links by itself, and only what would be markup there is escaped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

# The same escapes as the report of one conversion.
from tasks.report.conversion.markdown import _code, _list, _table, _text
from tasks.report.fleet import words as fleet_words
from tasks.report.fleet.facts import FleetFacts, FleetRow
from tasks.report.fleet.links import safe_url
from tasks.report.fleet.words import SIGNS, clip, kind

_MOST_ROWS = 200
_MOST_FAILED = 50
_REASON = 300
_COLUMNS = ("conversion", "ending", "why", "worst error", "seconds", "report")
#: Markup anywhere in a line; an underscore only where it is not inside a word, as in `input_ids`.
_MARKUP = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])")
#: Markup only where a line begins: headings, lists, quotes, rules.
_START = re.compile(r"^([#+=-]|\d+(?=[.)]))")


def fleet_table(facts: FleetFacts) -> list[dict[str, str]]:
    """Return a table artifact: what failed and what changed; the fresh ones are one row."""
    told = (*fleet_words.unfinished(facts), *fleet_words.changed(facts))
    # The last row tells of all that have none.
    kept = told if len(told) < _MOST_ROWS else told[: _MOST_ROWS - 1]
    rest = Counter(row.ending for row in (*told[len(kept) :], *facts.ended("fresh")))
    rows = [_row(row) for row in kept]
    if rest:
        folded = ", ".join(f"{rest[word]:,} {word}" for word in SIGNS if rest[word])
        only = list(rest) == ["fresh"]
        counted = f"{rest['fresh']:,} {'more ' if rows else ''}"
        are = "is" if rest["fresh"] == 1 else "are"
        words = f"{counted}{are} fresh" if only else f"{rest.total():,} more: {folded}"
        rows.append({**dict.fromkeys(_COLUMNS, ""), "conversion": words})
    return rows


def _row(row: FleetRow) -> dict[str, str]:
    cells = (
        _cell(_name(row)),
        f"{SIGNS[row.ending]} {row.ending}",
        _cell(f"{row.error}: {row.why}" if row.error else row.why),
        fleet_words.error(row),
        "" if row.seconds is None else f"{row.seconds:.1f}",
        _address(row.report_url),
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def failure_table(facts: FleetFacts) -> list[dict[str, str]]:
    """Return a table artifact of what is not current, each with what to do about it."""
    return [
        {
            "conversion": _cell(_name(row)),
            "type": _cell(kind(row)),
            "reason": _cell(row.why),
            "next step": _cell(row.next_step),
            "run": _address(row.run_url),
        }
        for row in fleet_words.unfinished(facts)[:_MOST_ROWS]
    ]


def _name(row: FleetRow) -> str:
    return f"{row.name} ({row.variant})"


def _cell(text: str) -> str:
    return _START.sub(r"\\\1", _MARKUP.sub(r"\\\g<0>", clip(text, _REASON)))


def _address(url: str | None) -> str:
    """Return an address as both UIs show it; what is none is text."""
    if not url:
        return ""
    return safe_url(url, ("http", "https")) or _cell(url)


def fleet_markdown(facts: FleetFacts, report_url: str) -> str:
    """Return the summary; ``report_url`` says where the whole page lies."""
    failed = fleet_words.unfinished(facts)
    sums = (f"{name}: {text}" for name, text in fleet_words.totals(facts).items())
    blocks = [
        f"# {_text(facts.name)}",
        f"**{'✗' if failed else '✓'} {_text(fleet_words.headline(facts))}**",
        _list(fleet_words.highlights(facts)),
        *(_failures(failed) if failed else ()),
        "## Totals",
        _list(sums),
        f"Every entry, to sort and search: {_link(report_url, report_url)}" if report_url else "",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _failures(failed: Sequence[FleetRow]) -> Iterator[str]:
    yield "## What failed, and what to do"
    rows = [
        (
            _text(_name(row)),
            _text(kind(row)),
            _text(clip(row.why, _REASON)),
            _text(clip(row.next_step, _REASON)),
            " ".join(
                _link(word, url)
                for word, url in (("report", row.report_url), ("run", row.run_url))
                if url
            ),
        )
        for row in failed[:_MOST_FAILED]
    ]
    yield _table(("conversion", "type", "reason", "next step", "links"), rows)
    if len(failed) > _MOST_FAILED:
        yield f"{len(failed) - _MOST_FAILED:,} more are on the whole page."


def _link(text: str, url: str) -> str:
    """Return a link; a store's own address is no use to a browser, and stays to be copied."""
    safe = safe_url(url, ("http", "https"))
    if safe is None:
        return _code(url.replace("|", "%7C"))
    return f"[{_text(text)}](<{safe}>)"
