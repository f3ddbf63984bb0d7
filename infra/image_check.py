"""Build the image without Docker, and try it out: ``make image-check``.

For a person on a Debian machine, as root: it installs buildah and debootstrap where they are
missing, takes some ten minutes and 15 GB of disk, and removes what it made. The containers share
one network that has nothing but loopback: whatever works here needs no other host.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from infra import HOST

ROOT = Path(__file__).parent.parent
SUITE = "bookworm"
BASE = "localhost/debian-python:bookworm"
IMAGE = "localhost/tracefleet"
S3_IMAGE = "localhost/tracefleet-s3"
USER = "10001"
PACKAGES = ("buildah", "debootstrap", "iproute2", "util-linux")
COMMANDS = ("buildah", "debootstrap", "ip", "unshare", "nsenter")
#: What no image of a pipeline needs.
UNWANTED = [
    "pytest",
    "mypy",
    "ruff",
    "moto",
    "coverage",
    "pip",
    "build",
    "hatchling",
    "swift",
    "nvidia-cublas",
    "triton",
]
T = TypeVar("T")
SERVER = f"http://{HOST}:4200/api"
SOURCE = "file:///checkpoint"


class CheckError(Exception):
    """Something is not as it has to be; the message says what."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, check, clean up; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.image_check", description=__doc__)
    parser.add_argument("--folder", type=Path, help="build here and keep it all for the next time")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        _install_tools()
        with _folder(options.folder) as folder:
            # Layers make the next build faster, and this one slower.
            images = Images(folder, keep_layers=options.folder is not None)
            images.build()
            check_image(images, folder)
    except (CheckError, subprocess.CalledProcessError) as error:
        print(f"image-check: FAILED: {error}", file=sys.stderr)
        return 1
    print(f"image-check: passed in {time.monotonic() - started:.0f} s")
    return 0


def _install_tools() -> None:
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if os.geteuid() != 0:
        raise CheckError(
            "expected root (debootstrap and chroot need it); run: sudo make image-check"
        )
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise CheckError(f"expected {', '.join(missing)}, and no apt-get here to install them")
    _say(f"installing {' '.join(PACKAGES)}")
    _run("apt-get", "update", "--quiet", "--quiet")
    _run("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *PACKAGES)


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="tracefleet-image-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Images:
    """The images of one folder, apart from any others of this machine."""

    def __init__(self, folder: Path, *, keep_layers: bool) -> None:
        self._folder, self._keep_layers = folder, keep_layers
        self._log = folder / "build.log"
        store = ("--root", folder / "storage", "--runroot", folder / "run")
        for driver in ("overlay", "vfs"):  # the second works everywhere, but copies every layer
            self._buildah = ("buildah", *map(str, store), "--storage-driver", driver)
            probe = subprocess.run(self.command("info"), capture_output=True, check=False)
            if probe.returncode == 0:
                break
        else:
            raise CheckError(f"buildah can't store images in {folder}: {probe.stderr.decode()}")

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a buildah command."""
        return [*self._buildah, *arguments]

    def ask(self, *arguments: str) -> str:
        """Run a buildah command and return its output."""
        return _output(*self.command(*arguments)).strip()

    def build(self) -> None:
        """Build the base, the image and the S3 server's image."""
        with _timed("base: Debian with python3, venv and pip"):
            self._build_base()
        with _timed("image"):
            self._build_target("worker", IMAGE)
        with _timed("image of the S3 server"):
            self._build_target("s3", S3_IMAGE)

    def size(self, image: str) -> int:
        """Return the bytes of an image's files, unpacked."""
        with self.mounted(image) as root:
            return int(_output("du", "--summarize", "--block-size=1", root).split()[0])

    @contextmanager
    def mounted(self, image: str) -> Iterator[str]:
        """Show an image's files in a folder."""
        container = self.ask("from", "--pull-never", image)
        try:
            yield self.ask("mount", container)
        finally:
            self.ask("rm", container)

    def config(self, image: str) -> dict[str, Any]:
        """Return what the image says about itself: user, entry point, command, health check."""
        shown = json.loads(self.ask("inspect", "--type", "image", image))
        config: dict[str, Any] = shown["Docker"]["config"]
        return config

    def _build_base(self) -> None:
        if BASE in self.ask("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
            return
        rootfs = self._folder / "rootfs"
        include = "--include=ca-certificates,python3,python3-venv,python3-pip"
        mirror = _apt_mirror()
        self._logged("debootstrap", "--variant=minbase", include, SUITE, str(rootfs), *mirror)
        for kept in ("cache/apt/archives", "lib/apt/lists"):
            shutil.rmtree(rootfs / "var" / kept)
        container = self.ask("from", "scratch")
        self.ask("copy", "--quiet", container, str(rootfs), "/")
        self.ask("commit", "--quiet", container, BASE)
        self.ask("rm", container)
        shutil.rmtree(rootfs)

    def _build_target(self, target: str, image: str) -> None:
        # Docker's format, because the other one has no health check.
        self._logged(
            *self.command("build", "--isolation", "chroot", "--pull-never"),
            f"--layers={str(self._keep_layers).lower()}",
            *("--format", "docker", "--build-arg", f"BASE_IMAGE={BASE}"),
            *("--target", target, "--tag", image, *_pip_volumes(self._folder), str(ROOT)),
        )

    def _logged(self, *command: str) -> None:
        with self._log.open("ab") as log:
            outcome = subprocess.run(command, stdout=log, stderr=log, check=False)
        if outcome.returncode:
            tail = self._log.read_text("utf-8", "replace").splitlines()[-30:]
            raise CheckError(
                "\n".join([f"{shlex.join(command)}: exit {outcome.returncode}", *tail])
            )


def _apt_mirror() -> list[str]:
    """The mirror that this machine's own packages come from, where apt tells."""
    wanted = ("Created-By: Packages", f"Codename: {SUITE}", "Component: main")
    command = ("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted)
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    # The distribution's archive, not one that carries a few packages for it.
    return [uri for uri in found if uri.rstrip("/").endswith("/debian")][:1]


def _pip_volumes(folder: Path) -> list[str]:
    """Mount this machine's configuration of pip, and the files it names, into the build alone."""
    listed = _output(sys.executable, "-m", "pip", "config", "list")
    settings = dict(re.findall(r"^\S*?\.([a-z-]+)='(.*)'$", listed, re.MULTILINE))
    path = folder / "pip.conf"
    path.write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))
    # Only constraints.txt pins what goes into the image.
    settings.pop("constraint", None)
    named = {word.removeprefix("file://") for value in settings.values() for word in value.split()}
    places = {str(word): word for word in named if word.startswith("/") and Path(word).exists()}
    # A repository's index and its files lie side by side.
    places |= {str(Path(word).parent): str(Path(word).parent) for word in list(places)
               if Path(word).is_dir() and Path(word).name == "simple"}  # fmt: skip
    places["/etc/pip.conf"] = str(path)
    return [f"--volume={here}:{there}:ro" for there, here in sorted(places.items())]


class Network:
    """A network of loopback alone, which containers share."""

    def __init__(self, images: Images) -> None:
        self._images = images
        holder = "ip link set lo up && echo up && exec sleep infinity"
        command = ("unshare", "--net", "sh", "-c", holder)
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "up\n":
            raise CheckError("a network of its own: unshare --net failed")

    def close(self) -> None:
        """Take the network down."""
        self._holder.kill()
        self._holder.wait()

    def command(self, container: Container, *words: str) -> list[str]:
        """Return the command line that runs words in a container in this network."""
        enter = ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net")
        run = ("run", "--isolation", "chroot", *container.options, container.name, "--", *words)
        return [*enter, *self._images.command(*run)]


class Container:
    """A container of an image: as the image says, on the shared network."""

    def __init__(
        self, network: Network, images: Images, image: str, *options: str, **environment: str
    ) -> None:
        self._network, self._images = network, images
        self.config = images.config(image)
        self.name = images.ask("from", "--pull-never", image)
        # A chroot has no process ids of its own, so that tini isn't the first process in there.
        environment |= {"TINI_SUBREAPER": "1"}
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        self.options = (*options, *variables)
        self._started: list[subprocess.Popen[bytes]] = []

    def run(self, *words: str) -> str:
        """Run words under the image's entry point; return their output."""
        outcome = self.attempt(*words)
        if outcome.returncode:
            printed = outcome.stdout + outcome.stderr
            raise CheckError(f"{shlex.join(words)}: exit {outcome.returncode}\n{printed}")
        return outcome.stdout.strip()

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run words under the image's entry point, whatever comes of it."""
        command = self._network.command(self, *self.config["Entrypoint"], *words)
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def start(self, log: Path, *words: str) -> Process:
        """Start words, by default the image's command, under its entry point."""
        words = words or tuple(self.config["Cmd"])
        command = self._network.command(self, *self.config["Entrypoint"], *words)
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        self._started.append(process)
        return Process(process, Path(self.config["Entrypoint"][0]).name, log)

    def health(self) -> int:
        """Run the image's health check; return its exit code."""
        kind, *words = self.config["Healthcheck"]["Test"]
        if kind != "CMD":
            raise CheckError(f"health check: expected CMD, got {kind}")
        return self.attempt(*words).returncode

    def close(self) -> None:
        """End what was started here, and remove the container."""
        for process in self._started:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()
        self._images.ask("rm", self.name)


class Process:
    """A running container's first process: its init."""

    def __init__(self, process: subprocess.Popen[bytes], init: str, log: Path) -> None:
        self._process, self._log = process, log
        self._init = _until(lambda: self._find(init), 20, f"{init} has started")

    def _find(self, init: str) -> psutil.Process | None:
        children = psutil.Process(self._process.pid).children(recursive=True)
        return next((child for child in children if child.name() == init), None)

    @property
    def uid(self) -> int:
        """The user that it runs as."""
        return int(self._init.uids().real)

    @property
    def children(self) -> list[str]:
        """The names of the processes below the init."""
        return [child.name() for child in self._init.children(recursive=True)]

    def terminate(self, seconds: float) -> tuple[int, float]:
        """Send SIGTERM to the init; return the exit code and how long it took."""
        started = time.monotonic()
        self._init.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise CheckError(f"SIGTERM: still running after {seconds:.0f} s\n{self.log}") from None
        return code, time.monotonic() - started

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text("utf-8", "replace")


def check_image(images: Images, folder: Path) -> None:
    """Prove, in containers, what a worker relies on."""
    _check_contents(images)
    checkpoint = _checkpoint(folder)
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    os.chown(store, int(USER), int(USER))
    network = Network(images)
    keys = {"AWS_ACCESS_KEY_ID": "tracefleet:check", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
    s3 = {"AWS_ENDPOINT_URL": f"http://{HOST}:9000", "AWS_DEFAULT_REGION": "us-east-1"}
    volumes = (f"--volume={checkpoint}:/checkpoint:ro", f"--volume={store}:/store")
    containers = [
        Container(network, images, IMAGE, *volumes, **keys, **s3),
        Container(network, images, IMAGE, *volumes, PREFECT_API_URL=SERVER),
        Container(network, images, S3_IMAGE, **keys),
    ]
    try:
        _check_user(containers[0])
        _check_conversion(containers[0], store)
        _check_signals(containers[0], folder)
        _check_worker(containers[1], folder)
        _check_s3(containers[0], containers[2], folder)
    finally:
        for container in containers:
            container.close()
        network.close()


def _check_contents(images: Images) -> None:
    config = images.config(IMAGE)
    _expect(config["User"], f"{USER}:{USER}", "the image's user")
    base, size, s3 = (images.size(image) / 1e6 for image in (BASE, IMAGE, S3_IMAGE))
    _say(f"size: {size:.0f} MB unpacked, of which the base {base:.0f} MB; S3 server {s3:.0f} MB")
    with images.mounted(IMAGE) as root:
        for cache in (
            "root/.cache",
            "var/lib/tracefleet/.cache",
            "tmp/pip*",
            "var/lib/apt/lists/*",
        ):
            _expect([str(path) for path in Path(root).glob(cache)], [], "caches in the image")
        _expect(sorted(path.name for path in Path(root, "app").iterdir()),
                ["examples", "flows", "infra", "store", "tasks", "tracefleet"], "/app")  # fmt: skip
    _say("contents: no cache of pip or apt, no tests, no repository")


def _check_user(container: Container) -> None:
    _expect(container.run("id", "-u"), USER, "the user in a container")
    _expect(container.attempt("touch", "/app/x").returncode, 1, "writing to /app")
    container.run("sh", "-c", "touch $TRACEFLEET_CACHE/x $HOME/x && rm $TRACEFLEET_CACHE/x $HOME/x")
    listing = "import importlib.metadata as m; print(*{d.name.lower() for d in m.distributions()})"
    installed = set(container.run("python", "-c", listing).split())
    _expect(sorted(installed & set(UNWANTED)), [], "packages that the image must not hold")
    cuda = container.run(
        "python", "-c", "import torch; print(torch.__version__, torch.version.cuda)"
    )
    _expect(cuda.split()[1], "None", "CUDA of torch")
    _say(f"user: {USER}, can't write to /app; {len(installed)} packages, torch {cuda.split()[0]}")


def _check_conversion(container: Container, store: Path) -> None:
    started = time.monotonic()
    container.run(*_convert("/store"))
    _say(f"convert: published in {time.monotonic() - started:.0f} s")
    _say(f"verify: {container.run('tracefleet', 'verify', '/store')}")
    run = ("run", "{}", SOURCE, "--ids", "5 6 7 8", "--json")
    inside = json.loads(container.run("tracefleet", *(word.format("/store") for word in run)))
    outside = json.loads(
        _output(sys.executable, "-m", "tracefleet.cli", *(word.format(store) for word in run))
    )
    _expect(inside["key"], outside["key"], "the conversion outside the container")
    logits = inside["outputs"]["logits"]
    _expect(logits["shape"], [1, 4, 256], "the output's shape")
    _expect(logits == outside["outputs"]["logits"], True, "equal outputs in and outside")
    _say("run: opened in the container and, with equal outputs, outside of it")


def _convert(store: str) -> list[str]:
    words = ["python", "-m", "flows", "convert", "--source", SOURCE, "--task", "fill-mask"]
    return [*words, "--lengths", "16,32", "--store", store]


def _check_signals(container: Container, folder: Path) -> None:
    process = container.start(folder / "sleep.log", "sleep", "600")
    _expect(process.uid, int(USER), "the init's user")
    code, seconds = process.terminate(10)
    _expect(code, 128 + signal.SIGTERM, "the exit code after SIGTERM")
    _say(f"init: SIGTERM ended its child in {seconds:.1f} s, exit {code}")


def _check_worker(container: Container, folder: Path) -> None:
    _expect(container.health() != 0, True, "a failing health check without a worker")
    _say("health: fails without a worker")
    server = container.start(folder / "server.log", "prefect", "server", "start", "--host", HOST)
    with _timed("server: up"):
        api = f"import urllib.request as u; u.urlopen('{SERVER}/health', timeout=5)"
        answers = ("python", "-c", api)
        _until(lambda: container.attempt(*answers).returncode == 0, 180, "the server answers")
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text("utf-8"))
    with _timed("deploy: as the compose file does"):
        container.run(*compose["services"]["deploy"]["command"])
    worker = container.start(folder / "worker.log")
    _until(lambda: "started!" in worker.log, 120, "the worker has started")
    _until(lambda: container.health() == 0, 60, "the worker is healthy")
    _say(f"health: passes beside the default command ({' '.join(container.config['Cmd'])})")
    request = {"source": SOURCE, "task": "fill-mask", "lengths": [16, 48], "store": "/store"}
    parameter = ("--param", f"request={json.dumps(request)}", "--watch")
    with _timed("flow run: a conversion by the worker"):
        container.run("prefect", "deployment", "run", "convert-checkpoint/jit", *parameter)
    code, seconds = worker.terminate(60)
    _say(f"worker: SIGTERM ended it in {seconds:.1f} s, exit {code}")
    _expect(code, 0, "the worker's exit code after SIGTERM")
    _expect(container.health() != 0, True, "a failing health check after the worker's end")
    code, seconds = server.terminate(60)
    _say(f"server: SIGTERM ended it in {seconds:.1f} s, exit {code}")


def _check_s3(container: Container, s3: Container, folder: Path) -> None:
    server = s3.start(folder / "s3.log")
    _until(lambda: "export AWS_ENDPOINT_URL" in server.log, 60, "the S3 server is up")
    url = "s3://tracefleet/models"
    container.run(*_convert(url))
    _say(f"s3: published to the other container; {container.run('tracefleet', 'verify', url)}")
    code, seconds = server.terminate(20)
    _expect(code, 0, "the S3 server's exit code after SIGTERM")
    _say(f"s3: SIGTERM ended it in {seconds:.1f} s, exit {code}")


def _checkpoint(folder: Path) -> Path:
    """Save a tiny checkpoint: a real architecture's config with random weights."""
    from transformers.utils.logging import disable_progress_bar

    from tests import tiny

    disable_progress_bar()
    checkpoint = tiny.save("bert-mlm", folder / "checkpoints")
    for path in (folder / "checkpoints", checkpoint, *checkpoint.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return checkpoint


def _until(condition: Callable[[], T | None], seconds: float, what: str) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.5)
    raise CheckError(f"expected within {seconds:.0f} s that {what}")


def _expect(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise CheckError(f"{what}: expected {expected!r}, got {got!r}")


@contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    _say(f"{what}: {time.monotonic() - started:.0f} s")


def _say(text: str) -> None:
    print(f"image-check: {text}", flush=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _output(*command: str) -> str:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if outcome.returncode:
        raise CheckError(f"{shlex.join(command)}: exit {outcome.returncode}\n{outcome.stderr}")
    return outcome.stdout


if __name__ == "__main__":
    sys.exit(main())
