"""The images and pins of Neuron workers, as far as they can be checked without AWS's packages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.neuron_support import versions
from tests.test_image import Stage, is_known, read_dockerfile

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "infra" / "neuron"
BACKENDS = ("neuronx", "neuron")
#: From AWS's package repository; everything else is on the public index.
AWS = {
    "neuronx": {"torch-neuronx", "neuronx-cc", "torch", "torch-xla"},
    "neuron": {"torch-neuron", "neuron-cc", "torch"},
}
#: What a worker imports: each has to be pinned.
NEEDED = {"boto3", "huggingface_hub", "prefect", "psutil", "pydantic", "s3fs", "safetensors"} | {
    "PyYAML", "matplotlib", "numpy", "tokenizers", "transformers",
}  # fmt: skip
#: What these hosts can't have in the version of the others.
OLDER = {"transformers", "tokenizers", "numpy", "matplotlib", "huggingface_hub", "torch"}


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))


def stages(backend: str) -> dict[str, Stage]:
    return read_dockerfile(f"infra/neuron/{backend}.Dockerfile")


def own(backend: str) -> dict[str, str]:
    return pins((FOLDER / f"constraints-{backend}.txt").read_text("utf-8"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_package_of_a_worker_is_pinned_as_elsewhere(backend: str):
    found, others = own(backend), pins((ROOT / "constraints.txt").read_text("utf-8"))
    assert NEEDED | AWS[backend] <= found.keys()
    shared = found.keys() & others.keys() - OLDER
    assert {"prefect", "fastapi", "SQLAlchemy", "boto3", "s3fs"} <= shared
    assert {name: found[name] for name in shared} == {name: others[name] for name in shared}


def test_aws_packages_are_those_that_the_double_imitates():
    newer, older = own("neuronx"), own("neuron")
    assert newer["neuronx-cc"] == versions.NEURONX_CC
    assert newer["torch-neuronx"] == versions.TORCH_NEURONX.removesuffix("+double")
    assert older["neuron-cc"] == versions.NEURON_CC
    assert older["torch-neuron"] == versions.TORCH_NEURON.removesuffix("+double")
    # The package's own version begins with the torch that it is for.
    for backend, package in (("neuronx", "torch-neuronx"), ("neuron", "torch-neuron")):
        assert own(backend)[package].startswith(own(backend)["torch"])


@pytest.mark.parametrize(("backend", "pinned"), [("neuronx", "4.57"), ("neuron", "4.46")])
def test_transformers_is_a_version_that_the_tests_run_on(backend: str, pinned: str):
    tested = pins((ROOT / f"constraints-transformers-{pinned}.txt").read_text("utf-8"))
    assert {name: own(backend)[name] for name in tested} == tested


@pytest.mark.parametrize("backend", BACKENDS)
def test_addresses_of_packages_are_arguments_alone(backend: str):
    text = (FOLDER / f"{backend}.Dockerfile").read_text("utf-8")
    assert not re.findall(r"https?://(?!127\.0\.0\.1)", text)
    assert 'if [ -z "${NEURON_PIP_INDEX}" ]' in text
    build, worker = stages(backend)["build"], stages(backend)["worker"]
    assert "NEURON_PIP_INDEX=" in [rest for name, rest in build.own if name == "ARG"]
    assert "PIP" not in json.dumps([rest for _, rest in worker.own])
    compiler = "neuronx-cc" if backend == "neuronx" else "neuron-cc"
    assert f"{compiler} --version" in build.last("RUN")  # placeholders have no command


@pytest.mark.parametrize(("backend", "python"), [("neuronx", "3.11"), ("neuron", "3.10")])
def test_an_image_is_a_worker_of_its_pool(backend: str, python: str):
    text = (FOLDER / f"{backend}.Dockerfile").read_text("utf-8")
    assert f"ARG BASE_IMAGE=python:{python}-" in text
    worker = stages(backend)["worker"]
    assert worker.last("USER") == "10001:10001"
    assert worker.last("ENTRYPOINT") == '["/usr/bin/tini", "--"]'
    command = json.loads(worker.last("CMD"))
    assert command[command.index("--pool") + 1] == backend
    assert command[command.index("--limit") + 1] == "1"
    assert "--with-healthcheck" in command
    assert worker.environment()["PYTHONPATH"] == "/app"
    assert all(is_known(variable) for variable in worker.environment())
    copied = {rest.split()[-2] for name, rest in worker.own if name == "COPY"}
    assert {"flows", "tasks", "tracefleet", "infra"} <= copied
    assert all((ROOT / name).exists() for name in copied if not name.startswith("/"))
    script = re.search(r'\["python", "-c",\s+"(.*)"\]', worker.last("HEALTHCHECK"))
    assert script is not None
    compile(script[1], "healthcheck", "exec")


def test_the_check_of_pins_sees_what_differs():
    assert pins("# a==1\na==1\nb-c==2.0+x\n\nd>=3") == {"a": "1", "b-c": "2.0+x"}
