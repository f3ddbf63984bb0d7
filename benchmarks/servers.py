"""``python -m benchmarks.servers``: threads, processes, first calls and reloads behind a server.

Each part runs in a fresh process of this module and prints its figures, which are ratios of what
was measured in turns: on a machine that does something else as well, only these mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

import tracefleet
from benchmarks.conversion import WORK
from benchmarks.forks import BATCH, ROW, STORE, Found, convert, measure_forks
from tracefleet.channel import advance
from tracefleet.store import open_writable

_ROUNDS, _SECONDS = 5, 1.0


def main() -> int:
    """Run every part, print its figures, write ``.bench/servers.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=sorted(_PARTS))
    options = parser.parse_args()
    if options.part is not None:
        print(json.dumps(_PARTS[options.part]()))
        return 0
    convert()
    found: dict[str, Found] = {}
    for part in _PARTS:
        command = [sys.executable, "-m", "benchmarks.servers", "--part", part]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[part] = json.loads(done.stdout.splitlines()[-1])
        for name, value in found[part].items():
            shown = value if isinstance(value, str) else f"{value:.2f}"
            print(f"{part:<10} {name:<60} {shown}", flush=True)
    (WORK / "servers.json").write_text(json.dumps(found, indent=2))
    return 0


def measure_threads() -> Found:
    """Compare callers in threads of one process, with one thread of torch for each call and two.

    Processor time tells what a call costs on a machine where others wait for the cores as well.
    """
    model = tracefleet.open(STORE)
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    for _ in range(_ROUNDS):
        for inner in (1, 2):
            torch.set_num_threads(inner)
            for callers in (1, 2, 8):
                name = f"{callers} callers, torch.set_num_threads({inner})"
                rate, cost = _count_calls(lambda: model(ROW), callers)
                rates.setdefault(name, []).append(rate)
                costs.setdefault(name, []).append(cost)
    first = next(iter(rates))
    found: Found = {}
    for name in rates:
        found[f"{name}: calls"] = _compare(rates[name], rates[first])
        found[f"{name}: processor time a call"] = _compare(costs[name], costs[first])
    return {**found, "spread of the first, largest / smallest": _spread(rates[first])}


def _compare(values: list[float], others: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(values, others, strict=True))


def _count_calls(call: Callable[[], object], callers: int) -> tuple[float, float]:
    """Return calls a second of so many threads, and processor seconds of one."""
    counts, started, spent = [0] * callers, time.perf_counter(), time.process_time()

    def run(place: int) -> None:
        while time.perf_counter() < started + _SECONDS:
            call()
            counts[place] += 1

    threads = [threading.Thread(target=run, args=(place,)) for place in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(counts)
    # The last calls end later, on a busy machine much later.
    seconds = time.perf_counter() - started
    return total / seconds, (time.process_time() - spent) / total


def measure_processes() -> Found:
    """Compare worker processes with one thread of torch each, and with torch's own choice."""
    rates: dict[str, list[float]] = {}
    for _ in range(_ROUNDS):
        for workers, inner in ((1, 1), (2, 1), (2, 2), (4, 2)):
            name = f"{workers} processes, OMP_NUM_THREADS={inner}, times one and one"
            rates.setdefault(name, []).append(_run_workers(workers, inner))
    first = next(iter(rates.values()))
    return {name: _compare(values, first) for name, values in rates.items()}


_WORKER = """
import sys, time, tracefleet
model, row = tracefleet.open({store!r}), {row!r}
model(row)
print("ready", flush=True)
input()
started, count = time.perf_counter(), 0
while time.perf_counter() < started + {seconds}:
    model(row)
    count += 1
print(count / (time.perf_counter() - started), flush=True)
"""


def _run_workers(workers: int, inner: int) -> float:
    code = _WORKER.format(store=str(STORE), row=ROW, seconds=_SECONDS)
    own = {**os.environ, "OMP_NUM_THREADS": str(inner)}
    processes = [_start(code, own) for _ in range(workers)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def _start(code: str, variables: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=variables, text=True, stdin=pipe, stdout=pipe)


def measure_first_calls() -> Found:
    """Compare the first call after an open, and the first of a length, with those after them."""
    first, later, again = [], [], []
    for _ in range(_ROUNDS):
        model = tracefleet.open(STORE)
        first.append(_time(lambda model=model: model(ROW)))  # type: ignore[misc]
        later.append(statistics.median(_time(lambda model=model: model(ROW)) for _ in range(20)))  # type: ignore[misc]
        other = [ROW[0] * 3]
        new = _time(lambda model=model, other=other: model(other))  # type: ignore[misc]
        known = [_time(lambda model=model, other=other: model(other)) for _ in range(20)]  # type: ignore[misc]
        again.append(new / statistics.median(known))
    return {
        "first call after an open, times later ones": statistics.median(first)
        / statistics.median(later),
        "first call of another length, times later ones": statistics.median(again),
    }


def measure_reloads() -> Found:
    """Call while a channel moves, and tell the slowest call, and whether one failed."""
    store = open_writable(STORE, check=False)
    found = next(iter(tracefleet.find(store)))
    keys = [path.name for path in sorted((STORE / "conversions").glob("*/*"))]
    torch.set_num_threads(1)
    still: list[float] = []
    moving: list[float] = []
    with tracefleet.watch(store, every=3600) as model:
        for turn in range(2 * _ROUNDS):
            still += [_time(lambda: model(ROW)) for _ in range(50)]
            manifest = _read_manifest(keys[turn % 2])
            advance(store, found.folder, manifest_digest=manifest.digest, key=manifest.key)
            looking = threading.Thread(target=model.look)
            looking.start()
            while looking.is_alive():
                moving.append(_time(lambda: model(ROW)))
            looking.join()
    slow = statistics.quantiles(moving, n=100)[98]
    return {
        "calls while another is opened and warmed": str(len(moving)),
        "their median, times that of others": statistics.median(moving) / statistics.median(still),
        "their 99th of 100, times the median of others": slow / statistics.median(still),
    }


def _read_manifest(key: str) -> tracefleet.Manifest:
    (path,) = STORE.glob(f"conversions/*/{key}/manifest.json")
    return tracefleet.parse(Path(path).read_bytes())


def measure_event_loop() -> Found:
    """Compare how long a loop stands still: called in it, and in a thread beside it."""
    model = tracefleet.open(STORE)
    model(BATCH)

    async def beat(work: Callable[[], object], *, beside: bool) -> float:
        gaps, last = [0.0], time.perf_counter()
        task = asyncio.create_task(asyncio.to_thread(work)) if beside else None
        if task is None:
            await asyncio.sleep(0)
            work()
        while task is None or not task.done():
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()
            if task is None:
                break
        return max(gaps)

    here, beside = [], []
    for _ in range(_ROUNDS):
        here.append(asyncio.run(beat(lambda: model(BATCH), beside=False)))
        beside.append(asyncio.run(beat(lambda: model(BATCH), beside=True)))
    ratio = statistics.median(here) / statistics.median(beside)
    return {"the loop stands still, called in it / in a thread": ratio}


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _spread(values: list[float]) -> float:
    return max(values) / min(values)


_PARTS: dict[str, Callable[[], Found]] = {
    "threads": measure_threads,
    "processes": measure_processes,
    "forks": measure_forks,
    "first": measure_first_calls,
    "reloads": measure_reloads,
    "loop": measure_event_loop,
}

if __name__ == "__main__":
    raise SystemExit(main())
