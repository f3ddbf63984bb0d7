"""Build the image without Docker and check it in containers: ``make image-check``.

It runs on Debian as root, installs buildah and debootstrap if they are missing, takes about ten
minutes and 10 GB of disk, and removes what it created. The containers share one network with
nothing but loopback: whatever passes needs no other host.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.image_check.checks import check_image
from infra.image_check.images import Images
from infra.image_check.report import CheckError, say

PACKAGES = ("buildah", "debootstrap", "iproute2", "util-linux")
COMMANDS = ("buildah", "debootstrap", "ip", "unshare", "nsenter")


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
    say(f"installing {' '.join(PACKAGES)}")
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


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
