"""Probes of rows that have padding on their left, or a hole, and padding on their right as well.

Each alone is right: ``right-pad-N``, ``left-pad`` and ``hole`` are judged. Both together change
what some architectures compute: DeBERTa's pooler reads the first position, and where that is
padding it averages over all of them. Which do is measured and published, and no reason to refuse a
conversion. A general graph also runs such rows as they are, and has to be right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.model.facts import ModelFacts
from tasks.model.feeds import pad_right, random_feed, with_mask
from tasks.validate.probes import FRESH_SEED_BASE, Probe

if TYPE_CHECKING:
    import torch

_SEED = FRESH_SEED_BASE + 900
_ROWS = 2


def left_padded_probes(
    facts: ModelFacts, lengths: tuple[int, ...], *, last: bool, general: bool
) -> Iterator[Probe]:
    """Yield few and short rows: each costs one call of eager and one of the bundle.

    Args:
        facts: Facts of the model.
        lengths: Standard lengths, ascending.
        last: Whether the largest of them has a program of its own.
        general: Whether the graph runs rows of ids as they are.
    """
    if not {"input_ids", "attention_mask"} <= set(facts.inputs):
        return
    shapes = _choose_shapes(lengths, last=last)
    # How near a length is to a standard one is no matter where nothing is padded.
    for length, rows, tokens in shapes[:2] if general else shapes:
        if general and rows == _ROWS:
            yield _make(facts, length, rows, tokens, general=True)
        if facts.takes_padding:
            probe = _make(facts, length, rows, tokens)
            yield _pad(facts, probe) if general else probe


def _choose_shapes(lengths: tuple[int, ...], *, last: bool) -> list[tuple[int, int, int]]:
    """Return standard length, rows and tokens of each: the shortest, middle and longest that pad.

    At the first standard length that pads any; one token under the largest as well, where that
    has a program of its own.
    """
    shapes: list[tuple[int, int, int]] = []
    for below, length in zip((0, *lengths), lengths, strict=False):
        shortest = max(2, below + 1)  # one shown and one hidden
        if shortest >= length:
            continue
        if not shapes:
            middle = max(shortest, (below + length) // 2)
            shapes += [(length, 1, shortest), (length, _ROWS, middle), (length, 1, length - 1)]
        elif last and length == lengths[-1]:
            shapes.append((length, 1, length - 1))
    return list(dict.fromkeys(shapes))


def _make(
    facts: ModelFacts, length: int, rows: int, tokens: int, *, general: bool = False
) -> Probe:
    seed = _SEED + rows * 10_000 + tokens
    whole = random_feed(facts, batch=rows, length=tokens, seed=seed)
    name = f"left-pad-{rows}x{tokens}"
    return Probe(
        name=f"general-{name}" if general else name,
        length=length,
        feed=with_mask(facts, whole, _make_mask(rows, tokens)),
        dispatch=True,
        optional=True,
        general=general,
        left_padded=True,
    )


def _pad(facts: ModelFacts, probe: Probe) -> Probe:
    """Pad as callers of a general graph do, to run rows of several lengths together."""
    padded = pad_right(facts, probe.feed, probe.length)
    return dataclasses.replace(probe, feed=padded, reference_feed=probe.feed)


def _make_mask(rows: int, tokens: int) -> torch.Tensor:
    """Return a mask that hides a third of the row on its left, and one of a token and a hole."""
    import torch

    places = torch.arange(tokens)
    masks = [places >= max(1, tokens // 3), (places == 1) | (places > tokens // 2)]
    return torch.stack(masks[:rows]).long()
