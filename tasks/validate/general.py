"""Probes of a graph that is to run at every length and batch: unpadded, all rows at once.

Its programs were compared at two lengths and two batches (``tasks.trace.compare``): that shows what
was recorded, and not what an operator does with another shape. So the bundle is run where a change
would show. One token under each standard length: a graph that goes wrong somewhere between two of
them, and up to the next, is wrong there. One over the two shortest, and three lengths between the
shortest and the longest. Few and many rows with few tokens. Two rows of the largest length, one of
them nearly all padding.

An eager pass over all lengths is what a conversion's reference costs. So a standard length itself
is tried with one token of padding, and the row that is one token under it is the reference of both;
the two long rows have the references of rows that were run by themselves.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tasks.model.facts import ModelFacts
from tasks.model.feeds import pad_right, random_feed
from tasks.model.general import MOST_ROWS, ROWS, ROWS_OF_SAMPLES, takes_samples
from tasks.samples.texts import PASSAGE
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
    facts: ModelFacts, lengths: tuple[int, ...], general: General, passages: Mapping[int, Feed]
) -> Iterator[Probe]:
    """Yield the probes of a general graph, beside those that every bundle gets.

    Args:
        facts: Facts of the model.
        lengths: Standard lengths, ascending; each of them is another probe's.
        general: Shapes that are to be proved.
        passages: One row of text by its number of tokens; rows of others are drawn.
    """
    for rows, tokens in _choose_rows(facts, lengths):
        yield _make(facts, lengths, rows, tokens)
    if facts.varies_in_length:
        for tokens in _choose_lengths(lengths, general.shortest):
            yield _make_row(facts, lengths, tokens, passages)
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


def padded_probe(facts: ModelFacts, length: int, passages: Mapping[int, Feed]) -> Probe:
    """Return a row of a standard length with one token of padding; its reference has none."""
    short = passages.get(length - 1) or _make_feed(facts, 1, length - 1)
    return Probe(
        name=f"dispatch-{length}",
        length=length,
        feed=pad_right(facts, short, length),
        reference_feed=short,
        dispatch=True,
        general=True,
    )


def _make_feed(facts: ModelFacts, rows: int, tokens: int) -> Feed:
    return random_feed(facts, batch=rows, length=tokens, seed=_SEED + rows * 10_000 + tokens)


def _make_row(
    facts: ModelFacts, lengths: tuple[int, ...], tokens: int, passages: Mapping[int, Feed]
) -> Probe:
    """Return one row of text, or a drawn one where there is no text of so many tokens."""
    if tokens not in passages:
        return _make(facts, lengths, 1, tokens)
    probe = _name(lengths, 1, tokens, passages[tokens])
    return dataclasses.replace(probe, sample=f"{PASSAGE}{tokens}")


def _make(facts: ModelFacts, lengths: tuple[int, ...], rows: int, tokens: int) -> Probe:
    return _name(lengths, rows, tokens, _make_feed(facts, rows, tokens))


def _make_ragged(facts: ModelFacts, lengths: tuple[int, ...], shortest: int) -> Probe:
    """Return two rows of the largest length, one nearly all padding if padding is allowed."""
    import torch

    longest = lengths[-1]
    sizes = (longest, longest)
    if facts.takes_padding:
        sizes = (max(shortest, min(lengths[0] + 1, longest)), max(shortest, longest - 1))
    rows = tuple(_make_feed(facts, 1, size) for size in sizes)
    first, second = (pad_right(facts, row, longest) for row in rows)
    feed = {name: torch.cat([first[name], second[name]]) for name in first}
    probe = _name(lengths, 2, longest, feed)
    return dataclasses.replace(probe, reference_rows=rows) if facts.takes_padding else probe


def _name(lengths: tuple[int, ...], rows: int, tokens: int, feed: Feed) -> Probe:
    name = f"general-{rows}x{tokens}"
    standard = smallest_fit(lengths, tokens)
    return Probe(name=name, length=standard, feed=feed, dispatch=True, general=True)
