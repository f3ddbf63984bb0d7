"""Real texts as probes: they see what only trained activations show, and random ids do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from examples.sample import ensure_sample
from tasks.errors import NumericsMismatchError
from tasks.validate.plan import plan_probes
from tests.support.gate_support import Bench
from tests.support.tiny import BERT
from tracefleet.manifest_types import General

#: Ids of all-MiniLM-L6-v2's tokenizer that every English text has, and random ids hardly ever.
_FULL_STOP, _THE = 1012, 1996
_OUTLIER, _CHANNEL, _NEURON = 400.0, 3, 0
_LENGTHS = (8, 16)


def _outlying(folder: Path, strength: float) -> Path:
    """Save a tiny BERT in which two common tokens drive one channel far above all others."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 30522}
    config = transformers.BertConfig(**{**BERT, **sizes})
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for token in (_FULL_STOP, _THE):
            model.embeddings.word_embeddings.weight[token, _CHANNEL] = _OUTLIER
        dense = model.encoder.layer[0].intermediate.dense
        # sqrt(64) is what LayerNorm makes of a lone channel, and 5 what it makes of no other.
        dense.weight[_NEURON] = 0.0
        dense.weight[_NEURON, _CHANNEL] = strength
        dense.bias[_NEURON] = -5.0 * strength
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(ensure_sample() / name, folder / name)
    return folder


class _Clamped(torch.nn.Module):
    """An activation that clamps what is above 20 standard deviations of random ids' activations."""

    def __init__(self, inner: Callable[[torch.Tensor], torch.Tensor], most: float) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.inner(values).clamp(max=self.most)


class _Overflowing(torch.nn.Module):
    """An activation that is NaN where half precision overflows, and exact everywhere else."""

    def __init__(self, inner: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        activated = self.inner(values)
        return activated + activated.half().float() * 0.0


def _clamp(model: Any) -> None:
    layer = model.encoder.layer[0].intermediate
    layer.intermediate_act_fn = _Clamped(layer.intermediate_act_fn, most=20.0)


def _overflow(model: Any) -> None:
    layer = model.encoder.layer[0].intermediate
    layer.intermediate_act_fn = _Overflowing(layer.intermediate_act_fn)


@pytest.mark.parametrize(
    ("fault", "strength"), [(_clamp, 100.0), (_overflow, 1e5)], ids=["clamp", "half-overflow"]
)
@pytest.mark.parametrize("general", [None, General(shortest=1, rows=64, tokens=1024)])
def test_a_fault_of_trained_activations_alone_is_caught_by_real_texts_alone(
    fault, strength, general, tmp_path
):
    folder = _outlying(tmp_path / "checkpoint", strength)
    whole = None if general is None else _LENGTHS[:1]
    fields: dict[str, Any] = {
        "folder": folder,
        "task": "feature-extraction",
        "batch": 1,
        "general": general,
        "whole": whole,
    }
    blind = Bench(work=tmp_path / "blind", **fields)
    assert blind.validate(blind.trace(fault)).passed, "random ids see it: it proves nothing"
    bench = Bench(work=tmp_path / "work", real=True, **fields)
    assert bench.validate(bench.trace()).passed, "the texts refuse what is right"
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bench.trace(fault))
    report = caught.value.report
    assert report is not None
    real = {p.key for p in plan_probes(bench.plan()) if p.sample or p.name.startswith("real-")}
    failed = {f"{p.length}/{p.name}" for p in report.probes if not p.difference.passed}
    assert failed
    assert failed <= real
