"""Rotary embeddings that change with a call's longest row, and modules that write to buffers."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import tracefleet
from flows.convert import convert
from tasks.errors import (
    NumericsMismatchError,
    RequestError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple
from tasks.model.preflight import inspect
from tasks.model.rotary import find_switch
from tasks.model.state import restoring_module_state, sparing_buffers
from tasks.request.conversion import make_request
from tests.support import tiny
from tests.support.gate_support import Bench
from tracefleet.errors import InputTooLongError
from tracefleet.manifest_types import OutputSpec

TASK = "text-generation"
OPTIONS = LoadOptions(task=TASK)
SHAPE = {
    **tiny.BERT,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 32,
    "factor": 4.0,
}
MSCALE = {"short_mscale": 1.1, "long_mscale": 1.3}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
YARN = {**DYNAMIC, "rope_type": "yarn", "original_max_position_embeddings": 32}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PHI3 = {**SHAPE, "original_max_position_embeddings": 32, "rope_parameters": LONGROPE}
MODELS = {
    "phi3": ("Phi3ForCausalLM", "Phi3Config", PHI3),
    "phi3-whole": ("Phi3ForCausalLM", "Phi3Config", {**PHI3, "max_position_embeddings": 32}),
    "phimoe": (
        "PhimoeForCausalLM",
        "PhimoeConfig",
        {**SHAPE, "num_local_experts": 4, "rope_parameters": LONGROPE | MSCALE},
    ),
    "dynamic": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**SHAPE, "max_position_embeddings": 32, "rope_parameters": DYNAMIC},
    ),
    "qwen2-dynamic": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**SHAPE, "max_position_embeddings": 32, "rope_parameters": DYNAMIC},
    ),
}


@pytest.fixture
def rotary(checkpoint, monkeypatch):
    """Return the folder of a tiny checkpoint of this file."""
    for name, model in MODELS.items():
        monkeypatch.setitem(tiny.MODELS, name, model)
    return checkpoint


def _config(kind: str, **options: Any) -> Any:
    return getattr(transformers, kind)(**{**SHAPE, **options})


def _pads(folder, lengths):
    return inspect(folder, OPTIONS, lengths).takes_padding


# What a config says


@pytest.mark.parametrize(
    ("config", "switch"),
    [
        (transformers.Phi3Config(**PHI3), 32),
        (_config("LlamaConfig", rope_parameters=LONGROPE), 32),
        (_config("LlamaConfig", rope_parameters=DYNAMIC), 128),
        (_config("LlamaConfig"), None),
        (_config("LlamaConfig", rope_parameters={**DYNAMIC, "rope_type": "linear"}), None),
        (_config("LlamaConfig", rope_parameters=YARN), None),
        (_config("LlamaConfig", rope_parameters=LLAMA3), None),
        (_config("Gemma3TextConfig"), None),
        (_config("ModernBertConfig"), None),
        (_config("T5Config"), None),
        # Before transformers 5, and in remote code:
        (SimpleNamespace(rope_scaling={"type": "su"}, original_max_position_embeddings=64), 64),
        (SimpleNamespace(rope_scaling={"type": "dynamic"}, max_position_embeddings=48), 48),
        (SimpleNamespace(rope_scaling=None), None),
        # Each type of layer has its own:
        (SimpleNamespace(rope_parameters={"full": LONGROPE, "sliding": YARN}), 32),
    ],
)
def test_the_config_says_where_frequencies_change(config, switch):
    model = nn.Module()
    model.config = config
    assert find_switch(nn.Sequential(nn.Linear(1, 1), model)) == switch


def test_rows_may_be_padded_as_long_as_nothing_changes(rotary):
    assert _pads(rotary("phi3"), (8, 32))
    for lengths in [(8, 64), (32, 33), (64,)]:
        assert not _pads(rotary("phi3"), lengths)
    assert _pads(rotary("phi3-whole"), (8, 32))
    assert _pads(rotary("dynamic"), (8, 32))


def test_what_is_too_long_for_dynamic_frequencies_is_refused_with_the_reason(rotary):
    folder = rotary("dynamic")
    assert inspect(folder, OPTIONS, (8, 32)).max_length == 32
    with pytest.raises(RequestError, match=r"at most 32.*got 48, 64\..*by its longest row"):
        inspect(folder, OPTIONS, (8, 48, 64))
    with pytest.raises(RequestError, match=r"got 129\. Drop") as caught:
        inspect(rotary("phi3"), OPTIONS, (32, 129))
    assert "longest row" not in str(caught.value)


# From the checkpoint to the reader


def _draw(sizes):
    drawn = np.random.default_rng(5)
    return [drawn.integers(3, 256, size).tolist() for size in sizes]


def _convert(folder, tmp_path, lengths, **options):
    request = {"source": folder.as_uri(), "store": (tmp_path / "store").as_uri(), "task": TASK}
    result = convert(make_request({**request, "lengths": lengths, **options}))
    return result.manifest, tracefleet.open(tmp_path / "store", folder)


def _expect(folder, row):
    with torch.no_grad():
        return load_eager(folder, OPTIONS)(torch.tensor([row])).logits[0].numpy()


def _require_rows_alone(opened, folder, sizes):
    """Rows of one call must be what eager computes of each by itself."""
    rows = _draw(sizes)
    for row, logits in zip(rows, opened(rows).logits, strict=True):
        np.testing.assert_allclose(logits[: len(row)], _expect(folder, row), atol=2e-5)


def test_longrope_up_to_its_original_length_is_any_other_model(rotary, tmp_path):
    folder = rotary("phi3")
    manifest, opened = _convert(folder, tmp_path, [8, 32])
    assert manifest.general is not None
    assert [spec.pad_value for spec in manifest.inputs] == [0, 0]
    _require_rows_alone(opened, folder, [1, 5, 8, 9, 20, 31, 32])
    with pytest.raises(InputTooLongError):
        opened(_draw([33]))


def test_longrope_over_its_original_length_runs_each_row_as_it_is(rotary, tmp_path):
    """Padded from 20 to 60 tokens, a row would get the long factors: off by 0.97."""
    folder = rotary("phi3")
    manifest, opened = _convert(folder, tmp_path, [32, 64])
    assert manifest.general is not None
    assert [spec.pad_value for spec in manifest.inputs] == [None, None]
    _require_rows_alone(opened, folder, [1, 5, 20, 32, 33, 33, 60, 64])
    padded = {"input_ids": _draw([60, 20]), "attention_mask": [[1] * 60, [1] * 20 + [0] * 40]}
    padded["input_ids"][1] += [0] * 40
    given = {name: torch.tensor(rows) for name, rows in padded.items()}
    with torch.no_grad():
        expected = load_eager(folder, OPTIONS)(**given).logits.numpy()
    np.testing.assert_allclose(opened(**given).logits, expected, atol=2e-5)


def test_a_number_chosen_by_the_length_is_published_at_exact_lengths(rotary, tmp_path):
    """PhiMoE scales by a Python branch on the length: each length has its own graph."""
    folder = rotary("phimoe")
    manifest, opened = _convert(folder, tmp_path, [32, 100])
    assert manifest.general is None
    assert [spec.pad_value for spec in manifest.inputs] == [None, None]
    _require_rows_alone(opened, folder, [32, 100, 32])
    with pytest.raises(ValueError, match="a length of 32, 100, got 33"):
        opened(_draw([33]))


# Tracing and the gate


def _bench(folder, tmp_path, lengths, **options):
    return Bench(folder=folder, work=tmp_path, task=TASK, lengths=lengths, **options)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("phi3", "bfloat16"),
        ("phi3", "float16"),
        ("phi3", "int8"),
        ("phimoe", "float32"),
        ("dynamic", "float32"),
        ("dynamic", "bfloat16"),
        ("qwen2-dynamic", "float32"),
    ],
)
def test_lengths_up_to_the_original_pass_the_gate(name, dtype, rotary, tmp_path):
    bench = _bench(rotary(name), tmp_path, (8, 32), dtype=dtype)
    assert bench.validate(bench.trace()).passed


@pytest.mark.parametrize("name", ["phi3", "phimoe"])
def test_a_bundle_holds_the_frequencies_of_the_checkpoint_and_never_writes_them(
    name, rotary, tmp_path
):
    """The trace of a long length left its frequencies in the buffer, and so did every call."""
    bench = _bench(rotary(name), tmp_path, (64,))
    bundle = bench.trace()
    assert bench.validate(bundle).passed
    module = torch.jit.load(bundle.path)
    held = {key: value.clone() for key, value in module.named_buffers()}
    with torch.no_grad():
        module(*(torch.tensor(_draw([64])), torch.ones(1, 64).long()))
    for key, value in module.named_buffers():
        assert torch.equal(value, held[key]), key


def _plant(name):
    def corrupt(model):
        rotary = model.model.rotary_emb
        longer, _ = ROPE_INIT_FUNCTIONS["longrope"](model.config, seq_len=33)
        assert not torch.equal(longer, getattr(rotary, name))
        getattr(rotary, name).copy_(longer)

    return corrupt


def test_long_frequencies_in_a_bundle_are_caught(rotary, tmp_path):
    bench = _bench(rotary("phi3"), tmp_path, (8, 32))
    with pytest.raises(UnsafeCheckpointError, match=r"rotary_emb\.inv_freq.*bit for bit"):
        bench.validate(bench.trace(_plant("inv_freq")))
    bundle = bench.trace(_plant("original_inv_freq"))
    with pytest.raises(UnsafeCheckpointError, match=r"original_inv_freq.*bit for bit"):
        bench.validate(bundle)
    with pytest.raises(NumericsMismatchError, match="traced-input"):
        bench.validate(bundle, bits=False)


# Modules that write to their buffers


class Writing(nn.Module):
    """As a long rotary embedding: what a call computes with is written by the call itself."""

    def __init__(self):
        super().__init__()
        self.factor: Any
        self.register_buffer("factor", torch.ones(2))

    def forward(self, x):
        self.factor.copy_(torch.where(x.max() > 1, 3.0, 2.0))
        return x * self.factor


class Counting(Writing):
    def forward(self, x):
        self.factor[:1] += 1
        return x * self.factor


def _record(model: nn.Module, keeping: Any) -> Any:
    class Recorded(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            with keeping(model):
                return self.model(x)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Recorded(), torch.zeros(2), check_trace=False)


def test_what_a_module_writes_is_a_copy_in_its_graph():
    one, two = torch.zeros(2) + 1, torch.zeros(2) + 2
    traced = _record(Writing(), sparing_buffers)
    assert traced(one).tolist() == [2, 2]
    assert traced(two).tolist() == [6, 6]
    assert traced.model.factor.tolist() == [1, 1]
    faulty = _record(Writing(), restoring_module_state)
    assert faulty.model.factor.tolist() == [2, 2], "the fault that it prevents"
    faulty(two)
    assert faulty.model.factor.tolist() == [3, 3]


def test_a_module_may_read_what_it_wrote_until_the_block_ends():
    model = Writing()
    with torch.no_grad(), sparing_buffers(model):
        assert model(torch.zeros(2) + 2).tolist() == [6, 6]
        assert model.factor.tolist() == [3, 3]
    assert model.factor.tolist() == [1, 1]


def test_any_other_write_is_refused_with_its_name():
    with pytest.raises(UnsupportedCheckpointError, match=r"Counting.*writes to \['factor'\]"):
        _record(Counting(), sparing_buffers)


def test_a_model_that_writes_elsewhere_is_refused_before_it_is_traced(
    rotary, tmp_path, monkeypatch
):
    kind = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding
    inner = kind.forward

    def writing(self: Any, *arguments: Any, **named: Any) -> Any:
        self.inv_freq[0] += 0
        return inner(self, *arguments, **named)

    monkeypatch.setattr(kind, "forward", writing)
    bench = _bench(rotary("phi3"), tmp_path, (8,))
    with pytest.raises(UnsupportedCheckpointError, match=r"Phi3ForCausalLM.*inv_freq"):
        bench.trace()


def test_eager_is_the_same_under_it(rotary):
    model = load_eager(rotary("phi3"), OPTIONS)
    feed = {"input_ids": torch.tensor(_draw([60]))}
    outputs = (OutputSpec(name="logits", dtype="float32", axes=("batch", "length", "256")),)
    with torch.no_grad():
        expected = call_tuple(copy.deepcopy(model), feed, outputs)
        with sparing_buffers(model):
            found = call_tuple(model, feed, outputs)
    assert torch.equal(found[0], expected[0])
