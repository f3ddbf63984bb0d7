"""Probes of real data: texts, pictures and sounds of ``tasks.samples``.

Trained weights have outlier features that random ids and pixels don't drive. A peer's export passed
its random parity test and was off by 10.47 on photographs (roboflow/rf-detr, issue 1233).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.model.facts import ModelFacts
from tasks.model.feeds import pad_right, tokens_of
from tasks.samples.make import Samples, read_feeds
from tasks.samples.texts import PASSAGE
from tasks.validate.probes import REAL, Probe
from tracefleet.lengths import smallest_fit
from tracefleet.manifest_types import General

if TYPE_CHECKING:
    from tasks.model.feeds import Feed

#: It has special tokens in its middle: some heads want the same number of them in all rows.
_ALONE = "special"


def read_passages(samples: Samples | None, facts: ModelFacts) -> dict[int, Feed]:
    """Return one row of a long text by its number of tokens; empty where there is none."""
    if samples is None:
        return {}
    passages = {}
    for name, feed in read_feeds(samples, facts.inputs).items():
        if name.startswith(PASSAGE):
            passages[_count_tokens(facts, feed)] = feed
    return passages


def real_probes(
    facts: ModelFacts,
    samples: Samples | None,
    lengths: tuple[int, ...],
    whole: tuple[int, ...],
    general: General | None,
) -> Iterator[Probe]:
    """Yield each short sample at its own length, and padded; long ones where programs differ.

    Eager may refuse some: a tokenizer may know tokens that a head does not take.

    Args:
        facts: Facts of the model.
        samples: Real inputs; None: there are none.
        lengths: Standard lengths, ascending.
        whole: Lengths that get every probe.
        general: Shapes at which the artifact runs calls as they are; None: it pads them.
    """
    if samples is None:
        return
    short: dict[int, list[Feed]] = {}
    for name, feed in read_feeds(samples, facts.inputs).items():
        tokens = _count_tokens(facts, feed)
        is_long = name.startswith(PASSAGE)
        wanted = _takes(facts, tokens, lengths, general)
        if is_long:  # the shortest length has the short texts, unless they can't be padded to it
            wanted = tokens in whole and (tokens > lengths[0] or not facts.takes_padding)
        if not wanted:
            continue
        length = smallest_fit(lengths, tokens)
        yield _make(name, length, feed)
        if not is_long and name != _ALONE:
            short.setdefault(length, []).append(feed)
    # A bundle that pads every call has padded each of them already.
    if general is not None and facts.takes_padding and facts.varies_in_length:
        for length, feeds in sorted(short.items()):
            yield _pad_together(facts, length, feeds)


def _takes(
    facts: ModelFacts, tokens: int, lengths: tuple[int, ...], general: General | None
) -> bool:
    """Tell whether the artifact runs a row of so many tokens."""
    if facts.takes_padding or not facts.varies_in_length:
        return True
    return tokens in lengths or (general is not None and tokens >= general.shortest)


def _make(name: str, length: int, feed: Feed) -> Probe:
    return Probe(
        name=f"{REAL}{name}",
        length=length,
        feed=feed,
        dispatch=True,
        optional=True,
        sample=name,
    )


def _pad_together(facts: ModelFacts, length: int, feeds: list[Feed]) -> Probe:
    """Return several rows that are padded to one length; each row's reference is its own run."""
    import torch

    padded = [pad_right(facts, feed, length) for feed in feeds]
    joined = {}
    for name in facts.inputs:
        joined[name] = torch.cat([feed[name] for feed in padded])
    return Probe(
        name=f"{REAL}together",
        length=length,
        feed=joined,
        reference_rows=tuple(feeds),
        dispatch=True,
        optional=True,
    )


def _count_tokens(facts: ModelFacts, feed: Feed) -> int:
    return max(tokens_of(facts, feed).values(), default=0)
