"""The calls of ``generate`` that its gate compares, the same in every process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.model.facts import ModelFacts
from tasks.model.feeds import pad_right, random_feed
from tasks.samples.make import Samples, read_feeds
from tasks.samples.texts import PASSAGE

if TYPE_CHECKING:
    import torch

    from tasks.model.feeds import Feed

#: New tokens of an answer, and of those that are cut off.
LIMIT, SHORT_LIMIT = 24, 3
#: Rows of random ids that have to be proved, and spare ones for near ties: more of those that are
#: cut off, which coarse arithmetic leaves some clear choices.
RANDOM_ROWS, SPARE_ROWS, SHORT_SPARE_ROWS = 8, 4, 16
RANDOM, CUT_OFF = "random", "cut-off"
#: Decoder positions that are compared in a cache of each size, and around each change of size.
FIRST_STEPS, AROUND = 8, 2
_SEED = 9_000
_ENCODER = ("input_ids", "attention_mask")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows of one call of ``generate``.

    Attributes:
        name: What it shows.
        limit: Most new tokens.
        rows: Places of the rows that show it; None: every row does.
        needed: How many of them have to prove something; the others are spare.
        longer: Ids of an answer below which a row does not show it.
    """

    name: str
    limit: int
    rows: tuple[int, ...] | None = None
    needed: int = 1
    longer: int = 0


def make_cases(
    facts: ModelFacts, lengths: tuple[int, ...], samples: Samples | None
) -> Iterator[tuple[Case, Feed]]:
    """Yield each call with the encoder's inputs, rows of different lengths padded on the right."""
    limit, shortest, longest = min(LIMIT, lengths[-1]), lengths[0], lengths[-1]
    drawn = random.Random(_SEED)  # noqa: S311  the same on every machine
    count = RANDOM_ROWS + SHORT_SPARE_ROWS
    sizes = [drawn.randint(min(2, shortest), shortest) for _ in range(count)]
    rows = draw_rows(facts, sizes[: RANDOM_ROWS + SPARE_ROWS])
    yield Case(name=RANDOM, limit=limit, needed=RANDOM_ROWS), rows
    short = min(SHORT_LIMIT, limit)
    yield Case(name=CUT_OFF, limit=short, needed=RANDOM_ROWS), draw_rows(facts, sizes)
    few = draw_rows(facts, [1, shortest, 1])
    yield Case(name="one-token", limit=limit, rows=(0, 2)), few
    yield Case(name="longest", limit=limit), draw_rows(facts, [longest, longest])
    if shortest < longest:
        more = min(longest, shortest + SHORT_LIMIT)
        grown = Case(name="grown-cache", limit=more, longer=shortest + 1)
        yield grown, draw_rows(facts, [shortest, 1])
    texts = list(_read_texts(facts, longest, samples))
    if texts:
        yield (
            Case(name="real-texts", limit=limit, needed=(len(texts) + 1) // 2),
            _stack(facts, texts),
        )


def draw_rows(facts: ModelFacts, sizes: list[int]) -> Feed:
    """Return rows of random ids with so many tokens each."""
    rows = []
    for place, size in enumerate(sizes):
        rows.append(random_feed(facts, batch=1, length=size, seed=_SEED + place))
    return _stack(facts, rows)


def draw_tokens(facts: ModelFacts, rows: int, count: int) -> torch.Tensor:
    """Return ids that a decoder is forced to, shape ``(rows, count)``."""
    return random_feed(facts, batch=rows, length=count, seed=_SEED - 1)["input_ids"]


def choose_positions(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first positions, those around each change of a cache's size, and the last."""
    chosen = {*range(FIRST_STEPS), lengths[-1] - 1}
    for length in lengths:
        chosen |= set(range(length - AROUND, length + AROUND))
    return tuple(sorted(one for one in chosen if 0 <= one < lengths[-1]))


def _stack(facts: ModelFacts, rows: list[Feed]) -> Feed:
    import torch

    longest = max(row["input_ids"].shape[1] for row in rows)
    padded = [pad_right(facts, row, longest) for row in rows]
    joined = {}
    for name in _ENCODER:
        joined[name] = torch.cat([row[name] for row in padded])
    return joined


def _read_texts(facts: ModelFacts, longest: int, samples: Samples | None) -> Iterator[Feed]:
    """Yield the real texts that fit; passages of exactly a standard length are left to forward."""
    if samples is None:
        return
    for name, feed in read_feeds(samples, facts.inputs).items():
        ids = feed["input_ids"]
        # A tokenizer may know tokens that its model does not.
        known = int(ids.max()) < facts.vocabulary.size
        if known and not name.startswith(PASSAGE) and ids.shape[1] <= longest:
            yield feed
