"""Times of common commands on a store with many conversions.

Part of ``make bench-store``; called by ``benchmarks.store``, which runs the server.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tracefleet.channel import ChannelEntry, channel_folder, conversion_folder, entry_path
from tracefleet.manifest import BUNDLE_MEDIA_TYPE, Manifest
from tracefleet.manifest_types import (
    FileEntry,
    InputSpec,
    OutputSpec,
    Toolchain,
    Variant,
)
from tracefleet.store.s3 import S3Store
from tracefleet.verdict_types import LengthVerdict, Tolerance, Validation


def measure_listing(url: str, number: int) -> dict[str, float]:
    """Publish many tiny conversions to an empty store, then time common commands."""
    _fill(url, number)
    source = _source(number // 2)
    timed = {
        "start of the command": _time_command("--version"),
        "list, first page": _time_command("list", url, lines=11),
        "list --limit 50": _time_command("list", url, "--limit", "50"),
        "show, of one source": _time_command("show", url, source),
    }
    print(f"\n{number} conversions in one store")
    for name, seconds in timed.items():
        print(f"{name:24}{seconds:>8.2f} s")
    return timed


def _fill(url: str, number: int) -> None:
    store, started = S3Store.at(url), time.monotonic()
    store.check_writable()

    def put(index: int) -> None:
        manifest = _make_manifest(index)
        folder = conversion_folder(manifest.source, manifest.key)
        log = channel_folder(manifest.source, manifest.variant, "latest")
        entry = ChannelEntry(
            manifest=manifest.digest, key=manifest.key, previous=None, nonce=str(index)
        )
        store.put_over(f"{folder}/manifest.json", manifest.to_bytes())
        store.put_over(entry_path(log, 1), entry.to_bytes())
        if index % 1000 == 999:
            print(f"  {index + 1} stored, {time.monotonic() - started:.0f} s", flush=True)

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(put, range(number)):
            pass


def _source(index: int) -> str:
    return f"hf://fleet/model-{index:05d}"


def _make_manifest(index: int) -> Manifest:
    ids = InputSpec(name="input_ids", dtype="int64", axes=("batch", "length"), pad_value=0)
    verdict = LengthVerdict(
        length=128,
        probes=20,
        vacuous=(),
        max_abs_error=1e-7,
        max_rel_error=1e-7,
        min_cosine=1.0,
        top1_agreement=1.0,
        passed=True,
    )
    digest = hashlib.sha256(str(index).encode()).hexdigest()
    bundle = FileEntry(
        path="model/1/model.pt", size=440_000_000, sha256=digest, media_type=BUNDLE_MEDIA_TYPE
    )
    return Manifest(
        key=digest,
        source=_source(index),
        commit=digest[:40],
        license=None,
        variant=Variant(task="feature-extraction"),
        lengths=(128,),
        options={},
        inputs=(ids,),
        outputs=(OutputSpec(name="logits", dtype="float32", axes=("batch", "2")),),
        tied_groups=(),
        same_program=True,
        general=None,
        routed=None,
        device="cpu",
        follows_device=True,
        files=(bundle,),
        toolchain=Toolchain(python="3.11", torch="2.13.0", transformers="5.23.0"),
        recipe=1,
        validation=Validation(
            verdict="validated",
            tolerance=Tolerance(atol=0.0, rtol=1e-5),
            lengths=(verdict,),
            negative_controls=("wrong-weight",),
        ),
    )


def _time_command(*arguments: str, lines: int | None = None) -> float:
    """Time a ``tracefleet`` command to its end, or until it has printed so many lines."""
    command = [sys.executable, "-m", "tracefleet.cli", *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    for number, _ in enumerate(process.stdout, start=1):
        if number == lines:
            break
    if lines:
        seconds = time.perf_counter() - started
        process.kill()
        process.wait()
    else:
        code = process.wait()
        seconds = time.perf_counter() - started
        if code:
            raise RuntimeError(f"tracefleet {' '.join(arguments)} failed with exit code {code}")
    process.stdout.close()
    return seconds
