"""What the tracer can't record, recorded all the same; each with the fault that it prevents."""

from __future__ import annotations

import contextlib
import io
import warnings

import pytest
import torch
from torch import nn

from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case, build
from tasks.trace.patches import recordable


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.kept = 1
        return 2 * x


class WithFunction(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


class Experts(nn.Module):
    """As in DBRX: one more than there are, for tokens that have none."""

    num_experts = 3

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 10.0, 100.0]))

    def forward(self, x, chosen):
        out = torch.zeros_like(x)
        mask = nn.functional.one_hot(chosen, num_classes=self.num_experts + 1).T
        for hit in torch.greater(mask.sum(-1), 0).nonzero():
            (tokens,) = torch.where(mask[hit[0]])
            if tokens.numel() == 0:
                continue
            out = out.index_add(0, tokens, x[tokens] * self.weights[hit[0]])
        return out


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def forward(self, x, chosen):
        kept = torch.greater(chosen, 0).sum()  # outside of the experts: left as it is
        return self.experts(x, chosen) + kept


class Scattering(nn.Module):
    def forward(self, index):
        return torch.ones(4, dtype=torch.bool).scatter(0, index, False)


def record(model, *example, adapted=True):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with recordable(model) if adapted else contextlib.nullcontext():
            traced = torch.jit.trace(model, example, check_trace=False)
    return traced


def test_autograd_functions_are_saved():
    x = torch.arange(3.0)
    saved = io.BytesIO()
    torch.jit.save(record(WithFunction(), x), saved)
    saved.seek(0)
    assert torch.equal(torch.jit.load(saved)(x + 1), 2 * (x + 1))
    assert torch.equal(Doubled.apply(x), 2 * x), "put back"
    with pytest.raises(RuntimeError, match="export Python function"):
        torch.jit.save(record(WithFunction(), x, adapted=False), io.BytesIO())


def test_every_expert_is_recorded_whoever_was_hit():
    model, x = Layer(), torch.ones(4)
    first, second = torch.tensor([0, 0, 0, 0]), torch.tensor([2, 1, 0, 1])
    with torch.no_grad():
        expected = [model(x, first), model(x, second)]
    traced = record(model, x, first)
    assert torch.equal(traced(x, first), expected[0])
    assert torch.equal(traced(x, second), expected[1])
    with torch.no_grad():
        assert torch.equal(model(x, second), expected[1]), "eager is as it was"
    assert not model.experts._forward_hooks
    baked = record(model, x, first, adapted=False)
    with contextlib.suppress(RuntimeError):  # or it raises: another number of experts
        assert not torch.equal(baked(x, second), expected[1]), "the fault that it prevents"


def test_scatter_of_a_bool_is_recorded():
    index = torch.tensor([1])
    with pytest.raises(RuntimeError, match="scatter"):
        record(Scattering(), index, adapted=False)
    traced = record(Scattering(), index)
    assert traced(torch.tensor([2])).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        ("bloom", "text-generation"),
        ("dbrx", "text-generation"),
        ("switch_transformers", "text2text-generation"),
        ("longcat_flash", "text-generation"),
        ("deepseek_v32", "text-generation"),
    ],
)
def test_architectures_that_need_it_pass_the_whole_gate(model_type, task, tmp_path):
    folder = build(Case(model_type=model_type, task=task), tmp_path / "checkpoint")
    request = make_request(
        {
            "source": folder.as_uri(),
            "task": task,
            "lengths": [16],
            "store": (tmp_path / "store").as_uri(),
        }
    )
    assert not convert(request).fresh
