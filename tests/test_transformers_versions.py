"""The same checkpoint under transformers 4.46, 4.52, the newest 4 and 5: published, one result.

An older transformers is laid over this environment: a folder that comes first on the child's path,
filled once per machine. Torch and everything else are the same, so that nothing else can differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracefleet
from tests.support import tiny, tiny_samples
from tests.support.convert_child import outcome
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Older:
    """An older transformers at work.

    Attributes:
        version: as it is pinned.
        store: where it publishes.
        answers: file of what came of each case, in the end.
        child: converts the cases, then runs ``tests/test_versions.py``.
    """

    version: str
    store: Path
    answers: Path
    child: Future[subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def at_work(checkpoints, tmp_path_factory) -> Iterator[dict[str, Older]]:
    """Let all older ones work, two at a time: each waits more than it computes."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: _start(pool, pins, checkpoints, tmp_path_factory.mktemp("older"))
            for name, pins in PINS.items()
        }
        pool.shutdown(cancel_futures=True)


def _start(pool: ThreadPoolExecutor, pins: Path, checkpoints: Path, work: Path) -> Older:
    folder, store = _make_environment(pins), work / "store"
    asked, answers = work / "requests.json", work / "answers.json"
    asked.write_text(json.dumps(_requests(checkpoints, store)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "TRACEFLEET_CACHE": str(work / "cache"),
        "HF_HOME": str(work / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    tests = ["-q", "-p", "no:cacheprovider", f"--basetemp={work / 'tests'}"]
    words = [
        "tests.support.convert_child",
        str(asked),
        str(answers),
        *tests,
        "tests/test_versions.py",
    ]
    child = pool.submit(_run, environment, *words)
    return Older(version=_read_pin(pins), store=store, answers=answers, child=child)


@pytest.fixture(params=PINS)
def older(request, at_work) -> Older:
    """Return one of the older versions."""
    found: Older = at_work[request.param]
    return found


def _make_environment(pins: Path) -> Path:
    """Return the folder of an older transformers, made once per machine and set of pins."""
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
        options += ["--target", str(target), "--requirement", str(pins)]
        done = _run(dict(os.environ), "pip", "install", *options)
        assert done.returncode == 0, done.stderr[-4000:]
        try:
            target.rename(folder)
        except OSError:
            assert folder.exists()


def _run(
    environment: dict[str, str], module: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a module in a child interpreter."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def _read_pin(file: Path) -> str:
    (version,) = re.findall(r"^transformers==(\S+)$", file.read_text("utf-8"), re.MULTILINE)
    return str(version)


def test_the_versions_are_those_of_the_neuron_images_and_the_oldest_of_torch_neuronx():
    images = {_read_pin(file) for file in (ROOT / "infra/neuron").glob("constraints-neuron*.txt")}
    assert len(images) == 2
    assert {_read_pin(pins) for pins in PINS.values()} == {*images, "4.52.4"}


def test_every_version_publishes_the_same_results(older, newest, checkpoints):
    told = older.child.result()
    assert older.answers.exists(), f"{told.stdout[-4000:]}{told.stderr[-4000:]}"
    done = json.loads(older.answers.read_text())
    assert {one.get("verdict") for one in done.values()} == {"validated"}, done
    for name, case in CASES.items():
        url = f"file://{checkpoints / case.checkpoint}"
        one, two = (
            tracefleet.open(f"file://{s}", url, task=case.task, dtype=case.dtype)
            for s in (older.store, newest)
        )
        assert one.manifest.toolchain.transformers == older.version
        assert two.manifest.toolchain.transformers != older.version
        assert one.manifest.key == done[name]["key"] != two.manifest.key
        assert (one.manifest.inputs, one.manifest.outputs) == _contract(two.manifest)
        feed = _feed(two.manifest)
        _check_equal(name, one(**feed), two(**feed), two.manifest.validation.tolerance.rtol)


def test_what_differs_is_tested_on_each_version(older):
    done = older.child.result()
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
    assert " passed" in done.stdout


def _contract(manifest: Manifest) -> tuple[Any, ...]:
    return manifest.inputs, manifest.outputs


def _feed(manifest: Manifest) -> dict[str, np.ndarray]:
    """Draw inputs shorter than the shortest length, or of the only one there is."""
    rng = np.random.default_rng(0)
    sizes = {"batch": 2, "length": manifest.lengths[0] - 1, "decoder_length": 5}
    feed: dict[str, np.ndarray] = {}
    for spec in manifest.inputs:
        shape = [int(sizes.get(axis, axis)) for axis in spec.axes]
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
