"""Feeds: the input tensors that a model is traced, probed and measured with.

A feed maps input names to tensors in the order of the model's forward signature: int64 ids of
shape ``(batch, length)`` and masks of the same shape; ``(batch, choices, length)`` for multiple
choice; real values for images and sounds. Every feed is drawn from a seed, so that the same request
makes the same bytes on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tasks.model.arguments import Argument
from tasks.model.facts import ModelFacts
from tasks.model.vocabulary import Vocabulary
from tracefleet.manifest_types import InputSpec

if TYPE_CHECKING:
    import torch

    Feed: TypeAlias = dict[str, torch.Tensor]


def input_specs(facts: ModelFacts) -> tuple[InputSpec, ...]:
    """Describe the positional arguments of the bundle's ``forward``."""
    return tuple(
        InputSpec(
            name=one.name,
            dtype=one.dtype,
            axes=one.axes,
            pad_value=one.pad,
            fill_value=one.fill,
        )
        for one in facts.arguments
    )


def random_feed(facts: ModelFacts, *, batch: int, length: int, seed: int) -> Feed:
    """Return a random feed, every position valid, ids without special ones."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        one.name: _draw(facts, one, _shape_of(one, batch, length), generator)
        for one in facts.arguments
    }


def feed_of(facts: ModelFacts, ids: torch.Tensor) -> Feed:
    """Build a full feed around given ids, shape ``(batch, length)``, every position valid.

    The decoder, and each of several choices, gets the same ids.
    """
    batch, length = ids.shape
    feed = random_feed(facts, batch=batch, length=length, seed=0)
    for one in facts.arguments:
        if one.kind == "ids":
            feed[one.name] = _place_end_tokens(facts, one, _repeat_for_choices(ids, feed[one.name]))
    return feed


def tokens_of(facts: ModelFacts, feed: Feed) -> dict[str, int]:
    """Return how long a feed is along each axis that follows a length."""
    tokens = {}
    for one in facts.arguments:
        axis = length_axis(one)
        if axis is not None:
            tokens[one.axes[axis]] = feed[one.name].shape[axis]
    return tokens


def pad_right(facts: ModelFacts, feed: Feed, length: int) -> Feed:
    """Pad a feed on the right up to ``length`` as the bundle's dispatcher does."""
    assert all(size <= length for size in tokens_of(facts, feed).values())
    return {one.name: _pad(facts, one, feed[one.name], length) for one in facts.arguments}


def with_mask(facts: ModelFacts, feed: Feed, mask: torch.Tensor) -> Feed:
    """Hide the positions where ``mask`` (shape ``(batch, length)``) is 0, ids and mask alike.

    The decoder keeps its own mask: its first token must stay visible.
    """
    if facts.vocabulary.eos is not None:  # BART's and T5's classifiers read the end token
        mask = mask.clone()
        mask[:, -1] = 1
    masked = dict(feed)
    shown = _repeat_for_choices(mask, feed["attention_mask"]).to(feed["attention_mask"].dtype)
    masked["attention_mask"] = shown
    if "input_ids" in feed:
        masked["input_ids"] = feed["input_ids"].masked_fill(shown == 0, facts.vocabulary.pad)
    return masked


def example_feed(facts: ModelFacts, *, batch: int, length: int) -> Feed:
    """Return the input on which the graph of ``length`` is traced."""
    return make_uneven_feed(facts, batch=batch, length=length, seed=length)


def make_uneven_feed(facts: ModelFacts, *, batch: int, length: int, seed: int) -> Feed:
    """Return padded rows of uneven lengths, one full.

    Row 0 is the shortest (three quarters of ``length``); the last of several rows is full.
    Decoder ids are padded too. Models that can't be padded get full rows.
    """
    import torch

    padded = facts.takes_padding or "attention_mask" in facts.inputs
    lengths = _draw_uneven_lengths(batch, length) if padded else [length] * batch
    rows = []
    for row, real in enumerate(lengths):
        feed = random_feed(facts, batch=1, length=real, seed=seed + row)
        rows.append(pad_right(facts, feed, length))
    columns = {}
    for name in facts.inputs:
        columns[name] = torch.cat([feed[name] for feed in rows])
    return columns


def cut(facts: ModelFacts, feed: Feed, axis: str, length: int) -> Feed:
    """Shorten a feed along ``length`` or ``decoder_length`` to its first ``length`` positions."""
    shortened = dict(feed)
    for one in facts.arguments:
        if axis in one.axes:
            place = one.axes.index(axis)
            shortened[one.name] = feed[one.name].narrow(place, 0, length).contiguous()
    return shortened


def mirror(argument: Argument, tensor: torch.Tensor) -> torch.Tensor:
    """Count ids or places from the other end of their range: valid too, and all different."""
    import torch

    whole = int(argument.dtype == "int64")  # parts of a page run to 1 itself
    other = torch.tensor(argument.bounds, dtype=tensor.dtype) - whole - tensor
    if argument.kind == "boxes":  # (x0, y0) has to stay the smaller corner
        other = other[..., [2, 3, 0, 1]]
    return other.contiguous()


def length_axis(argument: Argument) -> int | None:
    """Return which axis of an argument follows a length, if one does."""
    for place, axis in enumerate(argument.axes):
        if axis in ("length", "decoder_length"):
            return place
    return None


def _shape_of(argument: Argument, batch: int, length: int) -> tuple[int, ...]:
    sizes = {"batch": batch, "length": length, "decoder_length": length}
    return tuple(int(sizes.get(axis, axis)) for axis in argument.axes)


def _draw(
    facts: ModelFacts, argument: Argument, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    """Draw one argument, every position valid."""
    import torch

    def below(bound: int, size: Sequence[int] = shape) -> torch.Tensor:
        return torch.randint(bound, tuple(size), generator=generator)

    if argument.kind == "ids":
        allowed = _ordinary_ids(facts.vocabulary)
        return _place_end_tokens(facts, argument, allowed[below(len(allowed))])
    if argument.kind == "mask":
        return torch.ones(shape, dtype=torch.int64)
    if argument.kind == "segments":
        return _draw_segments(argument, shape)
    if argument.kind == "boxes":
        return _draw_boxes(argument, shape, below)
    if argument.kind == "values":
        drawn = torch.randn(shape, generator=generator)
        return drawn.to(getattr(torch, argument.dtype))
    return below(argument.bounds[0])


def _draw_segments(argument: Argument, shape: tuple[int, ...]) -> torch.Tensor:
    """Make the second half of a row type 1; of several columns, count each up to its bound."""
    import torch

    axis = length_axis(argument)
    assert axis is not None
    positions = torch.arange(shape[axis])
    if len(argument.bounds) == 1:
        return (positions >= shape[axis] // 2).long().expand(shape).contiguous()
    columns = [positions % bound for bound in argument.bounds]
    return torch.stack(columns, -1).expand(shape).contiguous()


def _draw_boxes(
    argument: Argument, shape: tuple[int, ...], below: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Draw boxes (x0, y0, x1, y1), neither empty nor inverted; integers or parts of 1."""
    import torch

    whole = argument.dtype == "int64"
    steps = argument.bounds[0] if whole else 1000
    corners = below(steps, (*shape[:-1], 2, 2)).sort(dim=-2).values.reshape(shape)
    return corners if whole else corners.to(getattr(torch, argument.dtype)) / steps


def _place_end_tokens(facts: ModelFacts, argument: Argument, ids: torch.Tensor) -> torch.Tensor:
    """Put the end token where the tokenizer puts it, and the decoder's first token first."""
    ids = ids.clone()
    vocabulary = facts.vocabulary
    if argument.name.startswith("decoder_"):
        if vocabulary.decoder_start is not None:
            ids[..., 0] = vocabulary.decoder_start
    elif vocabulary.eos is not None:  # BART's classifier counts end tokens
        ids[..., -1] = vocabulary.eos
    return ids


def _repeat_for_choices(pattern: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give every choice of a row the row's pattern, shape ``(batch, length)``."""
    if like.dim() > pattern.dim():
        pattern = pattern.unsqueeze(1)
    return pattern.expand(like.shape).contiguous()


def _pad(facts: ModelFacts, argument: Argument, tensor: torch.Tensor, length: int) -> torch.Tensor:
    from torch.nn.functional import pad

    axis = length_axis(argument)
    if axis is None or tensor.shape[axis] == length:
        return tensor
    after = [0, 0] * (tensor.dim() - 1 - axis)
    value = facts.vocabulary.pad if argument.kind == "ids" else 0
    return pad(tensor, (*after, 0, length - tensor.shape[axis]), value=value)


def _draw_uneven_lengths(batch: int, length: int) -> Sequence[int]:
    short = max(1, length - length // 4)
    span = max(1, batch - 1)
    return [short + (length - short) * row // span for row in range(batch)]


# Every feed needs them, and filtering a large vocabulary takes longer than drawing from it.
@functools.lru_cache(maxsize=4)
def _ordinary_ids(vocabulary: Vocabulary) -> torch.Tensor:
    import torch

    ordinary = [i for i in range(vocabulary.size) if i not in vocabulary.special]
    return torch.tensor(ordinary or range(vocabulary.size))
