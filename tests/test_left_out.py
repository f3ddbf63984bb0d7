"""Inputs that callers leave out: filled with a constant where eager assumes it, else required."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tracefleet
from flows.convert import convert
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case, build
from tests.support.gate_support import Bench

#: Model types that compute a default from the ids, and the input that has to be given.
COMPUTING = [
    ("big_bird", "question-answering", {"token_type_ids"}),
    ("t5gemma", "text2text-generation", {"attention_mask", "decoder_attention_mask"}),
]
ASSUMING = [
    ("bert", "feature-extraction"),
    ("roberta", "fill-mask"),
    ("bart", "text2text-generation"),
    ("t5", "text2text-generation"),
    ("electra", "text-classification"),
    ("gpt2", "text-generation"),
]


def _reference(model_type: str, task: str, tmp_path: Path) -> Any:
    folder = tmp_path / model_type
    build(Case(model_type=model_type, task=task), folder)
    return Bench(folder=folder, work=tmp_path / "work", task=task).reference()


@pytest.mark.parametrize(("model_type", "task", "required"), COMPUTING)
def test_an_input_whose_default_is_computed_is_required(model_type, task, required, tmp_path):
    assert _reference(model_type, task, tmp_path).required == required


@pytest.mark.parametrize(("model_type", "task"), ASSUMING)
def test_an_input_whose_default_is_a_constant_is_not(model_type, task, tmp_path):
    assert _reference(model_type, task, tmp_path).required == frozenset()


def _convert(folder: Path, task: str, tmp_path: Path) -> Any:
    fields = {"source": str(folder), "task": task, "lengths": [8, 16]}
    return convert(make_request({**fields, "store": str(tmp_path / "store")}))


def test_the_reader_asks_for_it_and_gets_eagers_result(tmp_path):
    folder = tmp_path / "checkpoint"
    task = "question-answering"
    build(Case(model_type="big_bird", task=task), folder)
    manifest = _convert(folder, task, tmp_path).manifest
    fills = {spec.name: spec.fill_value for spec in manifest.inputs}
    assert fills == {"input_ids": None, "attention_mask": 1, "token_type_ids": None}
    model = tracefleet.open(tmp_path / "store", folder)
    ids = [[20, 21, 22, 23, 24, 25, 26, 27]]
    with pytest.raises(ValueError, match="token_type_ids: this conversion needs it"):
        model(ids)
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    got = model(ids, token_type_ids=types)
    eager = load_eager(folder, LoadOptions(task=task))
    with torch.no_grad():
        expected = eager(torch.tensor(ids), token_type_ids=types)
    for name in model.output_names:
        torch.testing.assert_close(got[name], expected[name], atol=1e-4, rtol=1e-4)


def test_what_may_be_left_out_gives_what_eager_gives_without_it(checkpoint, tmp_path):
    folder = checkpoint("bert")
    _convert(folder, "feature-extraction", tmp_path)
    model = tracefleet.open(tmp_path / "store", folder)
    ids = torch.tensor([[5, 0, 7, 3, 9], [1, 2, 0, 0, 4]])
    eager = load_eager(folder, LoadOptions(task="feature-extraction"))
    with torch.no_grad():
        expected = eager(ids)
    for name in model.output_names:
        torch.testing.assert_close(model(ids)[name], expected[name], atol=1e-5, rtol=1e-4)
