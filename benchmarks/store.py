"""``make bench-store``: publish, pull and list on S3, against plain boto3 with sha256.

The server is OpenStack Swift on loopback (``infra.s3_server``). Each transfer runs in a fresh
process, ours and the peer's interleaved. Only the transfer is timed, checks included: the peer
hashes the file before it uploads it and after it downloads it. Memory is the growth of anonymous
memory at its peak; file-backed pages do not count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.store_listing import measure_listing
from tracefleet.store.s3 import S3Store

WORK = Path(".bench/store")
BUCKET = "tracefleet"
PATH = "conversions/bench/model.pt"
PREFIX, MANY = "bench", "many"
SIDES = ("boto3", "tracefleet")


def main() -> int:
    """Measure, print the tables, write ``.bench/store/store.json``."""
    options = _build_parser().parse_args()
    if options.inside:
        print(json.dumps(_INSIDE[options.inside](*options.arguments)))
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    with serving():
        for size in options.mb:
            results[f"{size} MB"] = measure_transfers(size, options.rounds)
        if options.conversions:
            results["list"] = measure_listing(f"s3://{BUCKET}/{MANY}", options.conversions)
    (WORK / "store.json").write_text(json.dumps(results, indent=2))
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=_parse_numbers, default=[440, 1300], help="sizes (440,1300)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    parser.add_argument(
        "--conversions", type=int, default=10_000, help="conversions to list; 0: none"
    )
    parser.add_argument("--inside", choices=sorted(_INSIDE), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    return parser


def _parse_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@contextmanager
def serving() -> Iterator[None]:
    """Run the S3 server over an empty folder and set the AWS environment to it."""
    folder = WORK / "s3-data"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "infra.s3_server", "--folder", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        for line in server.stdout:
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                os.environ[name] = value
            if line.startswith("export AWS_DEFAULT_REGION"):
                break
        yield
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def measure_transfers(size: int, rounds: int) -> dict[str, Any]:
    """Publish and pull a file of ``size`` MB, by both sides in turn."""
    local = WORK / f"random-{size}"
    sha256 = _write_random(local, size * 1_000_000)
    taken: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for verb in ("publish", "pull"):
            for side in SIDES:
                found = _run_inside(f"{side}-{verb}", str(local), sha256)
                taken.setdefault(f"{verb} {side}", []).append(found)
                _clear()
    local.unlink()
    return _report(size, taken)


def _report(size: int, taken: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    print(f"\n{size} MB{'':12}{'boto3 MB/s':>12}{'tracefleet':>12}{'ratio':>8}{'memory MB':>18}")
    rows: dict[str, Any] = {}
    for verb in ("publish", "pull"):
        rates, memory = {}, {}
        for side in SIDES:
            rounds = taken[f"{verb} {side}"]
            rates[side] = size / statistics.median(one["seconds"] for one in rounds)
            memory[side] = max(one["memory"] for one in rounds) / 1e6
        ratio = rates["tracefleet"] / rates["boto3"]
        both = f"{memory['boto3']:.0f} / {memory['tracefleet']:.0f}"
        print(
            f"{verb:16}{rates['boto3']:>14.0f}{rates['tracefleet']:>12.0f}{ratio:>8.2f}{both:>18}"
        )
        rows[verb] = {"MB/s": rates, "ratio": ratio, "memory MB": memory}
    return rows


def _write_random(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, 1 << 24):
            block = os.urandom(min(1 << 24, size - start))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _clear() -> None:
    """Empty the cache and the target between transfers; each publish removes the object itself."""
    for folder in (WORK / "cache", WORK / "target"):
        shutil.rmtree(folder, ignore_errors=True)


def _run_inside(what: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.store", "--inside", what, *arguments]
    environment = {**os.environ, "TRACEFLEET_CACHE": str((WORK / "cache").absolute())}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    print(f"  {what} {json.loads(done.stdout)['seconds']:.1f} s", flush=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds that ``work`` took and the anonymous memory that it added."""
    before, peak, done = _read_anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _read_anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        work()
        seconds = time.perf_counter() - started
    finally:
        done.set()
        watcher.join()
    return {"seconds": seconds, "memory": max(0, peak[0] - before)}


def _read_anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def _connect_boto3() -> Any:
    import boto3

    client = boto3.session.Session().client("s3")
    client.head_bucket(Bucket=BUCKET)
    return client


def _boto3_publish(local: str, sha256: str) -> dict[str, float]:
    client, key = _connect_boto3(), f"{PREFIX}/{PATH}"
    client.delete_object(Bucket=BUCKET, Key=key)

    def work() -> None:
        with Path(local).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        assert digest == sha256
        client.upload_file(local, BUCKET, key, ExtraArgs={"Metadata": {"sha256": digest}})

    return _measure(work)


def _boto3_pull(_local: str, sha256: str) -> dict[str, float]:
    client, target = _connect_boto3(), WORK / "target" / "model.pt"
    target.parent.mkdir(parents=True)

    def work() -> None:
        client.download_file(BUCKET, f"{PREFIX}/{PATH}", str(target))
        with target.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == sha256

    return _measure(work)


def _our_publish(local: str, sha256: str) -> dict[str, float]:
    store, path = S3Store.at(f"s3://{BUCKET}/{PREFIX}"), Path(local)
    store.check_writable()
    store.remove([PATH])
    size = path.stat().st_size
    return _measure(lambda: store.put_file(PATH, path, size=size, sha256=sha256))


def _our_pull(local: str, sha256: str) -> dict[str, float]:
    store, target = S3Store.at(f"s3://{BUCKET}/{PREFIX}"), WORK / "target" / "model.pt"
    list(store.walk("connects"))
    target.parent.mkdir(parents=True)
    size = Path(local).stat().st_size
    return _measure(lambda: store.download_to(PATH, target, size=size, sha256=sha256))


_INSIDE: dict[str, Callable[..., dict[str, float]]] = {
    "boto3-publish": _boto3_publish,
    "boto3-pull": _boto3_pull,
    "tracefleet-publish": _our_publish,
    "tracefleet-pull": _our_pull,
}


if __name__ == "__main__":
    sys.exit(main())
