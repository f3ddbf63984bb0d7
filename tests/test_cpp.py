"""The C++ consumer: what libtorch computes from a bundle is what the reader computes."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import tracefleet
from examples.cpp.build import build
from flows.convert import convert
from tasks.request.conversion import make_request


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which the project does not")
def test_cpp_computes_what_python_computes_and_refuses_what_is_too_long(checkpoint, tmp_path):
    binary = build(tmp_path / "consumer")
    request = make_request(
        {
            "source": f"file://{checkpoint('bert-cls')}",
            "task": "text-classification",
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
