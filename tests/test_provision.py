"""What infra.provision refuses before it talks to a server, and the files that it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from prefect.events.schemas.automations import EventTrigger

from flows.engine import settings as engine
from flows.engine.names import KNOWN_REFUSALS, REFUSED
from infra.automations import AUTOMATIONS, HEARTBEAT_SECONDS, MISSED, OURS, RESUMES, lost_runs
from infra.provision import POOLS, ProvisionError, main, read_pools
from infra.schedule import SCHEDULED, Choice, ChoiceError, check_choice

PREFECT_YAML = yaml.safe_load(Path(POOLS).with_name("prefect.yaml").read_text("utf-8"))


def test_every_pool_and_queue_that_a_deployment_names_is_made():
    pools = read_pools(POOLS)
    for deployment in PREFECT_YAML["deployments"]:
        pool = deployment["work_pool"]
        assert pool["work_queue_name"] in pools[pool["name"]].queues
    assert {pool.type for pool in pools.values()} == {"process"}


def test_fleets_never_wait_in_the_pool_of_their_conversions():
    by_flow: dict[str, set[str]] = {}
    for deployment in PREFECT_YAML["deployments"]:
        flow = deployment["entrypoint"].partition(":")[0]
        by_flow.setdefault(flow, set()).add(deployment["work_pool"]["name"])
    assert not by_flow["flows/convert_fleet.py"] & by_flow["flows/convert_checkpoint.py"]


def test_heartbeats_are_as_frequent_as_the_automation_allows():
    for deployment in PREFECT_YAML["deployments"]:
        env = deployment["work_pool"]["job_variables"]["env"]
        assert int(env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == HEARTBEAT_SECONDS
    # A fleet that is started by hand has no deployment, and Prefect's own default is rarer.
    assert int(engine.SETTINGS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == HEARTBEAT_SECONDS
    assert MISSED.seconds >= 3 * HEARTBEAT_SECONDS


def test_a_run_that_waits_for_a_person_is_not_taken_for_lost():
    trigger = lost_runs().trigger
    assert isinstance(trigger, EventTrigger)
    assert {"prefect.flow-run.Suspended", "prefect.flow-run.heartbeat"} <= trigger.expect


def test_what_is_scheduled_again_is_tagged():
    tags = {d["name"]: d["tags"] for d in PREFECT_YAML["deployments"]}
    assert {name for name, of in tags.items() if RESUMES in of} == {"nightly", "adhoc"}
    assert all(OURS in of for of in tags.values())
    names = [make().name for make in AUTOMATIONS]
    assert len(set(names)) == len(names)


def test_a_fleet_that_ends_with_known_refusals_is_over_for_every_automation():
    # Automations know states by their names alone.
    for make in AUTOMATIONS:
        trigger = make().trigger
        assert isinstance(trigger, EventTrigger)
        assert f"prefect.flow-run.{KNOWN_REFUSALS}" in trigger.expect
        assert f"prefect.flow-run.{REFUSED}" in trigger.expect


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pools: {a: {description: x, queues: {}}}", "queues"),
        ("pools: {a: {description: x, queues: {default: 1}, colour: red}}", "colour"),
        ("pool: {}", "pools"),
        ("[", "expected `pools:`"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, text: str, told: str):
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    with pytest.raises(ProvisionError, match=told):
        read_pools(path)


def test_a_choice_is_checked_before_a_server_is_asked(tmp_path: Path, monkeypatch):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("entries: {a: {source: hf://o/a, lengths: [8]}}")
    monkeypatch.chdir(tmp_path)
    assert check_choice(None, None) == Choice()
    # A worker's working directory is another one.
    assert check_choice("fleet.yaml", "./store") == Choice(
        fleet=str(fleet), store=f"file://{tmp_path}/store"
    )
    fleet.write_text(
        "entries: {a: {source: hf://o/a, lengths: [0]}, b: {source: 's3://bucket/p-*'}}"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(variable, "x")
    # A bucket that does not answer now says nothing about the file.
    with pytest.raises(ChoiceError, match=r"got 1:\na: lengths: expected"):
        check_choice("fleet.yaml", None)
    with pytest.raises(ChoiceError, match="unknown scheme"):
        check_choice(None, "gs://models")
    with pytest.raises(ChoiceError, match="s3://models"):
        check_choice(None, "s3://models")


def test_every_schedule_runs_on_what_was_chosen():
    by_name = {}
    for deployment in PREFECT_YAML["deployments"]:
        if "schedules" in deployment:
            flow = deployment["entrypoint"].partition(":")[2].replace("_", "-")
            name = flow.replace("collect-garbage", "gc")
            by_name[f"{name}/{deployment['name']}"] = deployment
    assert set(by_name) == {one.name for one in SCHEDULED}
    for one in SCHEDULED:
        deployment = by_name[one.name]
        (schedule,) = deployment["schedules"]
        assert schedule["active"] == f"{{{{ prefect.variables.{one.switch} }}}}"
        for parameter, variable in one.parameters.items():
            wanted = f"{{{{ prefect.variables.{variable} }}}}"
            assert deployment["parameters"][parameter] == wanted
    assert "examples/" not in str(PREFECT_YAML)
    assert "./store" not in str(PREFECT_YAML)


def test_no_server_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert main(["--pools", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: expected `pools:`" in capsys.readouterr().err
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main([]) == 1
    assert "PREFECT_API_URL: expected the URL of a server" in capsys.readouterr().err
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert main([]) == 1
    assert "expected a Prefect server" in capsys.readouterr().err
