"""Metrics for Prometheus: ``python -m infra.metrics``, one process beside the Prefect server.

Nothing is counted here: each scrape asks the server, so that a restart loses nothing and two
exporters tell the same. A scrape costs two requests, one for each final state and two for each
work pool: scrape once a minute. If the server does not answer the scrape fails, which Prometheus
tells as ``up == 0``. ``infra/dashboard.json`` shows the metrics in Grafana.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events import Event
from prefect.events.filters import EventFilter
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from flows.engine.names import FLEET_ENDED

PORT = 9464
_FINAL = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
_DAY = timedelta(days=1)
#: A fleet that did not run for so long is no longer told.
_FORGET = timedelta(days=8)
#: The most events that the server answers with: the last so many runs of fleets are looked at.
_PAGE = 50


@dataclass(frozen=True)
class PrefectCollector(Collector):
    """What the configured Prefect server knows, as metrics."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask the server and yield all metrics."""
        now = datetime.now(UTC)
        with get_client(sync_client=True) as client:
            yield from tell_fleets(newest_of_each(_read_ends(client, now)))
            yield _tell_conversions(client, now)
            yield from _tell_queues(client, now)


def newest_of_each(events: Sequence[Event]) -> list[Event]:
    """Return the newest event of each fleet."""
    found: dict[str, Event] = {}
    for event in sorted(events, key=lambda one: one.occurred):
        found[event.resource.id] = event
    return list(found.values())


def tell_fleets(ends: Sequence[Event]) -> Iterator[GaugeMetricFamily]:
    """Yield the metrics of each fleet's last run, from the events that told its end."""
    entries = _gauge("fleet_entries", "Entries of the fleet's last run", "fleet", "ending")
    refusals = _gauge("fleet_refusals", "Failures of its last run by type", "fleet", "code")
    working = _gauge("fleet_conversion_seconds", "Conversions of its last run, added up", "fleet")
    wall = _gauge("fleet_wall_seconds", "Wall time of its last run", "fleet")
    worst = _gauge("fleet_worst_error_ratio", "Worst error published, by its tolerance", "fleet")
    ended = _gauge("fleet_ended_timestamp_seconds", "When its last run ended", "fleet")
    for event in ends:
        fleet, figures = event.resource.name or event.resource.id, event.payload
        for family, counts in ((entries, figures["entries"]), (refusals, figures["refusals"])):
            for label, count in counts.items():
                family.add_metric([fleet, label], count)
        working.add_metric([fleet], figures["conversion_seconds"])
        wall.add_metric([fleet], figures["wall_seconds"])
        ended.add_metric([fleet], event.occurred.timestamp())
        if figures["worst_error"] is not None:
            worst.add_metric([fleet], figures["worst_error"])
    yield from (entries, refusals, working, wall, worst, ended)


def _read_ends(client: SyncPrefectClient, now: datetime) -> list[Event]:
    wanted = EventFilter.model_validate(
        {"event": {"name": [FLEET_ENDED]}, "occurred": {"since": now - _FORGET}}
    )
    return list(client.read_events(wanted, limit=_PAGE).events)


def _tell_conversions(client: SyncPrefectClient, now: datetime) -> GaugeMetricFamily:
    told = _gauge("conversions_day", "Runs of convert-checkpoint that ended in 24 hours", "state")
    flow = FlowFilter.model_validate({"name": {"any_": ["convert-checkpoint"]}})
    for state in _FINAL:
        runs = FlowRunFilter.model_validate(
            {"state": {"type": {"any_": [state]}}, "end_time": {"after_": now - _DAY}}
        )
        count = client.count_flow_runs(flow_filter=flow, flow_run_filter=runs)
        told.add_metric([state.value.lower()], count)
    return told


def _tell_queues(client: SyncPrefectClient, now: datetime) -> Iterator[GaugeMetricFamily]:
    """Yield how many runs wait in each pool though their time has come, and the oldest's age."""
    waiting = _gauge("queue_runs", "Runs that wait for a worker", "pool")
    age = _gauge("queue_age_seconds", "How long the oldest of them has waited", "pool")
    due = FlowRunFilter.model_validate(
        {
            "state": {"type": {"any_": [StateType.SCHEDULED]}},
            "next_scheduled_start_time": {"before_": now},
        }
    )
    for pool in client.read_work_pools():
        in_pool = WorkPoolFilter.model_validate({"name": {"any_": [pool.name]}})
        count = client.count_flow_runs(flow_run_filter=due, work_pool_filter=in_pool)
        waiting.add_metric([pool.name], count)
        oldest = client.read_flow_runs(
            flow_run_filter=due,
            work_pool_filter=in_pool,
            sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
            limit=1,
        )
        since = [run.next_scheduled_start_time for run in oldest if run.next_scheduled_start_time]
        ages = [(now - start).total_seconds() for start in since]
        age.add_metric([pool.name], max(ages, default=0.0))
    yield from (waiting, age)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tracefleet_{name}", text, labels=labels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve ``/metrics`` until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m infra.metrics", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default: {PORT})")
    options = parser.parse_args(arguments)
    registry = CollectorRegistry()
    registry.register(PrefectCollector())
    _, thread = start_http_server(options.port, addr=options.host, registry=registry)
    print(f"metrics  http://{options.host}:{options.port}/metrics", flush=True)
    thread.join()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
