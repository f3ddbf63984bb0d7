"""Everything that dies, is lost or is cancelled under a fleet, on a real Prefect server."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.automations import DELAY, MISSED, lost_fleets, lost_runs
from infra.provision import put_automation
from tests.support.fleet_platform import (
    DEEP,
    DEEPER,
    FLEET,
    all_of,
    checkpoints,
    fleet_file,
    platform,
    published,
    start_fleet,
    states,
    store,
    tracing,
)
from tests.support.prefect_platform import Platform
from tracefleet.store import open_store

__all__ = ["checkpoints", "platform", "store"]  # fixtures

pytestmark = [
    pytest.mark.prefect,
    # Third-party code on the way, where a fleet runs in this process.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_a_killed_batch_costs_no_conversion(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    """What it had converted is not repeated, and what was under way goes alone."""
    fleet = fleet_file(tmp_path, all_of(checkpoints(4, layers=DEEP)), store=store)
    with platform.running(*FLEET, fleet, "--places", "1") as process:
        platform.wait(lambda: published(store) == 1, every=0.1)
        with tracing(platform, store) as run:
            platform.process_of(platform.batch_of(run)).kill()
        told, _ = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert states(platform, store) == {"Crashed": 1, "Completed": 4}
    assert [len(batch["parameters"]["entries"]) for batch in platform.batches(store)] in (
        [4, 2, 1],
        [4, 1, 2],
    )
    assert published(store) == 4


@pytest.fixture
def impatient(platform: Platform) -> Iterator[None]:
    """Call a run lost after one heartbeat that is missing; they come every 30 s at most."""

    def allow(missed: timedelta, delay: timedelta) -> None:
        with (
            temporary_settings({PREFECT_API_URL: platform.url}),
            get_client(sync_client=True) as client,
        ):
            assert put_automation(client, lost_runs(missed)) == "updated"
            assert put_automation(client, lost_fleets(delay)) == "updated"

    allow(timedelta(seconds=40), timedelta(seconds=10))
    yield
    allow(MISSED, DELAY)


@pytest.mark.usefixtures("impatient")
def test_a_lost_host_is_detected_and_another_takes_over(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    fleet = fleet_file(tmp_path, all_of(checkpoints(1, layers=DEEP)), store=store)
    with platform.running(*FLEET, fleet) as process:
        assert platform.jit
        with tracing(platform, store):
            platform.lose(platform.jit)
        assert states(platform, store) == {"Running": 1}
        platform.jit = platform.start_worker("jit")
        told, _ = process.communicate(timeout=480)
    assert process.returncode == 0, told
    assert states(platform, store) == {"Crashed": 1, "Completed": 1}
    assert published(store) == 1


@pytest.mark.usefixtures("impatient")
def test_a_lost_fleet_is_scheduled_again_and_joins_its_runs(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    fleet = fleet_file(tmp_path, all_of(checkpoints(2, layers=DEEP)), store=store)
    parent = start_fleet(platform, fleet)
    with tracing(platform, store):
        platform.process_of(parent).kill()
    platform.wait(lambda: platform.ask(f"flow_runs/{parent}")["state_name"] == "Completed")
    assert platform.ask(f"flow_runs/{parent}")["run_count"] == 2
    assert states(platform, store) == {"Completed": 2}
    assert published(store) == 2


def test_a_cancelled_fleet_stops_its_runs(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    fleet = fleet_file(tmp_path, all_of(checkpoints(6, layers=DEEP)), store=store)
    parent = start_fleet(platform, fleet)
    with tracing(platform, store):
        platform.cancel(parent)
        time.sleep(1.5)  # a run looks once a second, and the rest of it may take less
    platform.wait(lambda: platform.ask(f"flow_runs/{parent}")["state_name"] == "Cancelled")
    over = {"Cancelled", "Completed"}
    platform.wait(lambda: set(states(platform, store)) <= over)
    seen = states(platform, store)
    assert seen["Cancelled"] >= 1
    assert published(store) == seen["Completed"]
    assert list(open_store(store).walk("publishing")) == []
    verified = platform.run("tracefleet", "verify", store)  # fails for an empty store too
    assert (verified.returncode == 0) == (published(store) > 0), verified.stdout


def test_one_conversion_that_is_cancelled_ends_alone(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    fleet = fleet_file(tmp_path, all_of(checkpoints(3, layers=DEEP)), store=store)
    with platform.running(*FLEET, fleet, "--places", "1") as process:
        with tracing(platform, store) as run:
            platform.cancel(run)
            time.sleep(1.5)  # a run looks once a second, and the rest of it may take less
        told, _ = process.communicate(timeout=200)
    assert process.returncode == 1, told
    assert "3 entries: 0 fresh, 2 published, 0 failed, 1 cancelled" in told
    assert states(platform, store) == {"Cancelled": 1, "Completed": 2}
    assert platform.ask(f"flow_runs/{run}")["state_name"] == "Cancelled"
    assert [batch["state_name"] for batch in platform.batches(store)] == ["Completed"]


def test_what_lost_batches_left_behind_is_ended_by_the_next_fleet(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    fleet = fleet_file(tmp_path, all_of(checkpoints(2, layers=DEEP)), store=store)
    running = platform.running(*FLEET, fleet, "--places", "1")
    with running as process, tracing(platform, store) as run:
        process.kill()
        platform.process_of(platform.batch_of(run)).kill()
    batch = platform.batch_of(run)
    platform.wait(lambda: platform.ask(f"flow_runs/{batch}")["state_name"] == "Crashed")
    assert platform.ask(f"flow_runs/{run}")["state_name"] == "Running"
    again = platform.run(*FLEET, fleet)
    assert again.returncode == 0, again.stdout + again.stderr
    assert states(platform, store) == {"Crashed": 1, "Completed": 2}


def test_a_fleet_that_is_terminated_takes_its_runs_along(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    fleet = fleet_file(tmp_path, all_of(checkpoints(3, layers=DEEP)), store=store)
    with platform.running(*FLEET, fleet) as process:
        with tracing(platform, store):
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode != 0
    platform.wait(lambda: set(states(platform, store)) <= {"Cancelled", "Completed"})
    assert states(platform, store)["Cancelled"] >= 1


def test_a_server_that_restarts_costs_nothing(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    fleet = fleet_file(tmp_path, all_of(checkpoints(3, layers=DEEP)), store=store)
    with platform.running(*FLEET, fleet) as process:
        with tracing(platform, store):
            platform.stop_server()
        platform.start_server()
        told, _ = process.communicate(timeout=480)
    assert process.returncode == 0, told
    assert "3 published" in told
    assert published(store) == 3


def test_a_fleet_is_cancelled_after_an_outage_too(
    platform: Platform, checkpoints, store: str, tmp_path: Path
):
    """Prefect's observers have given up by then: the runs look for themselves."""
    fleet = fleet_file(tmp_path, all_of(checkpoints(8, layers=DEEPER)), store=store)
    parent = start_fleet(platform, fleet)
    with tracing(platform, store):
        platform.stop_server()
    time.sleep(40)
    platform.start_server()
    before = published(store)
    platform.wait(lambda: published(store) > before)
    platform.cancel(parent)
    at_cancel = published(store)
    platform.wait(lambda: platform.ask(f"flow_runs/{parent}")["state_name"] == "Cancelled")
    platform.wait(lambda: set(states(platform, store)) <= {"Cancelled", "Completed"}, 30)
    assert published(store) <= at_cancel + 2  # what was in its last step in either place

    def batches() -> set[str]:
        return {batch["state_name"] for batch in platform.batches(store)}

    # The server's own clean-up would take five minutes.
    # One of them may have been done before the cancel.
    with contextlib.suppress(AssertionError):
        platform.wait(lambda: batches() <= {"Cancelled", "Completed"}, 30)
    assert batches() <= {"Cancelled", "Completed"}
    assert "Cancelled" in batches()
