"""The images and pins of Neuron workers, as far as they can be checked without AWS's packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra import job_templates
from tests.support.neuron_support import versions
from tests.test_image import POOLS, WORKER, Stage, ignored, read_dockerfile
from tests.test_inf1_importable import complaints

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "infra" / "neuron"
BACKENDS = ("neuronx", "neuron")
#: What the public index has placeholders of.
AWS = {"neuronx": {"torch-neuronx", "neuronx-cc"}, "neuron": {"torch-neuron", "neuron-cc"}}
PYTHON = {"neuronx": "3.11", "neuron": "3.10"}
#: What a worker imports: each has to be pinned.
NEEDED = {"boto3", "huggingface_hub", "prefect", "psutil", "pydantic", "s3fs", "safetensors"} | {
    "Jinja2", "PyYAML", "numpy", "tokenizers", "torch", "transformers",
}  # fmt: skip
#: What these hosts can't have in the version of the others.
OLDER = {"transformers", "tokenizers", "numpy", "huggingface_hub", "torch"}
#: Prefect 3.9 has left Python 3.10; a 3.8 worker serves a 3.9 server (tests/test_fleet_server.py).
# torch-neuron reads its graphs with an old protobuf.
OLDER_ON = {"neuronx": OLDER, "neuron": OLDER | {"prefect", "protobuf"}}
ADDRESSES = {
    "neuronx": ("NEURON_PIP_INDEX", "NEURON_APT_REPOSITORY", "NEURON_APT_KEY"),
    "neuron": ("NEURON_PIP_INDEX",),
}
#: The name of a host, with a domain that packages and pages are found under.
HOST = re.compile(r"\b[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:com|org|net|io|dev)\b")
#: The reader's own, in an example.
OURS = {"registry.example.org"}
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def stages(backend: str) -> dict[str, Stage]:
    return read_dockerfile(f"infra/neuron/{backend}.Dockerfile")


def own(backend: str) -> dict[str, str]:
    return pins((FOLDER / f"constraints-{backend}.txt").read_text("utf-8"))


def test_the_check_of_pins_sees_what_differs():
    assert pins("# a==1\na==1\nb-c==2.0+x\n\nd>=3") == {"a": "1", "b-c": "2.0+x"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_package_of_a_worker_is_pinned_as_elsewhere(backend: str):
    found, others = own(backend), pins((ROOT / "constraints.txt").read_text("utf-8"))
    text = (FOLDER / f"constraints-{backend}.txt").read_text("utf-8")
    assert len(found) == len([line for line in text.splitlines() if not line.startswith("#")])
    assert NEEDED | AWS[backend] <= found.keys()
    shared = found.keys() & others.keys() - OLDER_ON[backend]
    assert {"fastapi", "SQLAlchemy", "boto3", "s3fs"} <= shared
    assert {name: found[name] for name in shared} == {name: others[name] for name in shared}
    assert numbers(found["prefect"]) == ((3, 8) if backend == "neuron" else (3, 9))


def test_aws_packages_are_those_that_the_double_imitates():
    newer, older = own("neuronx"), own("neuron")
    assert newer["neuronx-cc"] == versions.NEURONX_CC == "2.27.5334.0"
    assert newer["torch-neuronx"] == versions.TORCH_NEURONX.removesuffix("+double")
    assert older["neuron-cc"] == versions.NEURON_CC == "1.24.0.0"
    assert older["torch-neuron"] == versions.TORCH_NEURON.removesuffix("+double")
    # The package's own version begins with the torch that it is for.
    for backend, package in (("neuronx", "torch-neuronx"), ("neuron", "torch-neuron")):
        assert own(backend)[package].startswith(f"{own(backend)['torch']}.")
    assert newer["torch-xla"] == newer["torch"]


@pytest.mark.parametrize(("backend", "pinned"), [("neuronx", "4.57"), ("neuron", "4.46")])
def test_transformers_is_a_version_that_the_tests_run_on(backend: str, pinned: str):
    tested = pins((ROOT / f"constraints-transformers-{pinned}.txt").read_text("utf-8"))
    assert {name: own(backend)[name] for name in tested} == tested


def test_nothing_is_newer_or_older_than_aws_packages_take():
    newer, older = own("neuronx"), own("neuron")
    assert numbers(newer["transformers"]) >= (4, 52)
    assert numbers(older["transformers"]) < (4, 49)  # the first that wants torch 2
    assert numbers(older["protobuf"]) < (3, 20)
    assert numbers(older["numpy"]) < (2, 0)
    assert numbers("4.9.1") < numbers("4.52") < numbers("4.100.0")


def hosts(text: str) -> set[str]:
    return set(HOST.findall(text)) - OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_address_is_written_down(path: Path):
    text = path.read_text("utf-8")
    assert not hosts(text)
    assert "://" not in text


def test_an_address_would_be_found():
    assert hosts("--extra-index-url https://pip.example.com") == {"pip.example.com"}
    assert hosts("deb example.net jammy, a.registry.example.org") == {
        "example.net",
        "a.registry.example.org",
    }
    assert not hosts("registry.example.org/team python:3.11-slim 2.9.0 README.md http.client")


@pytest.mark.parametrize("backend", BACKENDS)
def test_addresses_are_arguments_of_the_build_alone(backend: str):
    build, worker = stages(backend)["build"], stages(backend)["worker"]
    declared = {rest for name, rest in build.own if name == "ARG"}
    assert {
        f"{name}=" for name in (*ADDRESSES[backend], "PIP_INDEX_URL", "TORCH_INDEX")
    } <= declared
    kept = json.dumps(worker.own)
    assert not re.search("PIP|INDEX|NEURON_APT", kept)
    for stage in (build, worker):
        names = {rest.split("=")[0] for name, rest in stage.own if name == "ARG"}
        runs = " ".join(rest for name, rest in stage.own if name == "RUN")
        assert set(re.findall(r"\$\{(\w+)", runs)) == names - {"PIP_INDEX_URL"}  # pip's own


def run_checks(backend: str, folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run what a build runs before it sets anything up; a key is copied from a file of the test."""
    instructions = stages(backend)["build"].own
    begin = [name for name, _ in instructions].index("ENV")
    commands = [rest for name, rest in instructions[:begin] if name == "RUN"]
    script = " && ".join(f"( {command} )" for command in commands).replace("/tmp/", f"{folder}/")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "NEURON_APT_SUITE": "jammy", **given}
    return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("backend", "missing"), [(b, name) for b in BACKENDS for name in ("", *ADDRESSES[b])]
)
def test_a_build_without_an_address_stops_at_once(backend: str, missing: str, tmp_path: Path):
    key = tmp_path / "KEY"
    key.write_text("key")
    given = dict.fromkeys(ADDRESSES[backend], key.as_uri())
    done = run_checks(backend, tmp_path, **{**given, **({missing: ""} if missing else {})})
    if missing:
        assert done.returncode == 1
        assert re.search(rf"^NEURON.*{missing}|^{missing}", done.stderr)
        assert "--build-arg" in done.stderr
        return
    assert (done.returncode, done.stderr) == (0, "")
    if backend == "neuronx":
        assert (tmp_path / "neuron.asc").read_text() == "key"
        line = f"deb [signed-by=/etc/apt/neuron.asc] {key.as_uri()} jammy main\n"
        assert (tmp_path / "neuron.list").read_text() == line


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_build_checks_that_aws_packages_were_installed(backend: str):
    build = stages(backend)["build"]
    copied = [rest.split() for name, rest in build.own if name == "COPY"]
    assert copied == [
        ["infra/neuron/check_pins.py", "/tmp/check_pins.py"],
        [f"infra/neuron/constraints-{backend}.txt", "/tmp/constraints.txt"],
    ]
    checks = build.last("RUN")
    assert "/opt/venv/bin/python /tmp/check_pins.py /tmp/constraints.txt" in checks
    assert checks.endswith(f"{backend}-cc --version")  # placeholders have no command


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ("2.27.5334.0", ""),
        ("2.27.5334.0+1a2b3c4d", ""),
        ("1.0.post1", "neuronx-cc: expected 2.27.5334.0, got 1.0.post1"),
        ("2.27.5334.01", "got 2.27.5334.01"),
        ("", "got none"),
    ],
)
def test_a_placeholder_is_told(installed: str, told: str, tmp_path: Path):
    if installed:
        versions.write_distribution(tmp_path, "neuronx_cc", installed)
    file = tmp_path / "constraints.txt"
    file.write_text("# a==1\nneuronx-cc==2.27.5334.0\n")
    done = subprocess.run(
        [sys.executable, str(FOLDER / "check_pins.py"), str(file)],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (1 if told else 0)
    assert told in done.stderr
    assert done.stderr.count("\n") == bool(told)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_is_a_worker_of_its_pool(backend: str):
    text = (FOLDER / f"{backend}.Dockerfile").read_text("utf-8")
    assert f"\nARG BASE_IMAGE=python:{PYTHON[backend]}-slim-bookworm\n" in text
    worker = stages(backend)["worker"]
    assert list(stages(backend))[-1] == "worker"
    assert worker.last("USER") == WORKER.last("USER") == "10001:10001"
    assert worker.last("ENTRYPOINT") == WORKER.last("ENTRYPOINT")
    assert worker.last("HEALTHCHECK") == WORKER.last("HEALTHCHECK")
    names = [instruction for instruction, _ in worker.own]
    assert "RUN" not in names[names.index("USER") :]
    command = json.loads(worker.last("CMD"))
    assert command[:3] == ["prefect", "worker", "start"]
    options = dict(zip(command[3:-1:2], command[4:-1:2], strict=True))
    assert options == {"--pool": backend, "--type": "process", "--limit": "1"}
    assert command[-1] == "--with-healthcheck"
    assert backend in POOLS
    assert f"tracefleet-{backend}" in {one.repository for one in job_templates.BACKENDS}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_has_the_settings_of_the_others(backend: str):
    environment = stages(backend)["worker"].environment()
    usual = WORKER.environment()
    assert usual.keys() <= environment.keys()
    differ = {name for name in usual if environment[name] != usual[name]}
    assert differ <= {"PATH"}
    assert environment.keys() - usual.keys() <= {"LD_LIBRARY_PATH"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_code_that_is_copied_is_sent_and_compiles(backend: str):
    worker = stages(backend)["worker"]
    copied = {
        rest.split()[0]
        for name, rest in worker.own
        if name == "COPY" and not rest.startswith("--from=")
    }
    assert copied == {"flows", "tasks", "tracefleet", "infra"}
    assert {f"!{name}" for name in copied} <= set(ignored())
    compiles = next(rest for name, rest in worker.own if name == "RUN" and "compileall" in rest)
    assert all(re.search(rf"\b{name}\b", compiles) for name in copied)
    # A build stops at what its Python can't read. What is imported: tests/test_inf1_importable.py.
    if backend == "neuron":
        files = [path for name in copied for path in (ROOT / name).rglob("*.py")]
        assert len(files) > 100
        told = {path: complaints(path.read_text("utf-8")) for path in files}
        assert not [path for path, lines in told.items() if "syntax" in "".join(lines)]
    assert "syntax" in complaints("try: pass\nexcept* OSError: pass")[0]


def test_the_driver_is_the_hosts():
    for backend in BACKENDS:
        runs = " ".join(rest for name, rest in stages(backend)["worker"].own if name == "RUN")
        assert "dkms" not in runs
    runs = " ".join(rest for name, rest in stages("neuronx")["worker"].own if name == "RUN")
    assert set(re.findall(r"aws-neuronx-[\w-]+", runs)) == {
        "aws-neuronx-runtime-lib",
        "aws-neuronx-collectives",
        "aws-neuronx-tools",
    }
    assert "aws-neuronx-dkms=2.24.*" in (FOLDER / "README.md").read_text("utf-8")
