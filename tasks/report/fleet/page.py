"""What a person reads about a fleet run: one self-contained HTML page.

The verdict first, then what failed and what to do about it, what was refused before, what was
published and how near it came to its tolerance, then everything in one table to sort and search.
Without a script the page is whole and readable; ``templates/sort.js`` makes buttons of the column
heads and shows the search field. ``tasks.report.fleet.markdown`` has the same for Prefect's UI.
"""

from __future__ import annotations

from tasks.report.fleet import words
from tasks.report.fleet.charts import error_histogram
from tasks.report.fleet.facts import FleetFacts
from tasks.report.fleet.links import href
from tasks.report.render import render

_SLOWEST = 8


def fleet_report(facts: FleetFacts, base_url: str = "") -> str:
    """Return the whole page.

    Args:
        facts: what came of the run.
        base_url: folder that the page is written to; links into the same store are relative to it,
            so that they hold at whatever address the store is read.
    """
    shares = [words.share(row) for row in facts.rows]
    measured = [share for share in shares if share is not None]
    return render(
        "fleet.html",
        facts=facts,
        base_url=base_url,
        words=words,
        href=href,
        sort_value=_sort_value,
        unfinished=words.list_unfinished(facts),
        refused=words.list_refused(facts),
        changed=words.list_changed(facts),
        errors=error_histogram(measured) if measured else None,
        slowest=words.slowest(facts, _SLOWEST),
    )


def _sort_value(value: float) -> str:
    """Return a number as the script reads it: JavaScript spells infinity out."""
    return f"{value:.6g}".replace("inf", "Infinity")
