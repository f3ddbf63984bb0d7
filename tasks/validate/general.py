"""Probes of a graph that is to run at every length and batch: unpadded, all rows at once.

Its programs were compared at two lengths and two batches (``tasks.trace.compare``): that shows what
was recorded, and not what an operator does with another shape. So the bundle is run where a change
would show. One token under each standard length: a graph that goes wrong somewhere between two of
them, and up to the next, is wrong there. One over the two shortest, and three lengths between the
shortest and the longest. Few and many rows with few tokens. Two rows of the largest length, one of
them nearly all padding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.model.facts import ModelFacts
from tasks.model.feeds import pad_right, random_feed
from tasks.model.general import MOST_ROWS, ROWS, ROWS_OF_SAMPLES, takes_samples
from tasks.validate.probes import FRESH_SEED_BASE, Probe
from tracefleet.lengths import smallest_fit
from tracefleet.manifest_types import General

if TYPE_CHECKING:
    from tasks.model.feeds import Feed

_SEED = FRESH_SEED_BASE + 700
_BETWEEN = 3
#: Tokens of a row where rows are many: what they cost grows with both.
_FEW_TOKENS, _FEWEST_TOKENS = 8, 4


def general_probes(
    facts: ModelFacts, lengths: tuple[int, ...], general: General
) -> Iterator[Probe]:
    """Yield the probes of a general graph, beside those that every bundle gets.

    Args:
        facts: Facts of the model.
        lengths: Standard lengths, ascending; each of them is another probe's.
        general: Shapes that are to be proved.
    """
    for rows, tokens in _choose_rows(facts, lengths):
        yield _make(facts, lengths, rows, tokens)
    if facts.varies_in_length:
        for tokens in _choose_lengths(lengths, general.shortest):
            yield _make(facts, lengths, 1, tokens)
        yield _make_ragged(facts, lengths, general.shortest)


def _choose_rows(facts: ModelFacts, lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the runs of several rows: how many, and the tokens of each."""
    if takes_samples(facts):
        return [(rows, lengths[0]) for rows in ROWS_OF_SAMPLES]
    few = [(rows, min(_FEW_TOKENS, lengths[0])) for rows in ROWS]
    return [*few, (MOST_ROWS, min(_FEWEST_TOKENS, lengths[0]))]


def _choose_lengths(lengths: tuple[int, ...], shortest: int) -> list[int]:
    """Return the lengths of one run each, ascending, none of them standard."""
    chosen = {shortest, *(length - 1 for length in lengths)}
    chosen |= {length + 1 for length in lengths[:2]}
    # The same in the reference's process and the gate's; more short ones, as texts are.
    drawn = random.Random(_SEED)  # noqa: S311
    for _ in range(_BETWEEN):
        chosen.add(round(math.exp(drawn.uniform(math.log(lengths[0]), math.log(lengths[-1])))))
    return sorted(one for one in chosen - set(lengths) if shortest <= one < lengths[-1])


def _make(facts: ModelFacts, lengths: tuple[int, ...], rows: int, tokens: int) -> Probe:
    feed = random_feed(facts, batch=rows, length=tokens, seed=_SEED + rows * 10_000 + tokens)
    return _name(lengths, rows, tokens, feed)


def _make_ragged(facts: ModelFacts, lengths: tuple[int, ...], shortest: int) -> Probe:
    """Return two rows of the largest length, the first of them short and padded if it may be."""
    import torch

    longest = lengths[-1]
    real = max(shortest, min(lengths[0] + 1, longest)) if facts.takes_padding else longest
    short = random_feed(facts, batch=1, length=real, seed=_SEED)
    whole = random_feed(facts, batch=1, length=longest, seed=_SEED + 1)
    padded = pad_right(facts, short, longest)
    feed = {name: torch.cat([padded[name], whole[name]]) for name in whole}
    return _name(lengths, 2, longest, feed)


def _name(lengths: tuple[int, ...], rows: int, tokens: int, feed: Feed) -> Probe:
    name = f"general-{rows}x{tokens}"
    standard = smallest_fit(lengths, tokens)
    return Probe(name=name, length=standard, feed=feed, dispatch=True, general=True)
