"""Build the images with buildah, on a Debian from debootstrap."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.image_check.report import ROOT, CheckError, output, timing

SUITE = "bookworm"
BASE = "localhost/debian-python:bookworm"
IMAGE = "localhost/tracefleet"
S3_IMAGE = "localhost/tracefleet-s3"


class Images:
    """The images in one folder, separate from others on this machine."""

    def __init__(self, folder: Path, *, keep_layers: bool) -> None:
        self._folder, self._keep_layers = folder, keep_layers
        self._log = folder / "build.log"
        store = ("--root", folder / "storage", "--runroot", folder / "run")
        for driver in ("overlay", "vfs"):  # the second works everywhere, but copies every layer
            temporary = f"TMPDIR={folder}"  # or what is killed leaves folders behind
            self._buildah = ("env", temporary, "buildah", *map(str, store))
            self._buildah += ("--storage-driver", driver)
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
        return output(*self.command(*arguments)).strip()

    def build(self) -> None:
        """Build the base, the image and the S3 server's image."""
        with timing("base: Debian with python3, venv and pip"):
            self._build_base()
        with timing("image"):
            self._build_target("worker", IMAGE)
        with timing("image of the S3 server"):
            self._build_target("s3", S3_IMAGE)

    def size(self, image: str) -> int:
        """Return the bytes of an image's files, unpacked."""
        with self.mounting(image) as root:
            return int(output("du", "--summarize", "--block-size=1", root).split()[0])

    @contextmanager
    def mounting(self, image: str) -> Iterator[str]:
        """Mount an image's files in a folder and yield its path."""
        container = self.ask("from", "--pull-never", image)
        try:
            yield self.ask("mount", container)
        finally:
            self.ask("rm", container)

    def config(self, image: str) -> dict[str, Any]:
        """Return the image's configuration: user, entry point, command, health check."""
        shown = json.loads(self.ask("inspect", "--type", "image", image))
        config: dict[str, Any] = shown["Docker"]["config"]
        return config

    def _build_base(self) -> None:
        if BASE in self.ask("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
            return
        rootfs = self._folder / "rootfs"
        include = "--include=ca-certificates,python3,python3-venv,python3-pip"
        mirror = _apt_mirror()
        self._run_logged("debootstrap", "--variant=minbase", include, SUITE, str(rootfs), *mirror)
        for kept in ("cache/apt/archives", "lib/apt/lists"):
            shutil.rmtree(rootfs / "var" / kept)
        container = self.ask("from", "scratch")
        self.ask("copy", "--quiet", container, str(rootfs), "/")
        self.ask("commit", "--quiet", container, BASE)
        self.ask("rm", container)
        shutil.rmtree(rootfs)

    def _build_target(self, target: str, image: str) -> None:
        # Docker's format, because the other one has no health check.
        self._run_logged(
            *self.command("build", "--isolation", "chroot", "--pull-never"),
            f"--layers={str(self._keep_layers).lower()}",
            *("--format", "docker", "--build-arg", f"BASE_IMAGE={BASE}"),
            *("--target", target, "--tag", image, *_pip_volumes(self._folder), str(ROOT)),
        )

    def _run_logged(self, *command: str) -> None:
        with self._log.open("ab") as log:
            outcome = subprocess.run(command, stdout=log, stderr=log, check=False)
        if outcome.returncode:
            tail = self._log.read_text("utf-8", "replace").splitlines()[-30:]
            raise CheckError(
                "\n".join([f"{shlex.join(command)}: exit {outcome.returncode}", *tail])
            )


def _apt_mirror() -> list[str]:
    """Return the mirror that this machine's own packages come from, if apt reports it."""
    wanted = ("Created-By: Packages", f"Codename: {SUITE}", "Component: main")
    command = ("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted)
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    # The distribution's archive, not one that carries a few packages for it.
    return [uri for uri in found if uri.rstrip("/").endswith("/debian")][:1]


def _pip_volumes(folder: Path) -> list[str]:
    """Mount this machine's configuration of pip, and the files it names, into the build alone."""
    listed = output(sys.executable, "-m", "pip", "config", "list")
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
