"""The same checkpoint under transformers 4.52, the newest 4 and 5: published, and with one result.

An older transformers is laid over this environment: a folder that comes first on the child's path,
filled once per machine. Torch and everything else are the same, so that nothing else can differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracefleet
from tests import tiny, tiny_samples
from tests.convert_child import outcome
from tests.test_pooling import write
from tracefleet.manifest import Manifest

ROOT = Path(__file__).parent.parent
PINS = {pins.stem: pins for pins in sorted(ROOT.glob("constraints-transformers-*.txt"))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One conversion: a tiny checkpoint that transformers 5 saved."""

    checkpoint: str
    task: str
    dtype: str = "float32"
    lengths: tuple[int, ...] = (8,)


CASES = {
    "bert": Case(checkpoint="bert-mlm", task="fill-mask", lengths=(8, 16)),  # tied weights
    "roberta": Case(checkpoint="roberta-qa", task="question-answering"),
    "int8": Case(checkpoint="distilbert-tok", task="token-classification", dtype="int8"),
    "bfloat16": Case(checkpoint="sentence", task="sentence-similarity", dtype="bfloat16"),
    "gpt2": Case(checkpoint="gpt2", task="text-generation"),  # 4.57 makes its mask with vmap
    "t5": Case(checkpoint="t5", task="text2text-generation"),
    "vit": Case(checkpoint="vit", task="image-classification", lengths=(32,)),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    for name in sorted({case.checkpoint for case in CASES.values()} - {"sentence"}):
        (tiny_samples if name in tiny_samples.MODELS else tiny).save(name, folder)
    write(shutil.copytree(tiny.save("bert", folder), folder / "sentence"))
    return folder


def _requests(checkpoints: Path, store: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "source": f"file://{checkpoints / case.checkpoint}",
            "task": case.task,
            "dtype": case.dtype,
            "lengths": list(case.lengths),
            "store": f"file://{store}",
            "threads": 1,  # models this small only wait for a second one
        }
        for name, case in CASES.items()
    }


@pytest.fixture(scope="module")
def newest(checkpoints, tmp_path_factory) -> Path:
    """Return a store with every case as transformers 5 converts it."""
    store: Path = tmp_path_factory.mktemp("newest")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRACEFLEET_CACHE", str(tmp_path_factory.mktemp("cache")))
        done = {name: outcome(fields) for name, fields in _requests(checkpoints, store).items()}
    assert {one.get("verdict") for one in done.values()} == {"validated"}, done
    return store


@pytest.fixture(scope="module", params=PINS)
def older(request) -> Path:
    """Return the folder of an older transformers, made once per machine and set of pins."""
    pins = PINS[request.param]
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / f".venv-{pins.stem.removeprefix('constraints-')}-{digest}"
    if not folder.exists():
        _install(pins, folder)
    return folder


def _install(pins: Path, folder: Path) -> None:
    """Fill the folder beside its place: nobody sees half of it, and two who do it agree."""
    with tempfile.TemporaryDirectory(prefix=".venv-", dir=ROOT) as work:
        target = Path(work) / "packages"
        # Nothing that they ask for: torch above all has to stay the environment's.
        options = ["--no-deps", "--no-compile", "--only-binary", ":all:", "--quiet"]
        _run("pip", "install", *options, "--target", str(target), "--requirement", str(pins))
        try:
            target.rename(folder)
        except OSError:
            assert folder.exists()


def _run(module: str, *arguments: str, before: Path | None = None) -> str:
    """Run a module in a child interpreter, with a folder before everything that is installed."""
    path = os.pathsep.join([*([str(before)] if before else []), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{module}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def test_the_pins_are_the_oldest_and_the_newest_4():
    assert len(PINS) == 2
    assert all("transformers==4." in pins.read_text("utf-8") for pins in PINS.values())


def test_what_differs_is_tested_on_each_version(older):
    _run("pytest", "-q", "-p", "no:cacheprovider", "tests/test_versions.py", before=older)


def test_every_version_publishes_the_same_results(older, newest, checkpoints, tmp_path):
    store = tmp_path / "store"
    asked = tmp_path / "requests.json"
    asked.write_text(json.dumps(_requests(checkpoints, store)))
    done = json.loads(_run("tests.convert_child", str(asked), before=older))
    assert {one.get("verdict") for one in done.values()} == {"validated"}, done
    (version,) = (p.stem.split("-")[1] for p in older.glob("transformers-*.dist-info"))
    for name, case in CASES.items():
        url = f"file://{checkpoints / case.checkpoint}"
        one, two = (
            tracefleet.open(f"file://{s}", url, task=case.task, dtype=case.dtype)
            for s in (store, newest)
        )
        assert one.manifest.toolchain.transformers == version
        assert two.manifest.toolchain.transformers != version
        assert one.manifest.key == done[name]["key"] != two.manifest.key
        assert (one.manifest.inputs, one.manifest.outputs) == _contract(two.manifest)
        feed = _feed(two.manifest)
        _check_equal(name, one(**feed), two(**feed), two.manifest.validation.tolerance.rtol)


def _contract(manifest: Manifest) -> tuple[Any, ...]:
    return manifest.inputs, manifest.outputs


def _feed(manifest: Manifest) -> dict[str, np.ndarray]:
    """Draw inputs shorter than the shortest length, or of the only one there is."""
    rng = np.random.default_rng(0)
    sizes = {"batch": 2, "length": manifest.lengths[0] - 1, "decoder_length": 5}
    feed: dict[str, np.ndarray] = {}
    for spec in manifest.inputs:
        shape = [sizes[axis] if axis in sizes else int(axis) for axis in spec.axes]
        if spec.dtype != "int64":
            feed[spec.name] = rng.standard_normal(shape).astype(np.float32)
        elif spec.name.endswith("input_ids"):
            feed[spec.name] = rng.integers(5, 250, shape)
    return feed


def _check_equal(
    name: str, got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], rtol: float
) -> None:
    assert got.keys() == expected.keys()
    for output, values in expected.items():
        assert got[output].dtype == values.dtype
        bound = rtol * np.abs(values).max()
        np.testing.assert_allclose(got[output], values, rtol=0, atol=bound, err_msg=name)
        assert not np.allclose(values, values[..., ::-1], atol=bound), f"{name}: it shows nothing"
