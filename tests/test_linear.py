"""Linear layers of the archive run by oneDNN: where, how exactly, and on builds without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import tracefleet
from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.trace.linear import fast_linear

OPERATOR = "mkldnn._linear_pointwise"
X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


class Layers(nn.Module):
    """A linear layer, GPT-2's, and one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), Conv1D(4, 16)
        self.three = nn.Linear(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.three(self.two(self.one(x)))


def record(module: nn.Module, example: torch.Tensor, path: Path) -> Any:
    """Trace a module as conversions do, save it and load it again."""
    module = module.eval().requires_grad_(False)
    with torch.no_grad(), fast_linear():
        torch.jit.save(torch.jit.trace(module, example, check_trace=False), path)
    return torch.jit.load(path)


def calls(module: Any) -> int:
    graph = module.inlined_graph
    torch._C._jit_pass_inline(graph)
    return str(graph).count("mkldnn::_linear_pointwise")


def test_each_layer_is_one_call_and_computes_the_same_for_every_shape(tmp_path):
    torch.manual_seed(0)
    layers = Layers()
    recorded = record(layers, X, tmp_path / "model.pt")
    assert calls(recorded) == 3
    for shape in ((3, 5, 8), (1, 1, 8), (2, 8), (1, 8), (0, 8), (4, 0, 8), (2, 3, 5, 8)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(recorded(x), layers(x), rtol=1e-5, atol=1e-6)
    away = torch.jit.load(tmp_path / "model.pt", map_location="meta")
    found = away(torch.empty(2, 5, 8, device="meta"))
    assert found.shape == (2, 5, 2), "another device runs torch's own"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_left_to_torch(dtype: torch.dtype, tmp_path):
    layers = Layers().to(dtype)
    recorded = record(layers, X.to(dtype), tmp_path / "model.pt")
    assert calls(recorded) == 0
    assert torch.equal(recorded(X.to(dtype)), layers(X.to(dtype)))


class Odd(nn.Module):
    """Layers that torch takes and oneDNN reads otherwise."""

    def __init__(self, bias: torch.Tensor, weight: torch.Tensor) -> None:
        super().__init__()
        self.bias, self.weight = nn.Parameter(bias), nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> Any:
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("bias", "weight"),
    [
        (torch.tensor(1.0), torch.ones(4, 8)),
        (torch.ones(1), torch.ones(4, 8)),
        (torch.ones(1, 4), torch.ones(4, 8)),
        (torch.tensor(1.0), torch.ones(8)),
    ],
)
def test_biases_and_weights_of_other_shapes_are_torchs_own(bias, weight, tmp_path):
    layer = Odd(bias, weight)
    recorded = record(layer, X, tmp_path / "model.pt")
    assert calls(recorded) == 0
    assert torch.equal(recorded(X), layer(X))


class Mixed(nn.Module):
    """A product before a layer: autocast makes the product bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x @ x.transpose(-1, -2) @ x)


def test_under_autocast_it_is_what_torch_makes_of_it(tmp_path):
    layer = Mixed()
    recorded = record(layer, X, tmp_path / "model.pt")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert recorded(X).dtype == layer(X).dtype == torch.bfloat16


def test_a_model_may_script_a_part_of_itself_meanwhile():
    with fast_linear():
        scripted = torch.jit.script(nn.Linear(8, 4))
    assert "aten::linear" in str(scripted.graph)


def test_torch_is_as_it_was_afterwards_whatever_happens():
    before = nn.functional.linear, Conv1D.forward
    with fast_linear():
        assert nn.functional.linear is not before[0]
    with pytest.raises(ZeroDivisionError), fast_linear():
        assert 1 / 0
    assert (nn.functional.linear, Conv1D.forward) == before


def test_where_torch_has_no_onednn_nothing_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert calls(record(Layers(), X, tmp_path / "model.pt")) == 0


def test_a_conversion_has_it_and_gradients_are_of_no_concern(checkpoint, tmp_path):
    request = {"source": f"file://{checkpoint('bert')}", "task": "feature-extraction"}
    manifest = convert(make_request({**request, "lengths": [8], "store": str(tmp_path)})).manifest
    [path] = tmp_path.rglob("model.pt")
    module = torch.jit.load(path)
    assert OPERATOR in str(module.code_with_constants) or calls(module) > 4
    assert not any(weight.requires_grad for weight in module.parameters())
    ids = torch.tensor([[5, 6, 7, 8]])
    hidden = module(ids, torch.ones_like(ids), torch.zeros_like(ids))[0]
    assert not hidden.requires_grad, "a caller who forgot no_grad"
    assert tracefleet.open(tmp_path, manifest.source)(ids)[0].shape == hidden.shape


WITHOUT = """
import io, sys, torch
from tracefleet.reader.operators import provide_linear

assert provide_linear() is None, "this build has it"
library = provide_linear("without_onednn")
assert library is not None
class Layer(torch.nn.Module):
    def forward(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.ops.without_onednn._linear_pointwise(x, w, b, "none", [], "")

held = io.BytesIO()
torch.jit.save(torch.jit.script(Layer()), held)
held.seek(0)
x, w, b = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
got = torch.jit.load(held)(x, w, b)
assert torch.equal(got, torch.nn.functional.linear(x, w, b))
print("opened")
"""


def test_a_build_without_onednn_opens_such_a_bundle_all_the_same(tmp_path):
    script = tmp_path / "without.py"
    script.write_text(WITHOUT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "opened\n", done.stderr
