"""What becomes of a model in forked processes: whether a child can call, and what its pages cost.

`benchmarks.servers` prints it. Each case has a parent of its own, because threads of torch that a
fork does not take along belong to the parent that called before it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import torch

import tracefleet
from benchmarks.conversion import WORK
from benchmarks.readers import read_pss
from examples.sample import ensure_sample

STORE = WORK / "servers-store"
ROW = [list(range(1000, 1032))]
BATCH = ROW * 32
_PATIENCE = 20.0
Found = dict[str, float | str]


def convert() -> None:
    """Publish two conversions in one channel, for what serves and what comes after it."""
    from flows.convert import convert as convert_request
    from tasks.request.conversion import make_request
    from tasks.steps import Steps

    for lengths in ((32, 128), (32, 64, 128)):
        asked = {"source": str(ensure_sample()), "lengths": lengths, "store": str(STORE)}
        convert_request(make_request({**asked, "task": "feature-extraction"}), Steps())


def measure_forks() -> Found:
    """Tell what becomes of a model that was opened before the fork, and what its pages cost."""
    found: Found = {}
    for inner in (1, 2):
        for called in (False, True):
            name = f"opened{' and called' if called else ''} before the fork, {inner} threads"
            found[name] = _fork_after(inner, called=called)
    alone = sum(_fork_workers(4, opened=False))
    found["memory of 4 forks, opened before / after"] = sum(_fork_workers(4, opened=True)) / alone
    return found


def _fork_after(inner: int, *, called: bool) -> str:
    """Say whether a child can call; the parent is a process of its own, for its threads' sake."""
    code = (
        "import os, torch, tracefleet\n"
        f"torch.set_num_threads({inner})\n"
        f"model, batch = tracefleet.open({str(STORE)!r}), {BATCH!r}\n"
        f"{'model(batch)' if called else ''}\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    model(batch)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        return "answers" if process.wait(_PATIENCE) == 0 else "dies"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"hangs ({_PATIENCE:.0f} s)"


def _fork_workers(count: int, *, opened: bool) -> list[float]:
    """Return the memory in MB of so many forks that have called once, pages shared in parts."""
    torch.set_num_threads(1)
    model, children = tracefleet.open(STORE) if opened else None, []
    for _ in range(count):
        ready, done = os.pipe()
        child = os.fork()
        if child == 0:
            (model or tracefleet.open(STORE))(ROW)
            os.write(done, b"x")
            time.sleep(3600)
        os.read(ready, 1)
        children.append(child)
    found = [read_pss(child) for child in children]
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return found
