"""A fleet of tiny checkpoints over a real Prefect server and two jit workers: ``make bench-fleet``.

Each conversion is a flow run of its own, in a process of its own. Tiny checkpoints, so that what is
measured is the engine: the peer is the same pipeline called in a loop in one warm process, with no
engine at all, on as many of the same checkpoints as ``--peer`` says, in the same run. CPU is the
whole machine's: server, workers, runs and coordinator share it, so let nothing else run.

With PostgreSQL's server program on the PATH the server keeps its runs there, as in
``infra/compose.yaml``; else in SQLite.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml
from safetensors.torch import load_file, save_file

from tasks.fleet.spec import read_fleet
from tests.support import tiny
from tests.support.postgres import postgres
from tests.support.prefect_platform import Platform
from tracefleet.channel import find_variants
from tracefleet.store import open_store

WORK = Path(".bench/fleet")
WORKERS = 2
LENGTHS = [8, 16]
_SAMPLED = 10  # the history of every tenth run is read


def main() -> int:
    """Measure, print the table, write ``.bench/fleet/fleet.json``."""
    options = _parser().parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    folders = _checkpoints(options.entries)
    peer = _loop(folders[: options.peer])
    with _platform() as (platform, database):
        engine = _fleet(platform, folders, limit=options.limit)
        again = _again(platform, folders)
    found = {"entries": options.entries, "database": database, "loop": peer, "fleet": engine}
    found |= {"again_s": again}
    (WORK / "fleet.json").write_text(json.dumps(found, indent=2))
    print(_table(found, options.limit))
    return 0 if engine["published"] == options.entries else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--entries", type=int, default=1000, help="checkpoints (default: 1000)")
    parser.add_argument("--peer", type=int, default=20, help="of them for the loop (default: 20)")
    parser.add_argument("--limit", type=int, default=2, help="runs of a worker at a time (2)")
    return parser


def _checkpoints(number: int) -> list[Path]:
    """Make BERTs of 160 kB, each with weights of its own."""
    base = tiny.save("bert", WORK / "base")
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    folders = [(WORK / f"models/bert-{index:04d}").absolute() for index in range(number)]
    for index, folder in enumerate(folders):
        shutil.copytree(base, folder)
        own = {**weights, name: weights[name] + 1e-3 * (index + 1)}
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    return folders


def _fleet_file(folders: list[Path], store: str) -> str:
    path = WORK / "fleet.yaml"
    entries = {folder.name: {"source": f"file://{folder}"} for folder in folders}
    defaults = {"task": "feature-extraction", "lengths": LENGTHS, "store": store, "threads": 1}
    path.write_text(yaml.safe_dump({"defaults": defaults, "entries": entries}))
    return str(path.absolute())


def _loop(folders: list[Path]) -> dict[str, float]:
    """Convert without an engine, in this process; the first one is not counted: it warms up."""
    from flows.convert import convert

    fleet = _fleet_file(folders, f"file://{WORK.absolute()}/loop")
    seconds: list[float] = []
    before = 0.0
    for request in read_fleet(fleet).requests().values():
        if seconds:
            before = before or _cpu()
        started = time.perf_counter()
        convert(request)
        seconds.append(time.perf_counter() - started)
    counted = len(seconds) - 1
    return {"wall_s": median(seconds[1:]), "cpu_s": (_cpu() - before) / counted}


def _fleet(platform: Platform, folders: list[Path], *, limit: int) -> dict[str, Any]:
    store = f"file://{WORK.absolute()}/store"
    fleet = _fleet_file(folders, store)
    for _ in range(WORKERS):
        platform.start_worker("jit", limit=limit)
    started, before = time.perf_counter(), _cpu()
    with platform.running("python", "-m", "flows", "fleet", fleet) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
    wall, cpu = time.perf_counter() - started, _cpu() - before
    runs = platform.conversions(store)
    work = [_attested(path) for path in (WORK / "store/attestations").rglob("*.json")]
    return {
        "wall_s": wall,
        "cpu_s": cpu / len(folders),
        "run_s": median(_lived(platform, run["id"]) for run in runs[::_SAMPLED]),
        "work_s": median(work),
        "published": len(list(find_variants(open_store(store)))),
        "runs": len(runs),
    }


def _again(platform: Platform, folders: list[Path]) -> float:
    """Run the fleet once more: everything is fresh."""
    fleet = _fleet_file(folders, f"file://{WORK.absolute()}/store")
    started = time.perf_counter()
    done = platform.run("python", "-m", "flows", "fleet", fleet, "--quiet")
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - started


def _lived(platform: Platform, run: str) -> float:
    """Seconds from the moment that a worker took a run to its last state."""
    states = platform.ask(f"flow_run_states/?flow_run_id={run}")
    when = {state["type"]: datetime.fromisoformat(state["timestamp"]) for state in reversed(states)}
    ended = max(datetime.fromisoformat(state["timestamp"]) for state in states)
    return (ended - when["PENDING"]).total_seconds()


def _attested(path: Path) -> float:
    return float(sum(json.loads(path.read_text())["seconds"].values()))


def _cpu() -> float:
    """Seconds of processor time that this machine has spent on anything."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


@contextmanager
def _platform() -> Iterator[tuple[Platform, str]]:
    folder = (WORK / "prefect").absolute()
    folder.mkdir(parents=True)
    with postgres() as url:
        platform = Platform(folder, url)
        try:
            platform.start_server()
            _check(platform.run("python", "-m", "infra.provision"))
            deploy = ("--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
            _check(platform.run("prefect", *deploy))
            yield platform, "PostgreSQL" if url else "SQLite"
        finally:
            platform.stop()


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise RuntimeError(f"{done.args}: {done.stdout}{done.stderr}")


def _table(found: dict[str, Any], limit: int) -> str:
    loop, fleet, entries = found["loop"], found["fleet"], found["entries"]
    each = fleet["wall_s"] / entries
    rows = [
        ("published", f"{fleet['published']} of {entries} in {fleet['runs']} runs"),
        ("server, places", f"on {found['database']}, {WORKERS} workers x {limit}"),
        ("wall", f"{fleet['wall_s']:.0f} s, {60 / each:.1f} conversions a minute"),
        ("a run", f"{fleet['run_s']:.2f} s, of it conversion {fleet['work_s']:.2f} s (medians)"),
        ("overhead of a run", f"{fleet['run_s'] - fleet['work_s']:.2f} s (target 1.5)"),
        ("CPU, each conversion", f"{fleet['cpu_s']:.2f} s over the whole machine"),
        ("CPU, loop without engine", f"{loop['cpu_s']:.2f} s ({loop['wall_s']:.2f} s wall)"),
        ("CPU overhead", f"{fleet['cpu_s'] - loop['cpu_s']:.2f} s each"),
        ("the fleet again, all fresh", f"{found['again_s']:.1f} s"),
    ]
    return "\n".join(f"{name:<28}{value}" for name, value in rows)


if __name__ == "__main__":
    raise SystemExit(main())
