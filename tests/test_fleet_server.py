"""A fleet over a real Prefect server and real workers: from a request to what is published."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet_platform import (
    DEEPER,
    FLEET,
    all_of,
    checkpoints,
    fleet_file,
    platform,
    published,
    states,
    store,
)
from tests.support.neuron_support import FOLDER as DOUBLE
from tests.support.neuron_support import store_for_doubles
from tests.support.prefect_platform import Platform
from tracefleet.channel import find_variants
from tracefleet.store import open_store

__all__ = ["checkpoints", "platform", "store"]  # fixtures

pytestmark = [
    pytest.mark.prefect,
    # Third-party code on the way, where a fleet runs in this process.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


SCHEDULED = ("convert-fleet/nightly", "validate-current/weekly", "gc/weekly")
PROVISION = ("python", "-m", "infra.provision")


def scheduled(platform: Platform) -> dict[str, bool]:
    """Whether each schedule is active."""
    active: dict[str, bool] = {}
    for name in SCHEDULED:
        (schedule,) = platform.ask(f"deployments/name/{name}")["schedules"]
        active[name] = schedule["active"]
    return active


def chosen(platform: Platform) -> list[Any]:
    """What the scheduled deployments run on."""
    fields = ("fleet", "store")
    of = [platform.ask(f"deployments/name/{name}")["parameters"] for name in SCHEDULED]
    return [parameters[field] for parameters in of for field in fields if field in parameters]


def _final(platform: Platform, run: str) -> dict[str, Any] | None:
    """The state of a run that is over."""
    state: dict[str, Any] = platform.ask(f"flow_runs/{run}")["state"]
    return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def test_what_nobody_chose_is_paused_and_refused_by_hand(platform: Platform):
    assert scheduled(platform) == dict.fromkeys(SCHEDULED, False)
    assert chosen(platform) == [""] * 4
    nightly = platform.ask("deployments/name/convert-fleet/nightly")["id"]
    run = platform.ask(f"deployments/{nightly}/create_flow_run", {})["id"]
    upkeep = platform.run("prefect", "deployment", "run", "gc/weekly", "--watch")
    assert upkeep.returncode == 1
    # What `--watch` prints of a failure: its reason, as an event.
    assert "tracefleet.failed * RequestError: gc: expected a store, got none" in upkeep.stdout
    assert "infra.provision --store URL" in " ".join(upkeep.stdout.split())
    state = platform.wait(lambda: _final(platform, run))
    assert state["type"] == "FAILED"
    assert "infra.provision --fleet URL --store URL" in state["message"]


def test_what_the_schedule_runs_is_what_the_operator_chose(platform: Platform, tmp_path: Path):
    good = fleet_file(tmp_path, {"a": {"source": str(tmp_path / "bert")}})
    (tmp_path / "wrong").mkdir()
    wrong = fleet_file(tmp_path / "wrong", {"a": {"source": str(tmp_path), "dtype": "float65"}})
    store = f"file://{tmp_path}/store"
    refused = platform.run(*PROVISION, "--fleet", wrong, "--store", store)
    assert refused.returncode == 1
    assert "a: dtype: expected one of float32" in refused.stderr
    assert not refused.stdout
    assert scheduled(platform) == dict.fromkeys(SCHEDULED, False)
    assert chosen(platform) == [""] * 4

    both = platform.run(*PROVISION, "--fleet", good, "--store", store)
    assert both.returncode == 0, both.stderr
    assert scheduled(platform) == dict.fromkeys(SCHEDULED, True)
    assert chosen(platform) == [good, store, store, store]
    for again in (PROVISION, (*PROVISION, "--fleet", good, "--store", store)):
        told = platform.run(*again)
        assert {line.rpartition(": ")[2] for line in told.stdout.splitlines()} == {"unchanged"}
    deploy = ("--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
    assert platform.run("prefect", *deploy).returncode == 0
    assert scheduled(platform) == dict.fromkeys(SCHEDULED, True), "deploying keeps it too"
    assert chosen(platform) == [good, store, store, store]


def test_what_is_deployed(platform: Platform):
    nightly = platform.ask("deployments/name/convert-fleet/nightly")
    (schedule,) = nightly["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert schedule["active"]
    # Some versions of the server's libraries break its scheduler, which only its log tells.
    state = {"state": {"name": {"any_": ["Scheduled"]}}}
    nights = {"flows": {"name": {"any_": ["convert-fleet"]}}, "flow_runs": state}
    (upcoming, *_) = platform.wait(lambda: platform.ask("flow_runs/filter", nights))
    assert upcoming["expected_start_time"].endswith(("T01:00:00Z", "T00:00:00Z"))  # Berlin's 2:00
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    for backend in ("neuronx", "neuron"):
        deployment = platform.ask(f"deployments/name/validate-conversion/{backend}")
        assert deployment["work_pool_name"] == backend
        assert deployment["parameters"] == {"backend": backend}
    for backend in ("jit", "neuronx", "neuron"):
        deployment = platform.ask(f"deployments/name/convert-checkpoint/{backend}")
        assert deployment["work_pool_name"] == backend
        queues = platform.ask(f"work_pools/{backend}/queues/filter", {})
        assert {queue["name"]: queue["priority"] for queue in queues} == {
            "adhoc": 1,
            "default": 5,
            "fleet": 10,
        }
        batch = platform.ask(f"deployments/name/convert-batch/{backend}")
        assert (batch["work_pool_name"], batch["work_queue_name"]) == (backend, "fleet")


def test_one_conversion_by_the_command_line(platform: Platform, checkpoints, store: str):
    (folder,) = checkpoints(1)
    run = ("prefect", "deployment", "run", "convert-checkpoint/jit", "--watch", "--param")
    request = f'"source": "file://{folder}", "task": "feature-extraction", "store": "{store}"'
    refused = platform.run(*run, f'request={{{request}, "lengths": [0]}}')
    assert refused.returncode != 0
    assert not platform.conversions(store)

    done = platform.run(*run, f'request={{{request}, "lengths": [8, 16]}}')
    assert done.returncode == 0, done.stdout
    (seen,) = platform.conversions(store)
    assert re.fullmatch(r"bert-0@[0-9a-f]{7} jit feature-extraction", seen["name"])
    assert seen["state_name"] == "Completed"
    assert published(store) == 1
    report = f"{store}/reports/{seen['id']}/index.html"
    body = {"artifacts": {"flow_run_id": {"any_": [seen["id"]]}}}
    (artifact,) = platform.ask("artifacts/filter", body)
    assert report in artifact["data"]
    asset = "prefect.asset.materialization.succeeded"

    def events() -> list[dict[str, Any]]:
        found = platform.ask("events/filter", {"filter": {"event": {"name": [asset]}}})["events"]
        return [one for one in found if one["resource"]["prefect.resource.id"].startswith(store)]

    (event,) = platform.wait(events)
    assert event["payload"]["channel"] == "latest"
    assert event["payload"]["number"] == 1


def test_one_poisoned_checkpoint_among_ten_costs_itself_alone(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    folders = checkpoints(10)
    (folders[3] / "model.safetensors").write_bytes(b"\0" * 100)
    fleet = fleet_file(tmp_path, all_of(folders), store=store)
    run = ("prefect", "deployment", "run", "convert-fleet/adhoc", "--watch", "--param")
    done = platform.run(*run, f"fleet={fleet}", timeout=400)
    assert done.returncode == 1, done.stdout
    assert published(store) == 9
    failed = {"state": {"name": {"any_": ["Failed"]}}, "name": {"like_": "fleet"}}
    (seen,) = (
        run
        for run in platform.ask("flow_runs/filter", {"flow_runs": failed})
        if run["parameters"]["fleet"] == fleet
    )
    told = seen["state"]["message"]
    assert "expected all 10 entries to be current, got 9 (9 published now); 1 are not" in told
    assert "bert-3 (UnsafeCheckpointError)" in told
    tables = platform.ask(
        "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [seen["id"]]}}}
    )
    by_key = {table["key"]: table["data"] for table in tables}
    assert "UnsafeCheckpointError" in by_key["fleet-fleet-yaml-failures"]
    assert "bert-9" in by_key["fleet-fleet-yaml-entries"]
    page = open_store(store).read(f"reports/{seen['id']}/index.html").decode()
    assert "9 of 10" in page
    first = Counter(run["name"] for run in platform.conversions(store))
    assert len(first) <= 10  # the poisoned one is refused by the plan or by its own run
    assert set(first.values()) == {1}

    # An idle night: the refusal is known, nothing is handed out, and no alarm rings.
    idle = platform.run(*run, f"fleet={fleet}", timeout=100)
    assert idle.returncode == 0, idle.stdout
    assert "KnownRefusals" in idle.stdout
    assert len(platform.conversions(store)) == len(first)

    del folders[3]
    fleet = fleet_file(tmp_path, all_of(folders), store=store)
    runs = len(platform.conversions(store))
    fresh = platform.run(*FLEET, fleet, timeout=60)
    assert fresh.returncode == 0, fresh.stderr
    assert "9 entries: 9 fresh, 0 published, 0 failed" in fresh.stdout
    assert len(platform.conversions(store)) == runs


def test_two_backends_side_by_side_and_a_device_that_comes_later(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    """Conversions for jit and for Neuron at once; a worker without a device makes candidates."""
    store_for_doubles(tmp_path)
    entries = all_of(checkpoints(2))
    fleet = fleet_file(tmp_path, entries, store=store, backend=["jit", "neuronx"])
    worker = platform.start_worker("neuronx", limit=1, **neuron_host("none"))
    done = platform.run(*FLEET, fleet)
    assert "4 entries: 0 fresh, 4 published, 0 failed" in done.stdout, done.stdout + done.stderr
    assert done.stderr.count("a device has to validate it") == 2
    assert _channels(store) == {("jit", "latest"): 2, ("neuronx", "candidate"): 2}
    plan = platform.run("python", "-m", "flows", "plan", fleet)
    assert plan.stdout.count("waits for a device") == 2

    platform.lose(worker)
    worker = platform.start_worker("neuronx", limit=1, **neuron_host("inf2"))
    (first, _) = sorted(Path(tmp_path, "store").glob("conversions/*/*/candidate.json"))
    run = ("prefect", "deployment", "run", "validate-conversion/neuronx", "--watch", "--param")
    validated = platform.run(*run, f"conversion=file://{first.parent}")
    assert validated.returncode == 0, validated.stdout
    assert _channels(store)[("neuronx", "latest")] == 1
    rest = platform.run(*FLEET, fleet)
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert "4 entries: 3 fresh, 1 published, 0 failed" in rest.stdout
    assert _channels(store)[("neuronx", "latest")] == 2
    pools = {run["work_pool_name"] for run in platform.batches(store)}
    assert pools == {"jit", "neuronx"}
    platform.lose(worker)


def neuron_host(device: str) -> dict[str, str]:
    """Return the variables of a host that has the contract double, with or without a device."""
    return {"PYTHONPATH": str(DOUBLE), "NEURON_DOUBLE": f"device={device}"}


def _channels(store: str) -> Counter[tuple[str, str]]:
    found = find_variants(open_store(store))
    return Counter((one.variant.split(".")[1], one.channel) for one in found)


def test_two_fleets_at_once_share_their_runs(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    """Also where they overlap in part, so that their batches are others."""
    entries = all_of(checkpoints(5, layers=DEEPER))
    same, other = tmp_path / "same", tmp_path / "other"
    for folder, names in ((same, sorted(entries)[:3]), (other, sorted(entries)[1:])):
        folder.mkdir()
        fleet_file(folder, {name: entries[name] for name in names}, store=store)
    with contextlib.ExitStack() as stack:
        files = (same, same, other)
        fleets = [platform.running(*FLEET, str(folder / "fleet.yaml")) for folder in files]
        for process in [stack.enter_context(fleet) for fleet in fleets]:
            told, _ = process.communicate(timeout=480)
            assert process.returncode == 0, told
    assert states(platform, store) == {"Completed": 5}
    assert published(store) == 5


#: A fleet whose first sharing is as uneven as where weights say little of the time; in a process of
#: its own: Prefect's event worker would wait for this server when it is gone.
_UNEVEN = """
import sys
from flows.__main__ import main
from flows.fan_out import pool_runs
share = pool_runs.share
fleet, entries, taking_over = sys.argv[1:]

def uneven(work, places):
    return [work[:-1], work[-1:]] if len(work) == int(entries) else share(work, places)

pool_runs.share = uneven
if taking_over == "no":
    pool_runs.half_of = lambda _: []
sys.exit(main(["fleet", fleet, "--quiet"]))
"""


def test_a_place_that_is_free_takes_work_over(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    entries = all_of(checkpoints(12))

    def gap(*lengths: int, taking_over: str) -> tuple[int, float]:
        """Convert; return the number of batch runs, and for how long the last one ran alone."""
        fleet = fleet_file(tmp_path, entries, store=store, lengths=[*lengths])
        known = len(platform.batches(store))
        code = ("python", "-c", _UNEVEN, fleet, str(len(entries)), taking_over)
        done = platform.run(*code)
        assert f"{len(entries)} published" in done.stdout, done.stdout + done.stderr
        batches = platform.batches(store)[known:]
        ends = sorted(datetime.fromisoformat(batch["end_time"]) for batch in batches)
        return len(batches), (ends[-1] - ends[-2]).total_seconds()

    number, shared = gap(8, 16, taking_over="yes")
    assert number > 2
    assert states(platform, store) == {"Completed": len(entries)}
    number, alone = gap(8, 24, taking_over="no")
    assert number == 2
    assert alone > shared


def test_a_worker_of_prefect_3_8_serves_this_server(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    """As on Inf1, whose Python 3.10 has no newer one."""
    older = tmp_path / "prefect-3.8"
    install = ("pip", "install", "--quiet", "--no-deps", "--target", str(older), "prefect==3.8.8")
    installed = platform.run("python", "-m", *install)
    if installed.returncode:
        pytest.skip(f"prefect 3.8.8 can't be installed here: {installed.stderr.strip()[-200:]}")
    version = subprocess.run(
        [sys.executable, "-c", "import prefect; print(prefect.__version__)"],
        env={**platform.env, "PYTHONPATH": str(older)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert version.stdout.strip() == "3.8.8"
    assert platform.jit is not None
    platform.lose(platform.jit)
    platform.jit = platform.start_worker("jit", PYTHONPATH=str(older))
    fleet = fleet_file(tmp_path, all_of(checkpoints(3)), store=store)
    done = platform.run(*FLEET, fleet)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(platform, store) == {"Completed": 3}
    platform.lose(platform.jit)
    platform.jit = platform.start_worker("jit")
