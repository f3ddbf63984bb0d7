"""What the tests of the Neuron contract double share: a tiny model, its inputs, comparisons."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

_FOLDER = Path(__file__).parent.parent / "neuron_double"
sys.path.insert(0, str(_FOLDER))
import neuron_double  # noqa: E402
from neuron_double import behaviours, harness  # noqa: E402

sys.path.remove(str(_FOLDER))

__all__ = ["behaviours", "harness", "neuron_double"]  # beside what is defined here

contract = harness.Contract()
shows = contract.shows
IDS = torch.arange(16).reshape(2, 8) % 13
MASK = torch.tensor([[1.0] * 8, [1.0] * 5 + [0.0] * 3])
REFUSALS = (RuntimeError, TypeError, ValueError)


@pytest.fixture(autouse=True, scope="module")
def report_differences(request):
    """Say where the real SDK differs; a test module takes it by its name."""
    yield
    for line in contract.differences:
        request.config.get_terminal_writer().line(f"\ndiffers: {line}")
    contract.differences.clear()


class Tiny(nn.Module):
    """An embedding, a layer and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer = nn.Embedding(13, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 13)
        self.head.weight = self.embed.weight
        self.eval()

    def forward(self, ids, mask):
        hidden = torch.tanh(self.layer(self.embed(ids))) * mask[..., None]
        return self.head(torch.relu(hidden) + hidden), hidden.sum(1)


class Sorter(Tiny):
    def forward(self, ids, mask):
        logits, pooled = super().forward(ids, mask)
        return logits.sort(-1)[0], pooled


def eager(ids=IDS, mask=MASK, model=Tiny):
    with torch.no_grad():
        return model()(ids, mask)


def saved(module, path):
    torch.jit.save(module, path)
    return torch.jit.load(path)


def off(got, wanted):
    return float((got - wanted).abs().max() / wanted.abs().max())


def kinds(module):
    """Name the operators that the host runs, the SDK's own among them."""
    return [node.kind() for node in module.inlined_graph.nodes()]
