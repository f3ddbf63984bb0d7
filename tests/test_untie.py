"""Untying: every tied group found by storage, copied, proved; outputs bit-identical."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.errors import TiedWeightsError
from tasks.model.facts import LoadOptions
from tasks.model.feeds import random_feed
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple, describe_outputs
from tasks.model.preflight import inspect
from tasks.trace.untie import find_tied_groups, untie
from tests.support import tiny

TIED = {
    "bert-mlm": (
        "fill-mask",
        (
            ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
            ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        ),
    ),
    "gpt2": ("text-generation", (("lm_head.weight", "transformer.wte.weight"),)),
    "t5": (
        "text2text-generation",
        (
            (
                "decoder.embed_tokens.weight",
                "encoder.embed_tokens.weight",
                "lm_head.weight",
                "shared.weight",
            ),
        ),
    ),
    "marian": (
        "text2text-generation",
        (
            (
                "lm_head.weight",
                "model.decoder.embed_tokens.weight",
                "model.encoder.embed_tokens.weight",
                "model.shared.weight",
            ),
        ),
    ),
    "bart": (
        "text2text-generation",
        (
            (
                "lm_head.weight",
                "model.decoder.embed_tokens.weight",
                "model.encoder.embed_tokens.weight",
                "model.shared.weight",
            ),
        ),
    ),
    "albert-mlm": (
        "fill-mask",
        (
            ("albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
            ("predictions.bias", "predictions.decoder.bias"),
        ),
    ),
    "bert-cls": ("text-classification", ()),
}


@pytest.mark.parametrize("name", TIED)
def test_every_tied_group_is_found_and_no_output_bit_moves(name, checkpoint):
    task, groups = TIED[name]
    folder, options = checkpoint(name), LoadOptions(task=task)
    facts = inspect(folder, options, (16,))
    model = load_eager(folder, options)
    feed = random_feed(facts, batch=2, length=12, seed=3)
    with torch.no_grad():
        outputs = describe_outputs(model, facts)
        before = call_tuple(model, feed, outputs)
        assert untie(model) == groups
        after = call_tuple(model, feed, outputs)
    assert find_tied_groups(model) == ()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_untied_weights_do_not_follow_each_other():
    model = tiny.build("gpt2")
    untie(model)
    model.transformer.wte.weight.data.zero_()
    assert float(model.lm_head.weight.detach().abs().max()) > 0


def test_transformers_can_not_tie_again():
    model = tiny.build("gpt2")
    untie(model)
    model.tie_weights()
    assert find_tied_groups(model) == ()


class _Views(nn.Module):
    whole: torch.Tensor
    row: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(4, 4)
        self.register_buffer("whole", whole)
        self.register_buffer("row", whole[1])
        self.register_buffer("apart", torch.randn(4))


def test_views_and_buffers_are_groups_too():
    model = _Views()
    assert find_tied_groups(model) == (("row", "whole"),)
    untie(model)
    model.row.zero_()
    assert float(model.whole[1].abs().max()) > 0


def test_neighbours_in_one_storage_are_not_tied():
    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            storage = torch.randn(8)
            self.register_buffer("first", storage[:4])
            self.register_buffer("second", storage[4:])

    assert find_tied_groups(Neighbours()) == ()


def test_a_shared_module_is_not_weight_tying():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = self.one

    assert find_tied_groups(Shared()) == ()


def test_a_group_that_survives_is_refused(monkeypatch):
    model = tiny.build("gpt2")
    monkeypatch.setattr("tasks.trace.untie._replace_by_copy", lambda *_: None)
    with pytest.raises(TiedWeightsError, match=r"lm_head\.weight"):
        untie(model)


def test_untying_through_the_config_would_be_wrong_and_is_caught(checkpoint, monkeypatch):
    """T5's output scale hangs on the flag: flipping it changes logits by sqrt(d)."""
    from tasks.trace import untie as untie_module

    folder, options = checkpoint("t5"), LoadOptions(task="text2text-generation")
    facts = inspect(folder, options, (16,))
    model = load_eager(folder, options)
    outputs = describe_outputs(model, facts)

    def flip(flipped):
        flipped.config.scale_decoder_outputs = not flipped.config.scale_decoder_outputs
        return (("a", "b"),)

    monkeypatch.setattr(untie_module, "untie", flip)
    with pytest.raises(TiedWeightsError, match="bit-identical"):
        untie_module.untie_with_proof(model, facts, outputs, 16, 1)
