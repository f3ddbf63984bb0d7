"""Base job templates of ECS and Kubernetes work pools: ``python -m infra.job_templates``.

Each file of ``infra/templates`` is Prefect's own template with our image, resources and shutdown.
Run this again after an upgrade of Prefect or a new version of tracefleet; a test compares its
output with the files. None of it was run on AWS: see ``infra/README.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]

TEMPLATES = Path(__file__).with_name("templates")
USER = 10001  # the image's user
CACHE = "/var/cache/tracefleet"
ENVIRONMENT = {
    # The automation for lost hosts waits for three of these.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Without it a container that gets SIGTERM leaves its run "Running".
    "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
    "PREFECT_CLIENT_MAX_RETRIES": "10",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,tracefleet",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What a backend's containers need.

    Attributes:
        name: name of the backend and of its work pool.
        repository: repository of its image.
        cpus: number of CPUs for one run.
        gibibytes: memory for one run.
        instance: AWS instance type whose Neuron devices it uses; None: it needs no device.
    """

    name: str
    repository: str
    cpus: int
    gibibytes: int
    instance: str | None = None


# Neuron's compiler needs far more memory than running its programs. A run gets a bit less than its
# instance has, because the host's own agents need some.
BACKENDS = (
    Backend(name="jit", repository="tracefleet", cpus=4, gibibytes=16),
    Backend(
        name="neuronx",
        repository="tracefleet-neuronx",
        cpus=30,
        gibibytes=112,
        instance="inf2.8xlarge",
    ),
    Backend(
        name="neuron",
        repository="tracefleet-neuron",
        cpus=7,
        gibibytes=13,
        instance="inf1.2xlarge",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.job_templates", description=__doc__)
    parser.add_argument("--folder", type=Path, default=TEMPLATES, help="default: infra/templates")
    parser.add_argument("--registry", default="", help="prefix of the images' names")
    parser.add_argument(
        "--tag", default=_read_version(), help="tag of the images (default: our version)"
    )
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, template in make(options.registry, options.tag).items():
        (options.folder / name).write_text(format_template(template), "utf-8")
    return 0


def make(registry: str = "", tag: str | None = None) -> dict[str, JsonObject]:
    """Return each template by the name of its file.

    Args:
        registry: registry of the images, such as ``registry.example.org/team``.
        tag: tag of the images; our version if not given.
    """
    made = {}
    for backend in BACKENDS:
        path = "/".join(part for part in (registry.rstrip("/"), backend.repository) if part)
        image = f"{path}:{tag or _read_version()}"
        made[f"ecs-{backend.name}.json"] = _make_ecs(backend, image)
        made[f"kubernetes-{backend.name}.json"] = _make_kubernetes(backend, image)
    return made


def format_template(template: JsonObject) -> str:
    """Return a template as the text of its file."""
    return json.dumps(template, indent=2) + "\n"


def read_stock(package: str, kind: str) -> JsonObject:
    """Return Prefect's own template for a type of work pool."""
    data = files("prefect.server.api") / "collections_data/views/aggregate-worker-metadata.json"
    found: JsonObject = json.loads(data.read_text("utf-8"))[package][kind]
    return copy.deepcopy(found["default_base_job_configuration"])


def _make_ecs(backend: Backend, image: str) -> JsonObject:
    template = read_stock("prefect-aws", "ecs")
    _set_defaults(template, image)
    variable = _make_setter(template)
    task = template["job_configuration"]["task_definition"]
    [container] = task["containerDefinitions"]
    container["stopTimeout"] = variable(
        "stop_timeout",
        "integer",
        120,
        "Seconds between SIGTERM and SIGKILL. Fargate allows 120 at most.",
        minimum=2,
    )
    variable("cpu", "integer", backend.cpus * 1024)
    variable("memory", "integer", backend.gibibytes * 1024)
    variable("family", "string", f"tracefleet-{backend.name}")
    if backend.instance is None:
        size = "GiB of disk, for checkpoints and what becomes of them (Fargate: 21 to 200)."
        gibibytes = variable("ephemeral_storage", "integer", 100, size, minimum=21, maximum=200)
        task["ephemeralStorage"] = {"sizeInGiB": gibibytes}
        return template
    # There is no Neuron on Fargate. The first run may have to wait for an instance.
    task["requiresCompatibilities"] = ["EC2"]
    variable("launch_type", "string", "EC2")
    variable("task_start_timeout_seconds", "integer", 1200)
    provider = {"capacityProvider": f"tracefleet-{backend.name}", "weight": 1, "base": 0}
    variable("capacity_provider_strategy", "array", [provider])
    device = variable("neuron_device", "string", "/dev/neuron0", "The Neuron device for a run.")
    devices = [{"hostPath": device, "containerPath": device, "permissions": ["read", "write"]}]
    container["linuxParameters"] = {"devices": devices}
    # AWS's advice for compilers that run in parallel; a host's own limit may be 1024.
    most = variable("open_files", "integer", 65535, "Files that a run may have open.", minimum=1)
    container["ulimits"] = [{"name": "nofile", "softLimit": most, "hardLimit": most}]
    instance = variable("instance_type", "string", backend.instance, _INSTANCE)
    expression = f"attribute:ecs.instance-type == {instance}"
    task["placementConstraints"] = [{"type": "memberOf", "expression": expression}]
    return template


_INSTANCE = "The type of EC2 instance that a run is placed on."


def _make_kubernetes(backend: Backend, image: str) -> JsonObject:
    template = read_stock("prefect-kubernetes", "kubernetes")
    _set_defaults(template, image)
    variable = _make_setter(template)
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    pod["terminationGracePeriodSeconds"] = variable(
        "termination_grace_period",
        "integer",
        120,
        "Seconds between SIGTERM and SIGKILL.",
        minimum=1,
    )
    _restrict(pod, container)
    pod["volumes"] = [{"name": "cache", "emptyDir": {}}]
    container["volumeMounts"] = [{"name": "cache", "mountPath": CACHE}]
    # No limit of CPU: it would slow a run down while cores are idle.
    variable("cpu_request", "string", str(backend.cpus))
    variable("memory_request", "string", f"{backend.gibibytes}Gi")
    variable("memory_limit", "string", f"{backend.gibibytes}Gi")
    variable("finished_job_ttl", "integer", 3600)
    # Pulling a gigabyte of image, perhaps on a new node.
    variable("pod_watch_timeout_seconds", "integer", 1200)
    if backend.instance is None:
        return template
    limits = container["resources"]["limits"]
    limits["aws.amazon.com/neuron"] = variable(
        "neuron_devices", "integer", 1, "Neuron devices for a run.", minimum=1
    )
    instance = variable("instance_type", "string", backend.instance, _INSTANCE)
    pod["nodeSelector"] = {"node.kubernetes.io/instance-type": instance}
    taint = {"key": "aws.amazon.com/neuron", "operator": "Exists", "effect": "NoSchedule"}
    pod["tolerations"] = [taint]
    return template


def _restrict(pod: JsonObject, container: JsonObject) -> None:
    """Run as the image's user, without privileges."""
    pod["automountServiceAccountToken"] = False  # no run talks to Kubernetes
    pod["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def _set_defaults(template: JsonObject, image: str) -> None:
    """Set the variables that both kinds share."""
    variable = _make_setter(template)
    variable("image", "string", image)
    variable("command", "string", "prefect flow-run execute")
    variable("env", "object", dict(ENVIRONMENT))


def _make_setter(template: JsonObject) -> Callable[..., str]:
    """Return a function that sets a variable's default, or adds the variable.

    That function returns the placeholder of the variable for the job's configuration.
    """
    properties: JsonObject = template["variables"]["properties"]

    def set_variable(
        name: str, kind: str, default: Any, description: str = "", **limits: int
    ) -> str:
        if description:
            title = name.replace("_", " ").title()
            properties[name] = {"title": title, "description": description, "type": kind, **limits}
        if properties[name]["type"] != kind:
            raise ValueError(f"{name}: expected {kind}, got {properties[name]['type']}")
        properties[name]["default"] = default
        return "{{ " + name + " }}"

    return set_variable


def _read_version() -> str:
    project = tomllib.loads((TEMPLATES.parent.parent / "pyproject.toml").read_text("utf-8"))
    return str(project["project"]["version"])


if __name__ == "__main__":
    sys.exit(main())
