"""Figures of fleets as metrics, without a server; `tests/test_production.py` scrapes a real one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.events import Event
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from flows.engine.names import FLEET_ENDED
from flows.fan_out.figures import list_figures
from infra.metrics import newest_of_each, tell_fleets
from tasks.report.fleet.facts import FleetFacts, FleetRow

START = datetime(2030, 1, 1, 2, tzinfo=UTC)
ROW = FleetRow(
    name="a",
    source="hf://org/a",
    commit=None,
    variant="fill-mask.jit.float32.b1",
    lengths=(8,),
    ending="published",
    worst_error=2e-6,
    tolerance=1e-5,
    seconds=30.0,
)
REFUSED = replace(ROW, name="b", ending="failed", error="TraceError", worst_error=math.nan)
FACTS = FleetFacts(
    name="nightly.yaml",
    run="nightly",
    started=START,
    finished=START + timedelta(minutes=2),
    rows=(ROW, replace(ROW, name="c", worst_error=9e-6), REFUSED),
)


def ended(facts: FleetFacts = FACTS, *, days: int = 0) -> Event:
    return Event.model_validate(
        {
            "event": FLEET_ENDED,
            "occurred": START + timedelta(days=days),
            "resource": {"prefect.resource.id": "f", "prefect.resource.name": facts.name},
            "payload": json.loads(json.dumps(list_figures(facts), allow_nan=False)),
        }
    )


def told(*events: Event) -> dict[tuple[str, ...], float]:
    """Return each sample that the events become, by its name and its labels' values."""

    class Told(Collector):
        def collect(self) -> Any:
            return tell_fleets(newest_of_each(events))

    registry = CollectorRegistry()
    registry.register(Told())
    text = generate_latest(registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def test_a_fleets_figures_are_told():
    found = told(ended())
    assert found[("tracefleet_fleet_entries", "published", "nightly.yaml")] == 2
    assert found[("tracefleet_fleet_entries", "failed", "nightly.yaml")] == 1
    assert found[("tracefleet_fleet_refusals", "TraceError", "nightly.yaml")] == 1
    assert found[("tracefleet_fleet_conversion_seconds", "nightly.yaml")] == 90
    assert found[("tracefleet_fleet_wall_seconds", "nightly.yaml")] == 120
    assert found[("tracefleet_fleet_worst_error_ratio", "nightly.yaml")] == pytest.approx(0.9)
    assert found[("tracefleet_fleet_ended_timestamp_seconds", "nightly.yaml")] == START.timestamp()


def test_a_night_without_work_has_no_worst_error_and_the_last_night_counts():
    idle = replace(FACTS, rows=(replace(ROW, ending="fresh", worst_error=None, seconds=None),))
    found = told(ended(idle, days=1), ended())
    assert found[("tracefleet_fleet_entries", "fresh", "nightly.yaml")] == 1
    assert ("tracefleet_fleet_worst_error_ratio", "nightly.yaml") not in found
    assert ("tracefleet_fleet_entries", "failed", "nightly.yaml") not in found
    assert list_figures(replace(FACTS, rows=()))["worst_error"] is None


def test_the_dashboard_names_each_panel_once():
    path = Path(__file__).parent.parent / "infra" / "dashboard.json"
    panels = json.loads(path.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == 9
    for panel in panels:
        assert panel["description"], panel["title"]
