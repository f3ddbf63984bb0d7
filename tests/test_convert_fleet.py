"""The fleet flow in this process, on a real embedded server; and what it is refused for."""

from __future__ import annotations

import html
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import StateType
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect.states import Cancelling
from prefect.testing.utilities import prefect_test_harness

from flows import convert_batch as batch
from flows import convert_checkpoint as single
from flows.collect_garbage import collect_garbage
from flows.commands.fleet import summary
from flows.convert import convert
from flows.convert_checkpoint import convert_checkpoint
from flows.convert_fleet import convert_fleet
from flows.engine import retries
from flows.engine.clock import now as clock
from flows.engine.names import KNOWN_REFUSALS
from flows.engine.retries import network_task
from flows.fan_out import ends
from flows.fan_out import plan as planning
from flows.fan_out import progress as fleet_show
from flows.fan_out.convert_entries import EntryFailedError
from tasks.errors import RequestError
from tasks.fleet import patterns
from tasks.fleet.spec import FleetSpec
from tasks.plan.fleet import PlanRow, plan
from tasks.report.fleet.facts import FleetError, FleetFacts
from tasks.request.conversion import ConversionRequest, make_request
from tracefleet.errors import StoreError
from tracefleet.store import open_store, open_writable

pytestmark = [
    pytest.mark.prefect,
    # Third-party code on the way: Prefect's server and its dependencies warn about each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(scope="module")
def _server() -> Iterator[None]:
    with (
        prefect_test_harness(server_startup_timeout=240),
        temporary_settings(
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
        ),
    ):
        yield


def spec(store: Path, entries: dict[str, dict[str, Any]]) -> FleetSpec:
    defaults = {"task": "feature-extraction", "lengths": [8, 16], "store": f"file://{store}"}
    return FleetSpec(defaults=defaults, entries=entries)


@pytest.mark.usefixtures("_server")
def test_entries_fail_alone_and_a_repeat_does_what_is_left(checkpoint, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    good, store = f"file://{checkpoint('bert')}", tmp_path / "store"
    entries: dict[str, dict[str, Any]] = {
        "good": {"source": good},
        "headless": {"source": good, "task": "question-answering"},
        "slow": {"source": good, "lengths": [4], "channel": "slow", "timeout_seconds": 0.01},
        "big": {"source": good, "lengths": [6], "channel": "big", "memory_limit_mb": 20},
        "nowhere": {"source": f"file://{tmp_path}/none"},
    }
    with pytest.raises(FleetError, match=r"expected all 5 entries to be current, got 1") as caught:
        convert_fleet(spec=spec(store, entries), jobs=2)
    facts = caught.value.facts
    assert [(row.name, row.ending, row.error) for row in facts.rows] == [
        ("good", "published", None),
        ("headless", "failed", "UnsupportedCheckpointError"),
        ("slow", "failed", "ConversionCrashedError"),
        ("big", "failed", "ConversionCrashedError"),
        ("nowhere", "failed", "RequestError"),
    ]
    (published,) = facts.ended("published")
    assert published.worst_error is not None
    assert published.tolerance is not None
    assert published.worst_error < published.tolerance
    assert published.seconds
    assert published.bundle_bytes
    assert published.report_url is not None
    assert all(row.next_step for row in facts.ended("failed"))
    assert "timeout" in facts.rows[2].why
    assert "memory limit" in facts.rows[3].why
    assert "5/5 " in caplog.text
    assert "plan: 5 entries: 0 fresh, 0 stale, 4 missing, 1 invalid" in caplog.text
    assert "published  good" in summary(facts)
    told = summary(facts, told=True)  # while it ran: only what to do is left
    assert "published  good" not in told
    assert "nowhere: Check the path; on a worker, it must exist on the worker's machine." in told
    assert "5 entries: 0 fresh, 1 published, 4 failed" in summary(facts)

    opened = open_store(f"file://{store}")
    run = str(facts.report_url).split("/")[-2]
    assert "UnsupportedCheckpointError" in opened.read(f"reports/{run}/index.html").decode()
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    kinds = {a["key"]: a for a in artifacts if a["flow_run_id"] == run}
    assert "headless" in kinds["fleet-fleet-failures"]["data"]
    assert "good" in kinds["fleet-fleet-entries"]["data"]
    bars = [a["data"] for a in artifacts if a["flow_run_id"] == run and a["type"] == "progress"]
    assert bars == [100]
    assert "never published" in kinds["fleet-plan"]["data"]

    again = convert_fleet(spec=spec(store, {"good": entries["good"]}), jobs=1)
    assert [row.ending for row in again.rows] == ["fresh"]
    assert len([*(store / "attestations").rglob("*.json")]) == 1

    by_hand = {**entries["good"], "task": "feature-extraction", "lengths": [4]}
    convert(make_request({**by_hand, "store": f"file://{store}"}))
    back = convert_fleet(spec=spec(store, {"good": entries["good"]}), jobs=1)
    (row,) = back.rows
    assert (row.ending, row.why) == (
        "moved",
        "channel latest was moved back: since number 2 it pointed to another conversion; "
        "new lengths: 4 -> 8,16",
    )
    assert "1 entry: 0 fresh, 0 published, 1 moved, 0 failed" in summary(back)
    page = opened.read(str(back.report_url).removeprefix(f"{opened.url}/")).decode()
    assert "1 channel moved back" in page
    assert row.why in html.unescape(page)


def _count_conversions() -> int:
    wanted = FlowFilter(name=FlowFilterName(any_=["convert-checkpoint"]))
    with get_client(sync_client=True) as client:
        return int(client.count_flow_runs(flow_filter=wanted))


@pytest.mark.usefixtures("_server")
def test_what_was_refused_before_is_no_failure_and_is_not_tried(checkpoint, tmp_path):
    good, store = f"file://{checkpoint('bert')}", tmp_path / "store"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    entries: dict[str, dict[str, Any]] = {
        "good": {"source": good},
        "headless": {"source": good, "task": "question-answering"},
        "bare": {"source": f"file://{bare}"},
    }
    fleet = spec(store, entries)
    first: Any = convert_fleet(spec=fleet, jobs=1, return_state=True)
    assert first.is_failed()
    assert "got 1 (1 published now); 2 are not: headless" in first.message

    before = _count_conversions()
    again: Any = convert_fleet(spec=fleet, jobs=1, return_state=True)
    assert (again.type, again.name) == (StateType.COMPLETED, KNOWN_REFUSALS)
    assert "2 of 3 entries were refused before and not tried: headless (Unsup" in again.message
    assert _count_conversions() == before
    facts: FleetFacts = again.result()
    assert [row.ending for row in facts.rows] == ["fresh", "refused", "refused"]
    assert all(row.since and row.next_step and row.error for row in facts.ended("refused"))
    assert "3 entries: 1 fresh, 0 published, 0 failed, 2 refused" in summary(facts)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(again.state_details.flow_run_id)
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    assert (run.state_name, run.state_type) == (KNOWN_REFUSALS, StateType.COMPLETED)
    shown = {a["key"]: a["data"] for a in artifacts if a["flow_run_id"] == str(run.id)}
    assert "headless" in shown["fleet-fleet-refusals"]
    assert "fleet-fleet-failures" not in shown

    worse = spec(store, {**entries, "gone": {"source": f"file://{tmp_path}/gone"}})
    new: Any = convert_fleet(spec=worse, jobs=1, return_state=True)
    assert new.is_failed()
    assert "1 are not: gone (RequestError), 2 were refused before" in new.message
    # A folder that is not there may be tomorrow: it is a failure each time.
    assert convert_fleet(spec=worse, jobs=1, return_state=True).is_failed()

    retried: Any = convert_fleet(spec=fleet, jobs=1, retry_refused=True, return_state=True)
    assert retried.is_failed()
    assert _count_conversions() == before + 1
    _check_that_a_resumed_run_tells_its_own(first, fleet)


def _check_that_a_resumed_run_tells_its_own(first: Any, fleet: FleetSpec) -> None:
    """What a run was refused before its host was lost must not be known when it is resumed."""
    rows = plan(fleet.requests())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "2")
        patch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(first.state_details.flow_run_id))
        began = ends.find_begin(clock())
    assert began < first.timestamp
    for moment, ending in ((began, "failed"), (clock(), "refused")):
        ended = ends.settle_without_work(rows, moment)
        assert [row.ending for row in ended] == ["fresh", ending, ending]


@pytest.mark.usefixtures("_server")
def test_what_a_fleet_is_refused_for_before_any_work(checkpoint, tmp_path):
    fleet = spec(tmp_path / "store", {"good": {"source": f"file://{checkpoint('bert')}"}})
    with pytest.raises(RequestError, match="either fleet or spec"):
        convert_fleet()
    with pytest.raises(RequestError, match="either fleet or spec"):
        convert_fleet(fleet="fleet.yaml", spec=fleet)
    with pytest.raises(RequestError, match=r"only: expected entries of the fleet \(good\), got o"):
        convert_fleet(spec=fleet, only=["other"])
    twice = {"source": "hf://o/n"}
    wrong = spec(
        tmp_path / "store", {"a": {"source": "x y"}, "b": twice, "c": {**twice, "lengths": [4]}}
    )
    with pytest.raises(RequestError) as caught:
        convert_fleet(spec=wrong)
    assert "a.source" in str(caught.value)
    assert "c.channel" in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("_server")
def test_what_the_ui_and_the_reports_refuse_costs_no_conversion(checkpoint, tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no server")

    names = ("create_progress_artifact", "update_progress_artifact", "create_table_artifact")
    for name in (*names, "create_markdown_artifact", "create_link_artifact", "_put_report"):
        monkeypatch.setattr(fleet_show, name, refuse)
    source = f"file://{checkpoint('bert')}"
    entries: dict[str, dict[str, Any]] = {
        "many": {"source": [source]},
        "other": {"source": f"file://{tmp_path}/none"},
    }
    facts = convert_fleet(spec=spec(tmp_path / "store", entries), jobs=1, only=["many"])
    (row,) = facts.rows  # the entry was multiplied: its own name stands for what it gave
    assert (row.name, row.ending) == ("many/bert", "published")
    assert facts.report_url is None


@pytest.mark.usefixtures("_server")
def test_what_the_network_hid_is_planned_again(checkpoint, tmp_path, monkeypatch):
    fleet = spec(tmp_path / "store", {"good": {"source": f"file://{checkpoint('bert')}"}})
    answers = iter(["hidden", "hidden", "seen"])

    def planned(requests: dict[str, ConversionRequest], **_: Any) -> list[PlanRow]:
        hidden = {"state": "invalid", "error": "ConnectionError", "transient": True}
        seen = {"state": "fresh", "key": "0" * 64, "task": "feature-extraction"}
        found: Any = hidden if next(answers) == "hidden" else seen
        return [PlanRow(name=name, request=one, **found) for name, one in requests.items()]

    monkeypatch.setattr(planning, "plan", planned)
    monkeypatch.setattr(planning, "plan_fleet", network_task(planned, name="plan"))
    monkeypatch.setattr(retries, "exponential_backoff", lambda _: [0])
    assert [row.ending for row in convert_fleet(spec=fleet, jobs=1).rows] == ["fresh"]

    answers = iter(["hidden"] * 9)
    with pytest.raises(FleetError, match="ConnectionError"):
        convert_fleet(spec=fleet, jobs=1)


@pytest.mark.usefixtures("_server")
def test_what_is_wrong_with_one_entry_or_can_not_be_listed_stops_no_other(
    checkpoint, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(retries, "exponential_backoff", lambda _: [0])
    bert = f"file://{checkpoint('bert')}"
    entries: dict[str, dict[str, Any]] = {
        "typo": {"source": bert, "dtype": "float65"},
        "e5": {"source": "hf://acme/e5-*"},
        "many": {"source": ["hf://acme/bert-*", bert], "task": "question-answering"},
    }
    fleet = spec(tmp_path / "store", entries)
    asked: list[str] = []
    answers = {"hf://acme/e5-*": 9, "hf://acme/bert-*": 2}

    def match(source: str) -> list[str] | None:
        if "*" not in source:
            return None
        asked.append(source)
        answers[source] -= 1
        if answers[source] >= 0:
            raise ConnectionError("[Errno -2] Name or service not known")
        return [bert]

    monkeypatch.setattr(patterns, "match_sources", match)
    with pytest.raises(FleetError, match="expected all 3 entries to be current") as caught:
        convert_fleet(spec=fleet, jobs=1)
    rows = {row.name: row for row in caught.value.facts.rows}
    assert {name: row.error for name, row in rows.items()} == {
        "typo": "RequestError",
        "e5": "ConnectionError",
        "many/bert": "UnsupportedCheckpointError",
    }
    assert rows["e5"].next_step == "Check the network, then run the fleet again."
    assert rows["typo"].next_step == "Correct the entry in the fleet file."
    # Once, then as a task with three retries; what was found is not asked for again.
    assert (asked.count("hf://acme/e5-*"), asked.count("hf://acme/bert-*")) == (5, 3)
    assert caught.value.facts.report_url is not None
    errors = [one for one in caplog.records if one.exc_info]
    assert not errors, "no traceback of what a type explains"


@pytest.mark.usefixtures("_server")
def test_an_error_that_nobody_foresaw_keeps_its_traceback(tmp_path, monkeypatch, caplog):
    fleet = spec(tmp_path / "store", {"good": {"source": f"file://{tmp_path}"}})

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("nobody")

    monkeypatch.setattr(planning, "plan_fleet", fail)
    with pytest.raises(KeyError):
        convert_fleet(spec=fleet, jobs=1)
    assert any(one.exc_info for one in caplog.records)


@pytest.mark.usefixtures("_server")
def test_a_deployment_has_one_backend(checkpoint, tmp_path):
    fields = {"source": f"file://{checkpoint('bert')}", "lengths": [8], "task": "fill-mask"}
    named = make_request({**fields, "backend": "jit"})
    with pytest.raises(RequestError, match="backend: expected neuronx of this deployment, got jit"):
        convert_checkpoint(named, backend="neuronx")
    open_request = make_request(fields)
    assert single.with_backend(open_request, "neuronx").backend == "neuronx"
    assert single.with_backend(open_request, None) is open_request


@pytest.mark.usefixtures("_server")
def test_gc_by_schedule(tmp_path):
    store = open_writable(f"file://{tmp_path}/store")
    orphan = "conversions/a-00000000/" + "0" * 64 + "/model/x"
    store.put_new(orphan, b"orphan")
    assert not collect_garbage(store.url, older_than_days=1).removed  # it is young
    with pytest.raises(ValueError, match="at least an hour"):
        collect_garbage(store.url, older_than_days=0.01)
    os.utime(tmp_path / "store" / orphan, (0, 0))
    entry = "channels/a-00000000/fill-mask.jit.float32.b1/latest/0000000001.json"
    store.put_new(entry, b"damaged")
    with pytest.raises(StoreError, match="gc kept what it could not judge"):
        collect_garbage(store.url)
    (tmp_path / "store" / entry).unlink()
    assert len(collect_garbage(store.url, dry_run=True).removed) == 1
    assert (tmp_path / "store" / orphan).exists()
    assert len(collect_garbage(store.url).removed) == 1
    assert not (tmp_path / "store" / orphan).exists()


def test_a_failed_entry_crosses_processes_with_its_row():
    import pickle
    from datetime import UTC, datetime

    from tasks.report.fleet.facts import FleetRow

    row = FleetRow(name="a", source="s", commit=None, variant="v", lengths=(1,), ending="failed")
    assert pickle.loads(pickle.dumps(EntryFailedError(row))).row == row
    now = datetime.now(UTC)
    facts = FleetFacts(name="f", run="r", started=now, finished=now, rows=(row,))
    assert pickle.loads(pickle.dumps(FleetError("m", facts))).facts == facts
    assert json.dumps(facts.rows[0].name)


def _ask_to_cancel(run: Any) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling())


@pytest.mark.usefixtures("_server")
def test_a_batch_that_is_cancelled_while_its_last_conversion_ends(monkeypatch):
    """A server refuses "completed" then, and the run would be `Cancelling` for five minutes."""

    def convert_the_last(entries: list[Any], backend: str, own: Any) -> Iterator[str]:
        yield "completed"
        _ask_to_cancel(own)

    monkeypatch.setattr(batch, "_convert_all", convert_the_last)
    state: Any = batch.convert_batch([], "jit", return_state=True)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.state_name == "Cancelled"


def test_what_is_planned_again_is_seen_beside_what_could_move_its_channel():
    """Else two entries of one channel, one of them hidden at first, would fight over it."""
    fields = {"task": "fill-mask", "lengths": [8], "store": "file:///s"}
    asked: dict[str, Any] = {
        "hidden": {"source": "file:///a", "publish_as": "one"},
        "same source": {"source": "file:///a", "channel": "other"},
        "same name": {"source": "file:///b", "publish_as": "one"},
        "bystander": {"source": "file:///c"},
        "another store": {"source": "file:///a", "store": "file:///t"},
    }
    requests: dict[str, Any] = {
        name: make_request({**fields, **one}) for name, one in asked.items()
    }
    hidden = PlanRow(name="hidden", request=requests["hidden"], state="invalid", transient=True)
    again = planning._list_rivals([hidden], {**requests, "broken": RequestError("none")})
    assert list(again) == ["hidden", "same source", "same name"]
    assert planning._list_rivals([], requests) == {}
