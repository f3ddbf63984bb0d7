"""Containers of the images, run by buildah on a network that is nothing but loopback."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil

from infra.image_check.images import Images
from infra.image_check.report import CheckError, until


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
        # What a script starts with `&` ignores SIGINT, and so would all that is started here; but a
        # container's first process never does.
        enter = ("env", "--default-signal=INT", "nsenter", f"--net=/proc/{self._holder.pid}/ns/net")
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
        self._init = until(lambda: self._find(init), 20, f"{init} has started")

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
