"""The steps to production on a real server: promotions, notifications, metrics, a consumer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from examples.reload_on_event import follow, watch
from flows.convert import convert
from flows.engine.release import RELEASE
from tasks.publish.channels import promote
from tasks.publish.guard import is_guarded, set_guarded
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case, build
from tests.support.forging import forge_file, scale_weight
from tests.support.postgres import postgres
from tests.support.prefect_platform import ROOT, Platform
from tests.support.prometheus import prometheus
from tests.support.s3_servers import free_port
from tests.support.webhook import Webhook, receive
from tracefleet import Change
from tracefleet.manifest import Manifest
from tracefleet.published import select
from tracefleet.store.folder import FileStore

pytestmark = pytest.mark.prefect

TASK = "text-classification"
PRODUCTION = "production"
DASHBOARD = json.loads((ROOT / "infra" / "dashboard.json").read_text("utf-8"))
QUERIES = {panel["title"]: panel["targets"][0]["expr"] for panel in DASHBOARD["panels"]}


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with receive() as webhook:
        yield webhook


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, webhook: Webhook) -> Iterator[Platform]:
    """A provisioned server that notifies, with every deployment, and one jit worker."""
    with postgres() as database:
        platform = Platform(tmp_path_factory.mktemp("prefect"), database)
        platform.env["TRACEFLEET_NOTIFY_URL"] = webhook.url
        try:
            platform.start_server()
            made = platform.run("python", "-m", "infra.provision")
            assert made.returncode == 0, made.stderr
            deploy = ("--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
            deployed = platform.run("prefect", *deploy)
            assert deployed.returncode == 0, deployed.stdout + deployed.stderr
            platform.jit = platform.start_worker("jit")
            yield platform
        finally:
            platform.stop()


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(Case(model_type="bert", task=TASK), tmp_path_factory.mktemp("model") / "support")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """A store whose production is guarded."""
    store = FileStore(root=tmp_path / "store")
    set_guarded(store, PRODUCTION)
    return store


def publish(store: FileStore, folder: Path, *lengths: int) -> Manifest:
    fields = {"source": str(folder), "task": TASK, "lengths": lengths}
    return convert(make_request({**fields, "store": store.url})).manifest


def current(store: FileStore, folder: Path, channel: str = PRODUCTION) -> str:
    return select(store, folder, channel=channel).entry.key


def ask(platform: Platform, deployment: str, **parameters: str) -> str:
    """Start a run as `prefect deployment run` does, which takes seconds to start; return its id."""
    found = platform.ask(f"deployments/name/{deployment}")
    wanted = {"parameters": parameters}
    return str(platform.ask(f"deployments/{found['id']}/create_flow_run", wanted)["id"])


def wait_for(platform: Platform, run: str, state: str) -> dict[str, Any]:
    """Wait until a run has the name of a state; return the run."""

    def reached() -> dict[str, Any] | None:
        found: dict[str, Any] = platform.ask(f"flow_runs/{run}")
        return found if found["state_name"] == state else None

    found: dict[str, Any] = platform.wait(reached)
    return found


def resume(platform: Platform, run: str, **answer: Any) -> str:
    return str(platform.ask(f"flow_runs/{run}/resume", {"run_input": answer})["status"])


def test_a_guarded_channel_waits_for_a_person_whatever_becomes_of_the_workers(
    platform: Platform, webhook: Webhook, store: FileStore, checkpoint_folder: Path
):
    manifest = publish(store, checkpoint_folder, 8)
    where = {"store": store.url, "source": str(checkpoint_folder)}
    run = ask(platform, "promote-conversion/jit", **where)
    wait_for(platform, run, "Suspended")
    assert PRODUCTION not in "".join(map(str, store.root.glob("channels/*/*/*")))
    (told,) = platform.wait(lambda: webhook.of("Suspended"))
    assert told["text"].startswith("Your word is wanted: promote ")
    assert run in told["url"]
    artifacts = platform.ask("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert any("all as eager computed them" in str(one["data"]) for one in artifacts)

    assert resume(platform, run, approve=True) == "REJECT", "nobody's word is no word"
    assert platform.jit is not None
    platform.lose(platform.jit)
    platform.jit = platform.start_worker("jit")
    assert resume(platform, run, approve=True, by="Ada") == "ACCEPT"
    wait_for(platform, run, "Completed")
    assert current(store, checkpoint_folder) == manifest.key


def test_a_word_holds_for_one_conversion_and_a_no_moves_nothing(
    platform: Platform, store: FileStore, checkpoint_folder: Path
):
    publish(store, checkpoint_folder, 8)
    where = {"store": store.url, "source": str(checkpoint_folder)}
    run = ask(platform, "promote-conversion/jit", **where)
    first = wait_for(platform, run, "Suspended")["state"]["state_details"]["pause_key"]
    later = publish(store, checkpoint_folder, 16)
    assert resume(platform, run, approve=True, by="Ada") == "ACCEPT"
    platform.wait(lambda: _pause_key(platform, run) not in (None, first))
    assert later.key.startswith(str(_pause_key(platform, run)).removeprefix("approve-"))
    assert resume(platform, run, approve=False, by="Bob") == "ACCEPT"
    ended = wait_for(platform, run, "Refused")
    assert ended["state"]["message"] == "Bob did not approve: nothing was moved."
    assert PRODUCTION not in "".join(map(str, store.root.glob("channels/*/*/*")))


def _pause_key(platform: Platform, run: str) -> str | None:
    state = platform.ask(f"flow_runs/{run}")["state"]
    key: str | None = state["state_details"].get("pause_key")
    return key


def test_what_differs_on_the_pool_is_never_promoted(
    platform: Platform, store: FileStore, checkpoint_folder: Path
):
    manifest = publish(store, checkpoint_folder, 8)
    bundle = next(store.root.rglob("model.pt"))
    forge_file(store.root, manifest, manifest.bundle.path, scale_weight(bundle, 1.01))
    where = {"store": store.url, "source": str(checkpoint_folder), "to": "stable"}
    run = ask(platform, "promote-conversion/jit", **where)
    ended = wait_for(platform, run, "Failed")
    assert "NumericsMismatchError" in ended["state"]["message"]
    assert not list(store.root.glob("channels/*/*/stable"))


@pytest.fixture(scope="module")
def failed_fleet(
    platform: Platform, checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> FileStore:
    """A store that two fleets published into: one completed, one had a new failure."""
    folder = tmp_path_factory.mktemp("fleet")
    store = FileStore(root=folder / "store")
    platform.start_worker("coordinator")
    good = {"support": {"source": str(checkpoint_folder)}}
    bad = {"bad": {"source": str(folder / "nothing")}}
    for entries, state in ((good, "Completed"), ({**good, **bad}, "Failed")):
        path = folder / f"{state}.yaml"
        defaults = {"store": store.url, "lengths": [8], "task": TASK}
        fleet = {"guarded": ["stable"], "defaults": defaults, "entries": entries}
        path.write_text(yaml.safe_dump(fleet))
        wait_for(platform, ask(platform, "convert-fleet/adhoc", fleet=str(path)), state)
    return store


def test_deployments_and_runs_tell_version_commit_and_toolchain(
    platform: Platform, failed_fleet: FileStore
):
    deployment = platform.ask("deployments/name/convert-fleet/adhoc")
    # In a checkout of git Prefect puts the commit there by itself.
    assert deployment["version"] == RELEASE or deployment["version"][:7] in RELEASE
    runs = platform.ask("flow_runs/filter", {"sort": "START_TIME_ASC"})
    versions = {run["name"]: run["flow_version"] for run in runs if run["start_time"]}
    assert any(name.startswith("support@") for name in versions), "a conversion of a batch"
    assert set(versions.values()) == {RELEASE}


def test_new_failures_of_a_fleet_are_told_and_success_is_not(
    platform: Platform, webhook: Webhook, failed_fleet: FileStore
):
    (told,) = platform.wait(lambda: webhook.of("Failed"))
    assert told["text"].startswith("New failures in fleet Failed ")
    assert "1 are not: bad (" in told["message"]
    assert not webhook.of("Completed")
    assert is_guarded(failed_fleet, "stable"), "the fleet's file says so"


def test_every_query_of_the_dashboard_finds_something(
    platform: Platform, failed_fleet: FileStore, tmp_path: Path
):
    port = free_port()
    with platform.running("python", "-m", "infra.metrics", "--port", str(port)) as exporter:
        platform.wait(lambda: _scrape(port))
        told = _scrape(port)
        for title, query in QUERIES.items():
            assert set(re.findall(r"tracefleet_\w+", query)) <= set(re.findall(r"\w+", told)), title
        with prometheus(tmp_path, f"127.0.0.1:{port}") as server:
            if server is None:
                pytest.skip("queries were not run: no prometheus (apt-get install prometheus)")
            for title, query in QUERIES.items():
                assert server.query(query), f"{title}: {query} finds nothing in\n{told}"
            assert server.query("tracefleet_fleet_colours") == [], "the control"
            (refusals,) = server.query(QUERIES["Refusals by type"])
            assert refusals["value"][1] == "1"
        exporter.terminate()


def _scrape(port: int) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    except httpx.HTTPError:
        return ""


def test_a_consumer_changes_when_the_event_comes(
    platform: Platform, store: FileStore, checkpoint_folder: Path
):
    old = publish(store, checkpoint_folder, 8)
    promote(store, select(store, checkpoint_folder), to=PRODUCTION, confirmed=True)
    new = publish(store, checkpoint_folder, 16)
    set_guarded(store, PRODUCTION, guarded=False)
    where = {"store": store.url, "source": str(checkpoint_folder)}

    async def serve() -> tuple[Change, str]:
        changed: asyncio.Queue[Change] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(change: Change) -> None:
            loop.call_soon_threadsafe(changed.put_nowait, change)

        with watch(store.url, str(checkpoint_folder), PRODUCTION, tell) as model:
            before = model.manifest.key
            following = asyncio.create_task(follow(model, store.url, PRODUCTION))
            await asyncio.to_thread(ask, platform, "promote-conversion/jit", **where)
            change = await asyncio.wait_for(changed.get(), 120)
            following.cancel()
            assert model.manifest.key == change.key
            return change, before

    with temporary_settings({PREFECT_API_URL: platform.url}):
        change, before = asyncio.run(serve())
    assert (before, change.key, change.refused) == (old.key, new.key, None)
