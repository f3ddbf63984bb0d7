"""``python -m benchmarks.readers``: what opening costs, in seconds and in memory of processes.

Memory is the proportional set size: a page that several processes share counts once, in parts.
Beside it stand a process that has imported torch alone, and readers that load the archive the plain
way.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import tracefleet
from benchmarks.conversion import WORK, build
from examples.sample import ensure_sample
from tasks.request.conversion import make_request
from tasks.steps import Steps

_STORE = WORK / "readers-store"
_ROUNDS = 5
_IDLE = "import torch"
_OURS = (
    "import tracefleet; model = tracefleet.open({store!r}, {source!r}); model([[101, 102, 103]])"
)
_PLAIN = """
import torch
model = torch.jit.load({bundle!r}).eval()
with torch.no_grad():
    model(*[torch.ones(1, 3, dtype=torch.int64)] * {inputs})
"""
_WAIT = "\nprint('ready', flush=True)\ninput()"


def main() -> int:
    """Measure, print, write ``.bench/readers.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("minilm", "bert-base"), default="bert-base")
    parser.add_argument("--readers", type=int, default=4)
    options = parser.parse_args()
    checkpoint = ensure_sample() if options.model == "minilm" else build(options.model)
    bundle, inputs = convert(checkpoint)
    ours = _OURS.format(store=str(_STORE), source=str(checkpoint))
    plain = _PLAIN.format(bundle=str(bundle), inputs=inputs)
    found = {
        "archive MB": bundle.stat().st_size / 1e6,
        "import torch, MB": sum(measure_memory(_IDLE, 1)),
        "one reader, MB": sum(measure_memory(ours, 1)),
        f"{options.readers} readers, MB": sum(measure_memory(ours, options.readers)),
        f"{options.readers} plain loads, MB": sum(measure_memory(plain, options.readers)),
        "open, s": time_open(checkpoint),
        "plain load, s": time_plain(bundle),
    }
    for name, value in found.items():
        print(f"{name:<20} {value:8.2f}")
    (WORK / "readers.json").write_text(json.dumps({options.model: found}, indent=2))
    return 0


def convert(checkpoint: Path) -> tuple[Path, int]:
    """Convert once; return the bundle and the number of its inputs."""
    from flows.convert import convert as convert_request

    request = {"source": str(checkpoint), "task": "feature-extraction", "lengths": (32, 128)}
    manifest = convert_request(make_request({**request, "store": str(_STORE)}), Steps()).manifest
    (path,) = _STORE.glob(f"conversions/*/{manifest.key}/{manifest.bundle.path}")
    return path.resolve(), len(manifest.inputs)


def measure_memory(code: str, count: int) -> list[float]:
    """Return the megabytes of so many processes that have run some code and wait."""
    command = [sys.executable, "-c", code + _WAIT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    found = [read_pss(process.pid) for process in processes]
    for process in processes:
        process.communicate("\n")
    return found


def read_pss(pid: int) -> float:
    """Return a process's proportional set size in megabytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (kilobytes,) = re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(kilobytes) * 1024 / 1e6


def time_open(checkpoint: Path) -> float:
    """Return the median of seconds that an open takes, every byte hashed."""
    return _time(lambda: tracefleet.open(_STORE, checkpoint))


def time_plain(bundle: Path) -> float:
    """Return the median of seconds that torch's own loader takes."""
    return _time(lambda: torch.jit.load(bundle))


def _time(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
