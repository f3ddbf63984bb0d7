"""Feeds: the input tensors that a model is traced, probed and measured with.

A feed maps input names to int64 tensors in the order of the model's forward signature: ids of
shape ``(batch, length)`` and masks of the same shape. Every feed is drawn from a seed, so that the
same request makes the same bytes on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tasks.load import ModelFacts
from tasks.vocabulary import Vocabulary
from tracefleet.manifest import InputSpec

if TYPE_CHECKING:
    import torch

    Feed: TypeAlias = dict[str, torch.Tensor]

_AXIS = {"decoder_input_ids": "decoder_length", "decoder_attention_mask": "decoder_length"}


def input_specs(facts: ModelFacts) -> tuple[InputSpec, ...]:
    """Describe the positional arguments of the bundle's ``forward``."""
    return tuple(
        InputSpec(
            name=name,
            dtype="int64",
            axes=("batch", _AXIS.get(name, "length")),
            pad_value=facts.vocabulary.pad if name.endswith("input_ids") else 0,
            fill_value=_fill_value(name),
        )
        for name in facts.inputs
    )


def _fill_value(name: str) -> int | None:
    if name.endswith("attention_mask"):
        return 1
    return 0 if name == "token_type_ids" else None


def random_feed(facts: ModelFacts, *, batch: int, length: int, seed: int) -> Feed:
    """Return random ids without special ones, every position valid, shape ``(batch, length)``."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    allowed = _ordinary_ids(facts.vocabulary)

    def draw() -> torch.Tensor:
        return allowed[torch.randint(len(allowed), (batch, length), generator=generator)]

    return feed_of(facts, draw(), draw)


def feed_of(
    facts: ModelFacts, ids: torch.Tensor, decoder_ids: Callable[[], torch.Tensor] | None = None
) -> Feed:
    """Build a full feed around given ids, shape ``(batch, length)``, every position valid.

    Args:
        facts: which inputs the model takes.
        ids: the encoder's (or only) ids.
        decoder_ids: makes the decoder's ids of the same shape; default: the same ids again.
    """
    import torch

    vocabulary = facts.vocabulary
    ids = ids.clone()
    if vocabulary.eos is not None:  # where the tokenizer puts it; BART's classifier counts them
        ids[:, -1] = vocabulary.eos
    decoder = ids.clone() if decoder_ids is None else decoder_ids()
    if vocabulary.decoder_start is not None:
        decoder[:, 0] = vocabulary.decoder_start
    second_half = (torch.arange(ids.shape[1]) >= ids.shape[1] // 2).long().expand_as(ids)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": second_half.contiguous(),
        "decoder_input_ids": decoder,
        "decoder_attention_mask": torch.ones_like(ids),
    }
    return {name: made[name] for name in facts.inputs}


def pad_right(facts: ModelFacts, feed: Feed, length: int) -> Feed:
    """Pad a feed on the right up to ``length`` as the bundle's dispatcher does."""
    assert all(tensor.shape[1] <= length for tensor in feed.values())
    from torch.nn.functional import pad

    return {
        spec.name: pad(
            feed[spec.name], (0, length - feed[spec.name].shape[1]), value=spec.pad_value
        )
        for spec in input_specs(facts)
    }


def with_mask(facts: ModelFacts, feed: Feed, mask: torch.Tensor) -> Feed:
    """Hide the positions where ``mask`` (shape ``(batch, length)``) is 0, ids and mask alike.

    The decoder keeps its own mask: its first token must stay visible.
    """
    if facts.vocabulary.eos is not None:  # BART's and T5's classifiers read the end token
        mask = mask.clone()
        mask[:, -1] = 1
    masked = dict(feed)
    masked["attention_mask"] = mask.to(feed["attention_mask"].dtype)
    masked["input_ids"] = feed["input_ids"].masked_fill(mask == 0, facts.vocabulary.pad)
    return masked


def uneven_feed(facts: ModelFacts, *, batch: int, length: int, seed: int) -> Feed:
    """Return the example input that a trace records: padded rows of uneven lengths, one full.

    Row 0 is the shortest (three quarters of ``length``); the last of several rows is full.
    Decoder ids are padded too. Shape ``(batch, length)``.
    """
    import torch

    rows = [
        pad_right(facts, random_feed(facts, batch=1, length=real, seed=seed + row), length)
        for row, real in enumerate(_uneven_lengths(batch, length))
    ]
    return {name: torch.cat([row[name] for row in rows]) for name in facts.inputs}


def _uneven_lengths(batch: int, length: int) -> Sequence[int]:
    short = max(1, length - length // 4)
    span = max(1, batch - 1)
    return [short + (length - short) * row // span for row in range(batch)]


@functools.lru_cache(maxsize=4)
def _ordinary_ids(vocabulary: Vocabulary) -> torch.Tensor:
    import torch

    ordinary = [i for i in range(vocabulary.size) if i not in vocabulary.special]
    return torch.tensor(ordinary or range(vocabulary.size))
