"""The figures of a fleet run, as an event: for metrics (``infra.metrics``) and for automations."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from prefect.events import emit_event

from flows.engine.names import FLEET_ENDED, artifact_key
from tasks.report.fleet.facts import FleetFacts
from tasks.report.fleet.words import kind, list_changed, share


def emit_figures(facts: FleetFacts, store: str) -> None:
    """Emit the event that says how a fleet run ended; a fleet is a file and the store of it."""
    place = hashlib.sha256(store.encode()).hexdigest()[:8]
    resource = {
        "prefect.resource.id": f"tracefleet.fleet.{artifact_key(facts.name)}.{place}",
        "prefect.resource.name": f"{facts.name} into {store}",
    }
    emit_event(FLEET_ENDED, resource, payload=list_figures(facts))


def list_figures(facts: FleetFacts) -> dict[str, Any]:
    """Return what a fleet run came to, as JSON: counts, and times in seconds.

    ``worst_error`` is the largest error of what was published, as a share of its tolerance.
    """
    shares = map(share, list_changed(facts))
    measured = [found for found in shares if found is not None]
    working = sum(row.seconds or 0.0 for row in facts.rows)
    endings = Counter(row.ending for row in facts.rows)
    return {
        "entries": endings,
        "refusals": Counter(map(kind, facts.ended("failed"))),
        "conversion_seconds": round(working, 1),
        "wall_seconds": round((facts.finished - facts.started).total_seconds(), 1),
        "worst_error": max(measured, default=None),
    }
