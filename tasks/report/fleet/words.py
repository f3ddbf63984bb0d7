"""The sentences and figures of a fleet's report, the same on the page and in Prefect's UI."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from tasks.report.conversion import words
from tasks.report.conversion.words import figure, number
from tasks.report.fleet.facts import Ending, FleetFacts, FleetRow

#: Characters of a day in ISO 8601.
_DAY = 10
SIGNS: dict[Ending, str] = {
    "published": "✓",
    "moved": "↩",
    "fresh": "·",
    "failed": "✗",
    "cancelled": "○",
    "refused": "⊘",
}


def verdict(facts: FleetFacts) -> tuple[str, str]:
    """Return the sign of a run, and the word that its colour goes by."""
    if list_unfinished(facts):
        return SIGNS["failed"], "failed"
    known = facts.ended("refused")
    return (SIGNS["refused"], "known") if known else (SIGNS["published"], "passed")


def headline(facts: FleetFacts) -> str:
    """Return the verdict in one sentence."""
    if not facts.rows:
        return "The fleet has no entries."
    whole = len(facts.rows)
    current = whole - len(list_unfinished(facts)) - len(facts.ended("refused"))
    are = "conversion is" if whole == 1 else "conversions are"
    sentence = f"{current:,} of {whole:,} {are} current"
    if counts := ", ".join(_current(facts)):
        sentence += f": {counts}"
    if lost := ", ".join(_lost(facts)):
        sentence += f"; {lost}"
    return f"{sentence}."


def _current(facts: FleetFacts) -> Iterator[str]:
    published, fresh = len(facts.ended("published")), len(facts.ended("fresh"))
    if published:
        yield f"{published:,} published now"
    if moved := len(facts.ended("moved")):
        yield f"{moved:,} {'channel' if moved == 1 else 'channels'} moved back"
    if fresh:
        yield f"{fresh:,} {'was' if fresh == 1 else 'were'} fresh"


def _lost(facts: FleetFacts) -> Iterator[str]:
    endings: tuple[Ending, ...] = ("failed", "cancelled")
    for ending in endings:
        if count := len(facts.ended(ending)):
            yield f"{count:,} {ending}"
    if known := len(facts.ended("refused")):
        yield f"{known:,} refused before"


def when(facts: FleetFacts) -> str:
    """Return the time of the run."""
    return f"{facts.started:%Y-%m-%d %H:%M} to {facts.finished:%H:%M %Z}".rstrip()


def title(row: FleetRow) -> str:
    """Return an entry's name beside its variant."""
    return f"{row.name} ({row.variant})" if row.variant else row.name


def reason(row: FleetRow) -> str:
    """Return why an entry failed or was converted, with the type of its error."""
    known = f" since {since(row)}" if row.since else ""
    return f"{row.error}{known}: {row.why}" if row.error else row.why


def list_unfinished(facts: FleetFacts) -> tuple[FleetRow, ...]:
    """Return what is not current: failures, the most common type first, then the cancelled."""
    failed = facts.ended("failed")
    common = Counter(kind(row) for row in failed)
    ordered = sorted(failed, key=lambda row: (-common[kind(row)], kind(row)))
    return (*ordered, *facts.ended("cancelled"))


def list_refused(facts: FleetFacts) -> tuple[FleetRow, ...]:
    """Return what was refused before and was not tried, the latest first."""
    return tuple(sorted(facts.ended("refused"), key=lambda row: row.since or "", reverse=True))


def since(row: FleetRow) -> str:
    """Return the day on which an entry was refused first."""
    return (row.since or "")[:_DAY]


def list_changed(facts: FleetFacts) -> tuple[FleetRow, ...]:
    """Return what changed: published now, the nearest to its tolerance first, then moved back."""
    published = sorted(facts.ended("published"), key=lambda row: -(share(row) or 0.0))
    return (*published, *facts.ended("moved"))


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
    if row.tolerance is None or not 0 < row.worst_error < math.inf:
        return found
    return f"{found} of {number(row.tolerance)}"


def highlights(facts: FleetFacts) -> list[str]:
    """Return the next most important facts: failures, the worst error, the slowest, bytes."""
    told = (_failures, _refusals, _worst, _slowest, _bytes)
    return [line for sentences in told for line in sentences(facts)]


def _failures(facts: FleetFacts) -> Iterator[str]:
    kinds = Counter(kind(row) for row in facts.ended("failed")).most_common()
    if kinds:
        yield f"Failures: {', '.join(f'{count:,} × {name}' for name, count in kinds)}."


def _refusals(facts: FleetFacts) -> Iterator[str]:
    kinds = Counter(kind(row) for row in facts.ended("refused")).most_common()
    if kinds:
        counts = ", ".join(f"{count:,} × {name}" for name, count in kinds)
        yield f"Refused before, for the very same, and not tried: {counts}."


def _worst(facts: FleetFacts) -> Iterator[str]:
    measured = [row for row in list_changed(facts) if share(row) is not None]
    if measured:
        yield (
            f"Worst error published: {title(measured[0])}, "
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
        sentence = f"Stored: {size(sum(row.bundle_bytes or 0 for row in kept))}."
        if saved:
            sentence += f" One file for each length would take {size(saved)} more."
        yield sentence


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
    at_a_time = f", {worked / wall:.1f} at a time" if wall and worked else ""
    peaks = [row.peak_bytes for row in facts.rows if row.peak_bytes]
    rate = len(facts.ended("published")) * 60 / wall if wall else 0.0
    saved = sum(row.bytes_saved for row in kept)
    memory = size(max(peaks)) if peaks else "not measured"
    return {
        "bytes stored": f"{_sum(kept)}, of which {_sum(new)} are new",
        "bytes saved": f"{size(saved)} against one file per length",
        "wall time": f"{duration(wall)}, from {facts.started:%Y-%m-%d %H:%M:%S %Z}".rstrip(),
        "conversion time": f"{duration(worked)}{at_a_time}",
        "per minute": f"{number(rate)} published",
        "peak memory": memory,
    }


def _sum(rows: list[FleetRow]) -> str:
    total = sum(row.bundle_bytes or 0 for row in rows)
    plural = "" if len(rows) == 1 else "s"
    return f"{size(total)} in {len(rows):,} bundle{plural}"


def size(count: int) -> str:
    """Return a number of bytes with its unit, up to what a fleet takes."""
    if count >= 1e12:
        return f"{count / 1e12:,.2f} TB"
    if count >= 1e9:
        return f"{count / 1e9:,.2f} GB"
    return words.size(count)


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
