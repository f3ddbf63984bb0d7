"""The C++ consumer: what libtorch computes from a bundle is what the reader computes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import tracefleet
from examples.cpp.build import build
from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case
from tasks.sweep.tiny import build as build_tiny
from tests.support.forging import scale_weight

TASK = "text-classification"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which the project does not")
def test_cpp_computes_what_python_computes_and_refuses_what_is_too_long(tmp_path):
    folder = build_tiny(Case(model_type="bert", task=TASK), tmp_path / "checkpoint")
    binary = build(tmp_path / "consumer")
    request = make_request(
        {
            "source": f"file://{folder}",
            "task": TASK,
            "lengths": [8, 16],
            "store": f"file://{tmp_path}/store",
        }
    )
    manifest = convert(request).manifest
    (bundle,) = (tmp_path / "store").rglob("model.pt")
    model = tracefleet.open(tmp_path / "store", manifest.source)

    def run(ids: list[int]) -> subprocess.CompletedProcess[str]:
        arguments = [str(binary), str(bundle), str(len(manifest.inputs)), *map(str, ids)]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    for tokens in (1, 8, 11, 16):
        ids = list(range(20, 20 + tokens))
        outcome = run(ids)
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.startswith("output 0 [1, 3] sum ")
        expected = float(model([ids])["logits"].astype("float64").sum())
        assert float(outcome.stdout.split()[-1]) == pytest.approx(expected, abs=1e-4)
    too_long = run(list(range(20, 37)))
    assert too_long.returncode == 1
    assert "at most 16" in too_long.stderr

    def check(archive: Path, samples: Path) -> subprocess.CompletedProcess[str]:
        arguments = [str(binary), str(archive), "--check", str(samples)]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    (samples,) = (tmp_path / "store").rglob("model/samples-*.safetensors")
    right = check(bundle, samples)
    assert right.returncode == 0, right.stdout + right.stderr
    assert " same\n" in right.stdout
    forged = tmp_path / "forged.pt"
    forged.write_bytes(scale_weight(bundle, 1.01))
    wrong = check(forged, samples)
    assert wrong.returncode == 1
    assert "output 0 error" in wrong.stdout
    assert "DIFFERS" in wrong.stdout
    for damaged in (b"", b"\xff" * 16, samples.read_bytes()[:-8]):
        (tmp_path / "damaged").write_bytes(damaged)
        refused = check(bundle, tmp_path / "damaged")
        assert refused.returncode == 1
        assert "error: golden samples: " in refused.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which the project does not")
def test_cpp_generates_the_ids_that_python_generates(tmp_path, checkpoint):
    binary = build(tmp_path / "consumer")
    request = make_request(
        {
            "source": f"file://{checkpoint('marian')}",
            "task": "text2text-generation",
            "lengths": [8, 16],
            "store": f"file://{tmp_path}/store",
        }
    )
    manifest = convert(request).manifest
    (bundle,) = (tmp_path / "store").rglob("model.pt")
    model = tracefleet.open(tmp_path / "store", manifest.source)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(binary), str(bundle), "--generate", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for beams in (1, 4):
        outcome = run(12, beams, 20, 30, 40)
        assert outcome.returncode == 0, outcome.stderr
        (expected,) = model.generate([[20, 30, 40]], max_new_tokens=12, num_beams=beams).tolist()
        assert list(map(int, outcome.stdout.split())) == expected
    for wrong, told in (((17, 1, 20), "max_new_tokens"), ((4, 0, 20), "num_beams")):
        refused = run(*wrong)
        assert refused.returncode == 1
        assert f"{told}: expected" in refused.stderr
    assert "at most 16" in run(4, 1, *range(20, 37)).stderr
