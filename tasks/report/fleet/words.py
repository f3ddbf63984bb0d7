"""What the report of a fleet run says in words: the same on the page and in Prefect's UI."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from tasks.report.conversion import words as wording
from tasks.report.conversion.words import figure, number
from tasks.report.fleet.facts import Ending, FleetFacts, FleetRow

SIGNS: dict[Ending, str] = {"published": "✓", "fresh": "·", "failed": "✗", "cancelled": "○"}


def headline(facts: FleetFacts) -> str:
    """Return the verdict in one sentence."""
    if not facts.rows:
        return "The fleet has no entries."
    whole = len(facts.rows)
    current = whole - len(unfinished(facts))
    are = "conversion is" if whole == 1 else "conversions are"
    counts = ", ".join(_current(facts))
    lost = ", ".join(_lost(facts))
    told = f"{current:,} of {whole:,} {are} current" + (f": {counts}" if counts else "")
    return f"{told}{f'; {lost}' if lost else ''}."


def _current(facts: FleetFacts) -> Iterator[str]:
    published, fresh = len(facts.ended("published")), len(facts.ended("fresh"))
    if published:
        yield f"{published:,} published now"
    if fresh:
        yield f"{fresh:,} {'was' if fresh == 1 else 'were'} fresh"


def _lost(facts: FleetFacts) -> Iterator[str]:
    for count, word in ((len(facts.ended("failed")), "failed"), (_cancelled(facts), "cancelled")):
        if count:
            yield f"{count:,} {word}"


def _cancelled(facts: FleetFacts) -> int:
    return len(facts.ended("cancelled"))


def unfinished(facts: FleetFacts) -> tuple[FleetRow, ...]:
    """Return what is not current: failures, the most common type first, then the cancelled."""
    failed = facts.ended("failed")
    common = Counter(kind(row) for row in failed)
    ordered = sorted(failed, key=lambda row: (-common[kind(row)], kind(row)))
    return (*ordered, *facts.ended("cancelled"))


def changed(facts: FleetFacts) -> tuple[FleetRow, ...]:
    """Return what was published now, the nearest to its tolerance first."""
    return tuple(sorted(facts.ended("published"), key=lambda row: -(share(row) or 0.0)))


def kind(row: FleetRow) -> str:
    """Return the type of an entry's failure."""
    return row.error or ("cancelled" if row.ending == "cancelled" else "unknown")


def share(row: FleetRow) -> float | None:
    """Return the worst error as a share of its tolerance; None: not measured."""
    if row.worst_error is None or not row.tolerance:
        return None
    found = row.worst_error / row.tolerance
    # A gate that could not compare has no figure, and is as far off as can be.
    return math.inf if math.isnan(found) else found


def error(row: FleetRow) -> str:
    """Return the worst error beside its tolerance; nothing where it was not measured."""
    if row.worst_error is None:
        return ""
    found = figure(row.worst_error)
    told = row.tolerance is not None and 0 < row.worst_error < math.inf
    return f"{found} of {number(row.tolerance or 0.0)}" if told else found


def highlights(facts: FleetFacts) -> list[str]:
    """Return what a person asks next: kinds of failures, the worst error, the slowest, bytes."""
    return [*_failures(facts), *_worst(facts), *_slowest(facts), *_bytes(facts)]


def _failures(facts: FleetFacts) -> Iterator[str]:
    kinds = Counter(kind(row) for row in facts.ended("failed")).most_common()
    if kinds:
        yield f"Failures: {', '.join(f'{count:,} × {name}' for name, count in kinds)}."


def _worst(facts: FleetFacts) -> Iterator[str]:
    measured = [row for row in changed(facts) if share(row) is not None]
    if measured:
        yield (
            f"Worst error published: {measured[0].name} ({measured[0].variant}), "
            f"{error(measured[0])}{' allowed' if measured[0].worst_error else ''}."
        )


def _slowest(facts: FleetFacts) -> Iterator[str]:
    if found := slowest(facts, 1):
        yield f"Slowest: {found[0].name}, {duration(found[0].seconds or 0.0)}."


def slowest(facts: FleetFacts, most: int) -> list[FleetRow]:
    """Return the entries that took longest, the longest first."""
    timed = [row for row in facts.rows if row.seconds]
    return sorted(timed, key=lambda row: -(row.seconds or 0.0))[:most]


def _bytes(facts: FleetFacts) -> Iterator[str]:
    kept = bundles(facts)
    saved = sum(row.bytes_saved for row in kept)
    if kept:
        whole = sum(row.bundle_bytes or 0 for row in kept)
        yield (
            f"Stored: {size(whole)}. One file for each length would take {size(saved)} more."
            if saved
            else f"Stored: {size(whole)}."
        )


def bundles(facts: FleetFacts) -> list[FleetRow]:
    """Return one entry for each bundle: two entries of one conversion store it once."""
    sized = [row for row in facts.rows if row.bundle_bytes]
    named = {row.conversion_url or f"entry {place}": row for place, row in enumerate(sized)}
    return list(named.values())


def totals(facts: FleetFacts) -> dict[str, str]:
    """Return the sums of the run."""
    kept = bundles(facts)
    new = [row for row in kept if row.ending == "published"]
    wall = max((facts.finished - facts.started).total_seconds(), 0.0)
    worked = sum(row.seconds or 0.0 for row in facts.rows)
    peaks = [row.peak_bytes for row in facts.rows if row.peak_bytes]
    rate = len(facts.ended("published")) * 60 / wall if wall else 0.0
    return {
        "bytes stored": f"{_sum(kept)}, of which {_sum(new)} are new",
        "bytes saved": f"{size(sum(row.bytes_saved for row in kept))} against one file per length",
        "wall time": f"{duration(wall)}, from {facts.started:%Y-%m-%d %H:%M:%S %Z}".rstrip(),
        "conversion time": duration(worked)
        + (f", {worked / wall:.1f} at a time" if wall and worked else ""),
        "per minute": f"{number(rate)} published",
        "peak memory": size(max(peaks)) if peaks else "not measured",
    }


def _sum(rows: list[FleetRow]) -> str:
    count = f"{len(rows):,} bundle{'' if len(rows) == 1 else 's'}"
    return f"{size(sum(row.bundle_bytes or 0 for row in rows))} in {count}"


def size(count: int) -> str:
    """Return a number of bytes with its unit, up to what a fleet takes."""
    if count >= 1e12:
        return f"{count / 1e12:,.2f} TB"
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else wording.size(count)


def duration(seconds: float) -> str:
    """Return a time as a person says it: 4.2 s, 12 min 3 s, 1 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clip(text: str, most: int) -> str:
    """Return the text in one line, cut where a table would burst."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
