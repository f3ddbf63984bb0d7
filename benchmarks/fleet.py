"""A fleet of small checkpoints over a real server and two jit workers: ``make bench-fleet``.

Each conversion is a flow run of its own; those of a batch share its process. Tiny checkpoints by
default, so that what is measured is the engine: the peer is the same pipeline called in a loop in
one warm process, with no engine at all, on as many of the same checkpoints as ``--peer`` says, in
the same run. CPU is the whole machine's: server, workers, runs and coordinator share it, so let
nothing else run.

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
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from examples.sample import ensure_sample
from tasks.fleet.spec import read_fleet
from tests.support import tiny
from tests.support.postgres import postgres
from tests.support.prefect_platform import Platform
from tracefleet.channel import find_variants
from tracefleet.store import open_store

WORK = Path(".bench/fleet")
WORKERS = 2
#: Models by name, and the lengths that they are converted at.
LENGTHS = {"tiny": [8, 16], "minilm": [32, 128], "bert-base": [32, 128]}


def main() -> int:
    """Measure, print the table, write ``.bench/fleet/fleet.json``."""
    options = _parser().parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    folders = _checkpoints(options.entries, options.model)
    lengths = LENGTHS[options.model]
    peer = _loop(_fleet_file(folders[: options.peer], "loop", lengths))
    fleet = _fleet_file(folders, "store", lengths)
    with _platform() as (platform, database):
        engine = _fleet(platform, fleet, limit=options.limit)
        again = _again(platform, fleet)
    found = {
        "model": options.model,
        "entries": options.entries,
        "database": database,
        "loop": peer,
        "fleet": engine,
    }
    found |= {"again_s": again}
    (WORK / "fleet.json").write_text(json.dumps(found, indent=2))
    print(_table(found, options.limit))
    return 0 if engine["published"] == options.entries else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--entries", type=int, default=1000, help="checkpoints (default: 1000)")
    parser.add_argument("--peer", type=int, default=20, help="of them for the loop (default: 20)")
    parser.add_argument("--model", default="tiny", choices=LENGTHS, help="checkpoints (tiny)")
    parser.add_argument("--limit", type=int, default=2, help="runs of a worker at a time (2)")
    return parser


def _checkpoints(number: int, model: str) -> list[Path]:
    """Make checkpoints of one architecture, each with weights of its own."""
    base = _base(model)
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    folders = [(WORK / f"models/bert-{index:04d}").absolute() for index in range(number)]
    for index, folder in enumerate(folders):
        shutil.copytree(base, folder)
        own = {**weights, name: weights[name] + 1e-3 * (index + 1)}
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    return folders


def _base(model: str) -> Path:
    if model == "tiny":
        return tiny.save("bert", WORK / "base")  # 160 kB
    if model == "minilm":
        return ensure_sample()  # 91 MB
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig()).save_pretrained(WORK / "base/bert")
    return WORK / "base/bert"  # 438 MB


def _fleet_file(folders: list[Path], store: str, lengths: list[int]) -> str:
    path = WORK / f"{store}.yaml"
    entries = {folder.name: {"source": f"file://{folder}"} for folder in folders}
    defaults = {
        "task": "feature-extraction",
        "lengths": lengths,
        "store": f"file://{WORK.absolute()}/{store}",
        "threads": 1,
    }
    path.write_text(yaml.safe_dump({"defaults": defaults, "entries": entries}))
    return str(path.absolute())


def _loop(fleet: str) -> dict[str, float]:
    """Convert without an engine, in this process; the first one is not counted: it warms up."""
    from flows.convert import convert

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


def _fleet(platform: Platform, fleet: str, *, limit: int) -> dict[str, Any]:
    for _ in range(WORKERS):
        platform.start_worker("jit", limit=limit)
    command = ("python", "-m", "flows", "fleet", fleet, "--places", str(limit))
    started, before = time.perf_counter(), _cpu()
    with platform.running(*command) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
    wall, cpu = time.perf_counter() - started, _cpu() - before
    work = [_attested(path) for path in (WORK / "store/attestations").rglob("*.json")]
    batches = platform.ask("flow_runs/filter", {"flows": {"name": {"any_": ["convert-batch"]}}})
    lived = sum(_lived(platform, batch["id"]) for batch in batches)
    return {
        "wall_s": wall,
        "cpu_s": cpu / len(work),
        "work_s": median(work),
        "overhead_s": (lived - sum(work)) / len(work),
        "published": len(list(find_variants(open_store(f"file://{WORK.absolute()}/store")))),
        "runs": len(platform.conversions(f"file://{WORK.absolute()}/store")),
        "batches": len(batches),
    }


def _again(platform: Platform, fleet: str) -> float:
    """Run the fleet once more: everything is fresh."""
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
        ("batch runs", f"{fleet['batches']}"),
        ("server, places", f"on {found['database']}, {WORKERS} workers x {limit}"),
        ("wall", f"{fleet['wall_s']:.0f} s, {60 / each:.1f} conversions a minute"),
        ("a conversion", f"{fleet['work_s']:.2f} s (median)"),
        ("overhead, each conversion", f"{fleet['overhead_s']:.2f} s of the time of batch runs"),
        ("CPU, each conversion", f"{fleet['cpu_s']:.2f} s over the whole machine"),
        ("CPU, loop without engine", f"{loop['cpu_s']:.2f} s ({loop['wall_s']:.2f} s wall)"),
        ("CPU overhead", f"{fleet['cpu_s'] - loop['cpu_s']:.2f} s each"),
        ("the fleet again, all fresh", f"{found['again_s']:.1f} s"),
    ]
    return "\n".join(f"{name:<28}{value}" for name, value in rows)


if __name__ == "__main__":
    raise SystemExit(main())
