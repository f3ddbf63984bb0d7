"""The checks of the images, in containers."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import yaml

from infra import HOST
from infra.image_check.containers import Container, Network
from infra.image_check.images import BASE, IMAGE, S3_IMAGE, Images
from infra.image_check.report import ROOT, expect, output, say, timing, until
from infra.job_templates import ENVIRONMENT

USER = "10001"
#: Packages that an image must not contain.
UNWANTED = ["pytest", "mypy", "ruff", "moto", "coverage", "pip", "hatchling", "swift", "triton"]
SERVER = f"http://{HOST}:4200/api"
SOURCE = "file:///checkpoint"


def check_image(images: Images, folder: Path) -> None:
    """Check, in containers, everything that a worker relies on."""
    _check_contents(images)
    checkpoint = _checkpoint(folder)
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    os.chown(store, int(USER), int(USER))
    keys = {"AWS_ACCESS_KEY_ID": "tracefleet:check", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
    s3 = {"AWS_ENDPOINT_URL": f"http://{HOST}:9000", "AWS_DEFAULT_REGION": "us-east-1"}
    volumes = (f"--volume={checkpoint}:/checkpoint:ro", f"--volume={store}:/store")
    with ExitStack() as stack:
        network = stack.enter_context(closing(Network(images)))

        def container(image: str, *options: str, **environment: str) -> Container:
            made = Container(network, images, image, *options, **environment)
            return stack.enter_context(closing(made))

        command = container(IMAGE, *volumes, **keys, **s3)
        _check_user(command)
        _check_packages(command)
        _check_conversion(command, store)
        _check_signals(command, folder)
        _check_prefect(container(IMAGE, *volumes, PREFECT_API_URL=SERVER), folder)
        _check_s3(command, container(S3_IMAGE, **keys), folder)


def _check_contents(images: Images) -> None:
    config = images.config(IMAGE)
    expect(config["User"], f"{USER}:{USER}", "the image's user")
    base, size, s3 = (images.size(image) / 1e6 for image in (BASE, IMAGE, S3_IMAGE))
    say(f"size: {size:.0f} MB unpacked, of which the base {base:.0f} MB; S3 server {s3:.0f} MB")
    with images.mounting(IMAGE) as root:
        for cache in (
            "root/.cache",
            "var/lib/tracefleet/.cache",
            "tmp/pip*",
            "var/lib/apt/lists/*",
        ):
            expect([str(path) for path in Path(root).glob(cache)], [], "caches in the image")
        expect(sorted(path.name for path in Path(root, "app").iterdir()),
                ["examples", "flows", "infra", "store", "tasks", "tracefleet"], "/app")  # fmt: skip
    say("contents: no cache of pip or apt, no tests, no repository")


def _check_user(container: Container) -> None:
    expect(container.run("id", "-u"), USER, "the user in a container")
    expect(container.attempt("touch", "/app/x").returncode, 1, "writing to /app")
    container.run("sh", "-c", "touch $TRACEFLEET_CACHE/x $HOME/x && rm $TRACEFLEET_CACHE/x $HOME/x")
    say(f"user: {USER}, writes to its own folders alone")


def _check_packages(container: Container) -> None:
    listing = (
        "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
    )
    lines = container.run("python", "-c", listing).lower().replace("_", "-").splitlines()
    installed = dict(line.split() for line in lines)
    expect(sorted(installed.keys() & set(UNWANTED)), [], "packages that the image must not hold")
    cuda = "import torch; print(torch.version.cuda)"
    expect(container.run("python", "-c", cuda), "None", "CUDA of torch")
    constraints = (ROOT / "constraints.txt").read_text("utf-8").lower().replace("_", "-")
    pins = dict(line.split("==") for line in constraints.splitlines())
    # torch's build is not part of its pin.
    others = {n: v for n, v in installed.items() if n in pins and v.split("+")[0] != pins[n]}
    expect(others, {}, "versions that are not the pinned ones")
    free = sorted(installed.keys() - pins.keys() - {"tracefleet"})
    say(f"packages: {len(installed)}, torch {installed['torch']}; without a pin: {', '.join(free)}")


def _check_conversion(container: Container, store: Path) -> None:
    started = time.monotonic()
    container.run(*_convert("/store"))
    say(f"convert: published in {time.monotonic() - started:.0f} s")
    say(f"verify: {container.run('tracefleet', 'verify', '/store')}")
    run = ("run", "{}", SOURCE, "--ids", "5 6 7 8", "--json")
    inside = json.loads(container.run("tracefleet", *(word.format("/store") for word in run)))
    outside = json.loads(
        output(sys.executable, "-m", "tracefleet.cli", *(word.format(store) for word in run))
    )
    expect(inside["key"], outside["key"], "the conversion outside the container")
    logits = inside["outputs"]["logits"]
    expect(logits["shape"], [1, 4, 256], "the output's shape")
    expect(logits == outside["outputs"]["logits"], True, "equal outputs in and outside")
    say("run: opened in the container and, with equal outputs, outside of it")


def _convert(store: str) -> list[str]:
    words = ["python", "-m", "flows", "convert", "--source", SOURCE, "--task", "fill-mask"]
    return [*words, "--lengths", "16,32", "--store", store]


def _check_signals(container: Container, folder: Path) -> None:
    process = container.start(folder / "sleep.log", "sleep", "600")
    expect(process.uid, int(USER), "the init's user")
    code, seconds = process.terminate(10)
    expect(code, 128 + signal.SIGTERM, "the exit code after SIGTERM")
    say(f"init: SIGTERM ended its child in {seconds:.1f} s, exit {code}")


def _check_prefect(container: Container, folder: Path) -> None:
    server = container.start(folder / "server.log", "prefect", "server", "start", "--host", HOST)
    with timing("server: up"):
        api = f"import urllib.request as u; u.urlopen('{SERVER}/health', timeout=5)"
        answers = ("python", "-c", api)
        until(lambda: container.attempt(*answers).returncode == 0, 180, "the server answers")
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text("utf-8"))
    with timing("deploy: as the compose file does"):
        container.run(*compose["services"]["deploy"]["command"])
    _check_worker(container, folder)
    _check_handing_back(container, folder)
    code, seconds = server.terminate(60)
    say(f"server: SIGTERM ended it in {seconds:.1f} s, exit {code}")


def _check_worker(container: Container, folder: Path) -> None:
    expect(container.health() != 0, True, "a failing health check without a worker")
    say("health: fails without a worker")
    worker = container.start(folder / "worker.log")
    until(lambda: "started!" in worker.log, 120, "the worker has started")
    until(lambda: container.health() == 0, 60, "the worker is healthy")
    say(f"health: passes beside the default command ({' '.join(container.config['Cmd'])})")
    with timing("flow run: a conversion by the worker"):
        _ask_for_run(container, [16, 48], "--watch")
    code, seconds = worker.terminate(60)
    say(f"worker: SIGTERM ended it in {seconds:.1f} s, exit {code}")
    expect(code, 0, "the worker's exit code after SIGTERM")
    expect(container.health() != 0, True, "a failing health check after the worker's end")


def _check_handing_back(container: Container, folder: Path) -> None:
    """Check that a run in its own container, as on ECS and Kubernetes, survives SIGTERM."""
    printed = _ask_for_run(container, [16, 80])
    [run] = re.findall(r"UUID: (\S+)", printed)
    environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    command = ("env", *environment, "prefect", "flow-run", "execute", run)
    first = container.start(folder / "first.log", *command)
    until(lambda: "Beginning flow run" in first.log, 60, "the run has begun")
    code, seconds = first.terminate(60)
    inspect = ("prefect", "flow-run", "inspect", run, "--output", "json")
    state = json.loads(container.run(*inspect))["state"]["name"]
    expect(state, "AwaitingRetry", "the state of a run whose container was told to stop")
    container.run(*command)
    again = json.loads(container.run(*inspect))["state"]["name"]
    expect(again, "Completed", "the state after the run was taken up again")
    say(
        f"flow run: SIGTERM to its container: {state} in {seconds:.1f} s, exit {code}; then {again}"
    )


def _ask_for_run(container: Container, lengths: list[int], *options: str) -> str:
    request = {"source": SOURCE, "task": "fill-mask", "lengths": lengths, "store": "/store"}
    parameter = ("--param", f"request={json.dumps(request)}", *options)
    return container.run("prefect", "deployment", "run", "convert-checkpoint/jit", *parameter)


def _check_s3(container: Container, s3: Container, folder: Path) -> None:
    server = s3.start(folder / "s3.log")
    until(lambda: "export AWS_ENDPOINT_URL" in server.log, 60, "the S3 server is up")
    url = "s3://tracefleet/models"
    container.run(*_convert(url))
    say(f"s3: published to the other container; {container.run('tracefleet', 'verify', url)}")
    code, seconds = server.terminate(20)
    expect(code, 0, "the S3 server's exit code after SIGTERM")
    say(f"s3: SIGTERM ended it in {seconds:.1f} s, exit {code}")


def _checkpoint(folder: Path) -> Path:
    """Save a tiny checkpoint: a real architecture's config with random weights."""
    from transformers.utils.logging import disable_progress_bar

    from tests.support import tiny

    disable_progress_bar()
    checkpoint = tiny.save("bert-mlm", folder / "checkpoints")
    for path in (folder / "checkpoints", checkpoint, *checkpoint.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return checkpoint
