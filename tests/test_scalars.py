"""Numbers of a model's code stay numbers in its bundle: they never decide an output's type."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from tasks.sweep.tiny import Case, build
from tasks.trace import bundle
from tasks.trace.scalars import restore_numbers
from tests.support.gate_support import Bench


class _Numbers(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = x > 0
        own = torch.tensor(2.0, dtype=torch.float64, device=x.device)
        return (
            x - hidden * 1e6,
            torch.where(hidden, 3.0, -1e9),
            (1.0 - hidden.float()) * 0.5,
            x.sum() * 0.25,
            hidden * own,
        )


def _record(*, restored: bool) -> Any:
    """Return the module as an archive gives it back."""
    traced = torch.jit.trace(_Numbers(), torch.randn(4), check_trace=False)
    if restored:
        restore_numbers(traced)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def _types(module: Any) -> list[torch.dtype]:
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return [output.dtype for output in module(torch.randn(4))]


@pytest.mark.filterwarnings("ignore")
def test_numbers_decide_no_type_and_tensors_of_the_model_do():
    expected = [output.dtype for output in _Numbers()(torch.randn(4))]
    assert expected[-1] == torch.float64
    assert _types(_record(restored=True)) == expected
    x = torch.randn(4)
    for got, wanted in zip(_record(restored=True)(x), _Numbers()(x), strict=True):
        assert torch.equal(got, wanted)
    assert _types(_record(restored=False)) != expected, "the control"


def test_the_gate_runs_what_consumers_run(tmp_path, monkeypatch):
    folder = tmp_path / "big_bird"
    build(Case(model_type="big_bird", task="question-answering"), folder)
    bench = Bench(folder=folder, work=tmp_path / "work", task="question-answering")
    report = bench.validate(bench.trace())
    assert report.passed
    monkeypatch.setattr(bundle, "restore_numbers", lambda traced: None)
    with pytest.raises(Exception, match=r"expected \(2, \d+\) torch.float32, got .* torch.float64"):
        bench.validate(bench.trace())
