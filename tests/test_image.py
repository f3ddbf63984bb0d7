"""The image, the compose file and the job templates: what can be told without building them.

``make image-check`` builds the image and tries it out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import prefect.settings
import pytest
import yaml
from botocore.validate import validate_parameters
from docker.utils.build import exclude_paths  # type: ignore[import-untyped]
from prefect.utilities.templating import apply_values, find_placeholders

from infra import job_templates
from infra.image_check.__main__ import main as image_check

ROOT = Path(__file__).parent.parent
#: Read by Prefect, but not one of its settings.
READ_BY_PREFECT = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"}


def is_known(variable: str) -> bool:
    """Whether a variable of Prefect's exists: a misspelled one would be passed over."""
    known = hasattr(prefect.settings, variable) or variable in READ_BY_PREFECT
    return known or not variable.startswith("PREFECT_")


# The Dockerfile


@dataclass(frozen=True)
class Stage:
    """One stage, with the instructions of the stages that it is made from before its own."""

    own: list[tuple[str, str]]
    parent: Stage | None

    @property
    def all(self) -> list[tuple[str, str]]:
        return [*(self.parent.all if self.parent else []), *self.own]

    def last(self, instruction: str) -> str:
        return [text for name, text in self.all if name == instruction][-1]

    def environment(self) -> dict[str, str]:
        texts = [text for name, text in self.all if name == "ENV"]
        return dict(word.split("=", 1) for text in texts for word in text.split())


def read_dockerfile(path: str = "Dockerfile") -> dict[str, Stage]:
    lines = (ROOT / path).read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    stages: dict[str, Stage] = {}
    own: list[tuple[str, str]] = []
    for line in text.replace("\\\n", "").splitlines():
        if not line.strip():
            continue
        instruction, rest = line.split(" ", 1)
        if instruction == "FROM":
            parent, _, name = rest.split()
            own = []
            stages[name] = Stage(own, stages.get(parent))
        else:
            own.append((instruction, rest))
    return stages


STAGES = read_dockerfile()
WORKER = STAGES["worker"]
IMAGES = {"worker", "s3"}


def test_a_build_without_a_target_makes_the_worker():
    assert list(STAGES)[-1] == "worker"


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_an_image_runs_without_root_under_an_init(name: str):
    stage = STAGES[name]
    assert stage.last("USER") == f"{job_templates.USER}:{job_templates.USER}"
    names = [instruction for instruction, _ in stage.all]
    assert names.count("USER") == 1
    assert "RUN" not in names[names.index("USER") :]
    assert json.loads(stage.last("ENTRYPOINT")) == ["/usr/bin/tini", "--"]
    assert names.index("USER") < names.index("CMD")
    assert json.loads(stage.last("CMD"))


def test_nothing_of_the_build_reaches_an_image():
    for name in IMAGES:
        assert not [text for instruction, text in STAGES[name].all if instruction == "ARG"]
        assert not re.search(r"\bpip\b", STAGES[name].last("RUN"))


def test_every_argument_is_declared_where_it_is_used():
    for stage in STAGES.values():
        declared = {text.split("=")[0] for name, text in stage.all if name == "ARG"}
        used = {
            word
            for name, text in stage.own
            if name == "RUN"
            for word in re.findall(r"\$\{(\w+)", text)
        }
        assert used <= declared


def test_everything_that_is_copied_is_there_and_sent_to_the_build():
    sent = exclude_paths(str(ROOT), ignored())
    for stage in STAGES.values():
        for name, text in stage.own:
            if name == "COPY" and not text.startswith("--from="):
                assert set(text.split()[:-1]) <= sent
    copied = {text.split()[0] for name, text in WORKER.own if name == "COPY"}
    assert copied >= {"flows", "tasks", "tracefleet", "tracefleet_pipeline", "infra"}


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_a_build_sees_code_alone(tmp_path: Path):
    wanted = [
        "pyproject.toml",
        "flows/commands/sweep.py",
        "infra/templates/a.json",
        "examples/fleet.yaml",
    ]
    unwanted = ["tests/support/tiny.py", ".git/config", ".venv/bin/python", "store/a", "s3-data/a",
                "infra/.env", ".env", "flows/__pycache__/a.pyc", "examples/demo.py"]  # fmt: skip
    for name in (*wanted, *unwanted):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sent = exclude_paths(str(tmp_path), ignored())
    assert {name for name in sent if (tmp_path / name).is_file()} == set(wanted)


def test_the_images_settings_are_ones_that_prefect_has():
    environment = WORKER.environment()
    assert all(map(is_known, environment))
    same = job_templates.ENVIRONMENT.items() - {
        # In a process pool the worker would hand it to its children.
        ("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "reschedule")
    }
    assert same <= environment.items()
    assert environment["TRACEFLEET_CACHE"] == job_templates.CACHE
    assert environment["PYTHONPATH"] == "/app"


class Answer(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def worker_server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_health_check_asks_the_worker(
    worker_server: HTTPServer, monkeypatch: pytest.MonkeyPatch
):
    assert "--with-healthcheck" in json.loads(WORKER.last("CMD"))
    _, command = WORKER.last("HEALTHCHECK").split("CMD ")
    python, *words = json.loads(command)
    assert python == "python"

    def health(port: int) -> int:
        environment = {**os.environ, "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
        done = subprocess.run([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL)
        return done.returncode

    assert health(worker_server.server_port) == 0
    monkeypatch.setattr(Answer, "status", 503)
    assert health(worker_server.server_port) == 1
    assert health(1) == 1  # nobody listens there


def test_the_check_says_that_it_needs_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert image_check([]) == 1
    assert "expected root" in capsys.readouterr().err


# Compose

COMPOSE_TEXT = (ROOT / "infra/compose.yaml").read_text("utf-8")
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
POOLS = yaml.safe_load((ROOT / "infra/pools.yaml").read_text("utf-8"))["pools"]
PREFECT_YAML = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text("utf-8"))


def test_services_are_built_from_here_or_pinned():
    for service in SERVICES.values():
        if "build" in service:
            assert service["build"]["target"] in IMAGES
            assert (ROOT / "infra" / service["build"]["context"]).resolve() == ROOT
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert service["cap_drop"] == ["ALL"]
        else:
            assert re.fullmatch(r"[a-z]+:\d+\.\d+-[a-z]+", service["image"])


def test_build_arguments_are_the_dockerfiles():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    for service in SERVICES.values():
        for name in service.get("build", {}).get("args", {}):
            assert re.search(rf"^ARG {name}=", text, re.MULTILINE)


def test_ports_are_open_to_this_machine_alone():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_has_a_default():
    secrets = re.findall(r"\$\{(\w*(?:KEY|PASSWORD|SECRET)\w*)(.*?)\}", COMPOSE_TEXT)
    assert {name for name, _ in secrets} == {
        "POSTGRES_PASSWORD",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    }
    assert {rest for _, rest in secrets} == {":?set it in infra/.env"}


def test_variables_are_ones_that_prefect_has():
    for service in SERVICES.values():
        assert all(map(is_known, service.get("environment", {})))


def test_each_worker_serves_a_pool_that_is_provisioned():
    workers = {
        n: s for n, s in SERVICES.items() if s.get("command", [])[:2] == ["prefect", "worker"]
    }
    pools = {}
    for name, service in workers.items():
        command = service["command"]
        pools[name] = command[command.index("--pool") + 1]
        assert "--with-healthcheck" in command
        assert int(command[command.index("--limit") + 1]) > 0
        # A worker that is first makes a pool without our queues.
        assert service["depends_on"]["deploy"] == {"condition": "service_completed_successfully"}
    assert pools == {"coordinator": "coordinator", "jit": "jit"}
    assert set(pools.values()) <= POOLS.keys()
    assert SERVICES["jit"]["deploy"] == {"replicas": 2}


def test_what_is_deployed_is_in_the_image():
    assert "--prefect-file infra/prefect.yaml" in SERVICES["deploy"]["command"][-1]
    copied = {text.split()[0] for name, text in WORKER.own if name == "COPY"}
    for deployment in PREFECT_YAML["deployments"]:
        path = deployment["entrypoint"].split(":")[0]
        assert path.split("/")[0] in copied
        assert (ROOT / path).is_file()


def test_who_is_waited_for_can_tell_that_it_is_ready():
    for service in SERVICES.values():
        for name, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
            else:
                assert SERVICES[name]["restart"] == "no"


def test_services_come_back_and_get_time_to_stop():
    for name, service in SERVICES.items():
        assert service["restart"] == ("no" if name == "deploy" else "unless-stopped")
        assert "stop_grace_period" in service or name == "deploy"


def test_python_in_health_checks_compiles():
    tests = [
        s["healthcheck"]["test"] for s in SERVICES.values() if "test" in s.get("healthcheck", {})
    ]
    codes = [test[-1] for test in tests if "-c" in test]
    assert len(codes) == 2
    for code in codes:
        compile(code, "healthcheck", "exec")


def test_volumes_are_declared_and_writable():
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith("$")}
    assert named == COMPOSE["volumes"].keys()
    # A new volume gets the owner of the folder that the image has there.
    made = " ".join(text for stage in STAGES.values() for name, text in stage.own if name == "RUN")
    for target in ("/var/cache/tracefleet", "/var/lib/tracefleet/s3", " store"):
        assert re.search(rf"install -d -o 10001 -g 10001.*{target}", made)


# Job templates

MADE = job_templates.make()
NEURON = [name for name in MADE if "neuron" in name]


def rendered(name: str) -> dict[str, Any]:
    """The job's configuration with every variable at its default."""
    template = MADE[name]
    return dict(apply_values(template["job_configuration"], defaults(template)))


def defaults(template: dict[str, Any]) -> dict[str, Any]:
    properties = template["variables"]["properties"].items()
    return {name: given["default"] for name, given in properties if "default" in given}


def test_the_files_are_what_the_script_makes(tmp_path: Path):
    assert job_templates.main(["--folder", str(tmp_path)]) == 0
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    files = job_templates.TEMPLATES.glob("*.json")
    there = {path.name: path.read_text("utf-8") for path in files}
    assert made == there, "run: .venv/bin/python -m infra.job_templates"


def test_there_is_a_template_for_each_backend_and_platform():
    pools = POOLS.keys() - {"coordinator"}
    assert MADE.keys() == {
        f"{kind}-{pool}.json" for kind in ("ecs", "kubernetes") for pool in pools
    }


@pytest.mark.parametrize("name", MADE)
def test_every_variable_is_declared_and_its_default_valid(name: str):
    template = MADE[name]
    used = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
    declared = template["variables"]["properties"].keys()
    assert used <= declared
    jsonschema.validate(defaults(template), template["variables"])
    for variable in declared - used:
        assert variable in ("labels", "name")


@pytest.mark.parametrize("name", MADE)
def test_stopping_hands_the_run_back(name: str):
    environment = defaults(MADE[name])["env"]
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert all(map(is_known, environment))


def test_images_can_come_from_a_registry():
    for name, template in job_templates.make("registry.test/team/", "2").items():
        backend = name.removesuffix(".json").split("-")[1]
        suffix = "" if backend == "jit" else f"-{backend}"
        assert defaults(template)["image"] == f"registry.test/team/tracefleet{suffix}:2"


@pytest.mark.parametrize("name", [name for name in MADE if name.startswith("ecs")])
def test_ecs_takes_the_task_definition(name: str):
    task = rendered(name)["task_definition"]
    assert task["containerDefinitions"][0]["stopTimeout"] == 120
    # As the worker completes it.
    task["containerDefinitions"][0]["name"] = "prefect"
    task |= {"cpu": str(task["cpu"]), "memory": str(task["memory"])}
    model = botocore.session.get_session().get_service_model("ecs")
    validate_parameters(task, model.operation_model("RegisterTaskDefinition").input_shape)
    # The worker hands in variables as a list, the command as words, and numbers as text.
    request = {**rendered(name)["task_run_request"], "taskDefinition": "arn"}
    del request["overrides"]
    validate_parameters(request, model.operation_model("RunTask").input_shape)


@pytest.mark.parametrize("name", [name for name in MADE if name.startswith("kubernetes")])
def test_a_job_runs_once_and_without_privileges(name: str):
    spec = rendered(name)["job_manifest"]["spec"]
    pod = spec["template"]["spec"]
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == job_templates.USER
    [container] = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert (
        container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    )


@pytest.mark.parametrize("name", NEURON)
def test_neuron_gets_a_device_of_the_right_instance(name: str):
    family = "inf2" if "neuronx" in name else "inf1"
    job = rendered(name)
    if name.startswith("ecs"):
        [container] = job["task_definition"]["containerDefinitions"]
        [device] = container["linuxParameters"]["devices"]
        assert device["hostPath"] == device["containerPath"] == "/dev/neuron0"
        assert container["ulimits"] == [{"name": "nofile", "softLimit": 65535, "hardLimit": 65535}]
        assert f"== {family}." in job["task_definition"]["placementConstraints"][0]["expression"]
        [provider] = job["task_run_request"]["capacityProviderStrategy"]
        assert provider["capacityProvider"] in ("tracefleet-neuronx", "tracefleet-neuron")
    else:
        pod = job["job_manifest"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["aws.amazon.com/neuron"] == 1
        assert pod["nodeSelector"]["node.kubernetes.io/instance-type"].startswith(family)
        assert pod["tolerations"][0]["key"] == "aws.amazon.com/neuron"


def test_without_neuron_no_device_is_asked_for():
    for name in MADE.keys() - set(NEURON):
        assert "neuron" not in json.dumps(rendered(name))


def test_the_server_forgets_old_runs_and_events(monkeypatch: pytest.MonkeyPatch):
    for name, value in SERVICES["server"]["environment"].items():
        if "VACUUM" in name:
            monkeypatch.setenv(name, value)
    vacuum = prefect.settings.Settings().server.services.db_vacuum
    assert vacuum.enabled_vacuum_types == {"events", "flow_runs", "orphans"}
    assert vacuum.retention_period == timedelta(days=90)
    monkeypatch.undo()
    unset = prefect.settings.Settings().server.services.db_vacuum
    assert unset.enabled_vacuum_types == {"events"}, "the control"
