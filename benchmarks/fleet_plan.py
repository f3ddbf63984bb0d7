"""Time of a plan with many fresh entries: ``python -m benchmarks.fleet_plan``.

Tiny local checkpoints with a published conversion each, in a ``file://`` store and in OpenStack
Swift on loopback. Each line is a fresh process. Cold: no digest is cached and every file is hashed;
warm: a repetition, as in a nightly run. ``plan`` is timed alone; the command is timed with its
start, its imports and the reading of the fleet file. CPU is that of the measured process; the
server shares the machine but is not included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tasks.backends.jit import toolchain
from tasks.fetch.checkpoint import resolve
from tasks.fleet.spec import read_fleet
from tasks.plan.fleet import plan
from tasks.publish.identity import RECIPE, Identity
from tests.support import s3_servers
from tests.support.fetch_support import safetensors
from tests.support.reader_support import example_manifest
from tracefleet.channel import ChannelEntry, channel_folder, conversion_folder, entry_path
from tracefleet.manifest_types import Variant
from tracefleet.store import Store, open_writable

WORK = Path(".bench/fleet-plan")
TASK, LENGTHS = "feature-extraction", (32, 128)
#: Digests of files that were just written are not cached (tasks.fetch.digests).
_SETTLE_SECONDS = 2.5


def main() -> int:
    """Measure, print the table, write ``.bench/fleet-plan/fleet-plan.json``."""
    options = _build_parser().parse_args()
    if options.inside:
        print(json.dumps(_measure_plan(Path(options.inside))))
        return 0
    shutil.rmtree(WORK, ignore_errors=True)
    folders = _make_checkpoints(options.entries)
    results = {}
    for kind, target in (("file", 2.0), ("swift", 10.0)):
        with _serving(kind) as url:
            fleet = _write_fleet(kind, folders, url)
            _publish(open_writable(url), folders)
            time.sleep(_SETTLE_SECONDS)
            results[kind] = _measure(kind, fleet, target * options.entries / 1000)
    (WORK / "fleet-plan.json").write_text(json.dumps(results, indent=2))
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1000, help="entries of the fleet (1000)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    return parser


def _make_checkpoints(number: int) -> list[Path]:
    """Create checkpoints whose configs differ; their weights are hard links to one file."""
    weights = WORK / "model.safetensors"
    folders = [(WORK / f"checkpoints/model-{index:05d}").absolute() for index in range(number)]
    weights.parent.mkdir(parents=True)
    weights.write_bytes(safetensors({"a": bytes(4096)}))
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").hardlink_to(weights)
        (folder / "config.json").write_text(f'{{"model_type": "bert", "index": {index}}}')
        for name in ("README.md", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / name).write_text("{}")
    return folders


@contextmanager
def _serving(kind: str) -> Iterator[str]:
    if kind == "file":
        yield f"file://{WORK.absolute()}/store"
        return
    (WORK / "s3-data").mkdir()
    with s3_servers.swift(WORK / "s3-data") as server:
        os.environ.update(server.env())
        yield f"s3://{server.bucket}/fleet"


def _write_fleet(kind: str, folders: list[Path], url: str) -> Path:
    path = WORK / f"{kind}.yaml"
    defaults = {"task": TASK, "lengths": LENGTHS, "store": url}
    entries = {folder.name: {"source": f"file://{folder}"} for folder in folders}
    path.write_text(json.dumps({"defaults": defaults, "entries": entries}, indent=1))
    return path


def _publish(store: Store, folders: list[Path]) -> None:
    """Publish what a plan reads: manifests and channels, without the bundles."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda folder: _publish_one(store, f"file://{folder}"), folders))


def _publish_one(store: Store, source: str) -> None:
    variant = Variant(task=TASK)
    plain = {"source": source, "commit": resolve(source).commit, "variant": variant}
    plain |= {"lengths": LENGTHS, "options": {}, "toolchain": toolchain(), "recipe": RECIPE}
    manifest = example_manifest(**plain, key=Identity.of(example_manifest(**plain)).key)
    entry = ChannelEntry(manifest=manifest.digest, key=manifest.key, previous=None, nonce="0")
    folder = conversion_folder(source, manifest.key)
    store.put_over(f"{folder}/manifest.json", manifest.to_bytes())
    store.put_over(entry_path(channel_folder(source, variant, "latest"), 1), entry.to_bytes())


def _measure(kind: str, fleet: Path, target: float) -> dict[str, dict[str, float]]:
    print(f"\n{kind:24}{'wall s':>8}{'CPU s':>8}{'target':>8}{'load':>8}", flush=True)
    environment = {**os.environ, "TRACEFLEET_CACHE": str((WORK / f"cache-{kind}").absolute())}
    inside = ["-m", "benchmarks.fleet_plan", "--inside", str(fleet)]
    command = ["-m", "flows", "plan", str(fleet), "--quiet"]
    found: dict[str, dict[str, float]] = {}
    for name in ("cold", "warm", "warm again"):
        found[f"plan, {name}"] = json.loads(_run(inside, environment))
    started = time.perf_counter()
    print(_run(command, environment).strip())
    found["command, warm"] = {"wall": time.perf_counter() - started}
    started = time.perf_counter()
    _run(["-m", "flows", "plan", "--help"], environment)
    found["command, --help"] = {"wall": time.perf_counter() - started}
    for name, took in found.items():
        cpu = f"{took['cpu']:.2f}" if "cpu" in took else "-"
        bound = f"{target:.1f}" if name.startswith("plan, warm") else "-"
        print(f"{name:24}{took['wall']:>8.2f}{cpu:>8}{bound:>8}{os.getloadavg()[0]:>8.1f}")
    return found


def _run(arguments: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _measure_plan(fleet: Path) -> dict[str, float]:
    """Plan in this process and return the times; refuse rows that are not fresh."""
    started = time.perf_counter()
    requests = read_fleet(fleet).requests()
    read = time.perf_counter() - started
    started, cpu = time.perf_counter(), time.process_time()
    rows = plan(requests)
    took = {"wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    wrong = [row for row in rows if row.state != "fresh"]
    if wrong:
        raise RuntimeError(f"expected fresh rows only, got {len(wrong)} others: {wrong[0]}")
    return {**took, "fleet file": read}


if __name__ == "__main__":
    sys.exit(main())
