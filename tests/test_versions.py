"""Where versions of transformers differ. Runs on transformers 4 as well, as
``tests.test_transformers_versions`` has it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from tasks.errors import UnsupportedCheckpointError
from tasks.model import versions
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.versions import (
    check_config,
    eager_attention,
    list_tensors,
    on_meta,
    since,
    torch_since,
)
from tests.support import tiny
from tests.support.gate_support import Bench

DEFAULT = {"rope_theta": 10000.0, "rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ("4.46.3", [False, False, False]),
        ("4.52.4", [True, False, False]),
        ("4.57.6", [True, True, False]),
        ("5.0.0rc1", [True, True, True]),
        ("5.23.0", [True, True, True]),
    ],
)
def test_versions_are_compared_as_numbers(installed, expected, monkeypatch):
    monkeypatch.setattr("transformers.__version__", installed)
    assert [since(4, 52), since(4, 56), since(5)] == expected


@pytest.mark.parametrize(
    ("installed", "expected"),
    [("1.13.1", [True, False]), ("2.0.0+cpu", [True, True]), ("2.13.0+cpu", [True, True])],
)
def test_torch_is_compared_by_numbers_too(installed, expected, monkeypatch):
    monkeypatch.setattr("torch.__version__", installed)
    assert [torch_since(1, 13), torch_since(2)] == expected


def test_modules_are_built_without_memory():
    with on_meta():
        layer = torch.nn.Linear(2, 2)
    assert layer.weight.device.type == "meta"


@pytest.mark.skipif(since(5), reason="torch 1 has no transformers 5")
def test_torch_1_builds_modules_without_drawing_weights(monkeypatch):
    monkeypatch.setattr(versions, "torch_since", lambda *_: False)
    before = torch.get_rng_state()
    with on_meta():
        model = transformers.BertModel(transformers.BertConfig(**tiny.BERT))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert torch.equal(torch.get_rng_state(), before)


class Twice(torch.nn.Module):
    """One tensor under two names of one module, and one module in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(2))
        self.two = self.one
        self.left = self.right = torch.nn.BatchNorm1d(2)


def test_every_name_of_a_tensor_is_listed_on_torch_1_as_well(monkeypatch):
    names = list(list_tensors(Twice()))
    assert {"one", "two", "left.weight", "right.weight", "right.running_mean"} <= set(names)
    monkeypatch.setattr(versions, "torch_since", lambda *_: False)
    assert list(list_tensors(Twice())) == names


def _count_sdpa(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    real, calls = torch.nn.functional.scaled_dot_product_attention, []

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    return calls


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "feature-extraction"),
        ("bert-mlm", "feature-extraction"),  # it has no pooler
        ("gpt2", "text-generation"),
        ("bart-cls", "text-classification"),
    ],
)
def test_attention_is_really_another_while_the_block_runs(name, task, checkpoint, monkeypatch):
    calls = _count_sdpa(monkeypatch)
    model = load_eager(checkpoint(name), LoadOptions(task=task))
    ids = torch.tensor([[5, 6, 7, 8, 2]])

    def answer() -> tuple[torch.Tensor, int]:
        calls.clear()
        with torch.no_grad():
            return model(ids, return_dict=True)[0], len(calls)

    held = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    usual, times = answer()
    assert times
    with eager_attention(model):
        plain, none = answer()
        assert {name: tensor.data_ptr() for name, tensor in model.named_parameters()} == held
    assert not none
    torch.testing.assert_close(plain, usual, atol=1e-5, rtol=0)
    again, as_before = answer()
    assert as_before == times
    assert torch.equal(again, usual)


def test_attention_comes_back_after_an_error(checkpoint):
    model = load_eager(checkpoint("bert"), LoadOptions(task="feature-extraction"))
    before, layers = model.config._attn_implementation, model.encoder
    with pytest.raises(ZeroDivisionError), eager_attention(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == before == "sdpa"
    assert model.encoder is layers


def test_a_loop_over_experts_is_recorded_whole(checkpoint, tmp_path):
    """Not with the number of experts that the traced input happens to hit."""
    bench = Bench(folder=checkpoint("mixtral"), work=tmp_path, task="text-generation", batch=1)
    bench.lengths = (8,)
    assert bench.validate(bench.trace()).passed


def _config(**fields: Any) -> Any:
    config = SimpleNamespace(**fields)
    config.get_text_config = lambda: config
    return config


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_parameters": DEFAULT, "rope_theta": 10000.0, "rope_scaling": None},
        {
            "rope_parameters": {"rope_theta": 10000.0, **LINEAR},
            "rope_theta": 10000.0,
            "rope_scaling": LINEAR,
        },
    ],
)
def test_an_older_transformers_may_read_what_its_defaults_say_too(fields, monkeypatch):
    monkeypatch.setattr(versions, "since", lambda *_: False)
    check_config(_config(**fields))


@pytest.mark.parametrize(
    "written",
    [
        {"rope_theta": 5e5, "rope_type": "default"},
        {"rope_theta": 10000.0, **LINEAR},
        {**DEFAULT, "partial_rotary_factor": 0.5},
        {"full_attention": DEFAULT, "sliding_attention": DEFAULT},
    ],
)
def test_an_older_transformers_must_not_read_rotary_embeddings_in_part(written, monkeypatch):
    config = _config(rope_parameters=written, rope_theta=10000.0, rope_scaling=None)
    monkeypatch.setattr(versions, "since", lambda *_: True)
    check_config(config)
    monkeypatch.setattr(versions, "since", lambda *_: False)
    with pytest.raises(UnsupportedCheckpointError, match="Convert with transformers 5"):
        check_config(config)


def test_a_mask_is_the_same_asked_at_once_and_one_by_one():
    padding = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()

    def visible(row: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & padding[row, key] & (query - key < 2)

    rows, heads, places = torch.arange(2), torch.arange(3), torch.arange(4)
    mask = versions._broadcast(visible)(rows, heads, places, places)
    assert mask.shape == (2, 3, 4, 4)
    expected = [
        bool(visible(torch.tensor(row), 0, torch.tensor(query), torch.tensor(key)))
        for row in range(2)
        for _ in range(3)
        for query in range(4)
        for key in range(4)
    ]
    assert mask.flatten().tolist() == expected
    assert versions._broadcast(lambda *_: torch.tensor(True))(rows, heads, places, places).all()
