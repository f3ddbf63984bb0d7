"""Inputs that a caller may leave out: those for which eager itself assumes the constant we fill in.

Some architectures compute a default from the ids: BigBird finds token types behind the separator,
T5Gemma masks pad tokens of its decoder. Filled with a constant, their results would be others. So
eager is run with every choice of inputs left out, on ids that hold special tokens; what changes its
result has to be given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tasks.model.arguments import Argument
from tasks.model.feeds import random_feed
from tasks.validate.difference import is_within
from tasks.validate.probes import FRESH_SEED_BASE
from tasks.validate.reference import compare_outputs
from tasks.validate.reference_pass import ReferencePass

if TYPE_CHECKING:
    from tasks.model.feeds import Feed
    from tasks.validate.reference import Outputs

_SEED = FRESH_SEED_BASE + 800
_ROWS = 2


def find_required(eager: ReferencePass) -> frozenset[str]:
    """Return the inputs whose default is no constant, although they have one to be filled with.

    Args:
        eager: A pass that has run.
    """
    optional = [one for one in eager.plan.facts.arguments if one.fill is not None]
    required: set[str] = set()
    for feed in _list_feeds(eager, optional) if optional else ():
        required |= _find_in(eager, feed, {one.name for one in optional} - required)
    return frozenset(required)


def _find_in(eager: ReferencePass, feed: Feed, optional: set[str]) -> set[str]:
    """Return the smallest choices of inputs that change the result where they are left out."""
    whole = _try(eager, feed)
    if whole is None:
        return set()  # eager refuses such ids altogether
    required: set[str] = set()
    for size in range(1, len(optional) + 1):
        for left_out in itertools.combinations(sorted(optional - required), size):
            if not _is_the_same(eager, feed, whole, left_out):
                required |= set(left_out)
    return required


def _list_feeds(eager: ReferencePass, optional: list[Argument]) -> Iterable[Feed]:
    """Return ordinary ids, and ids with special tokens among them; constants where we fill them."""
    import torch

    facts = eager.plan.facts
    plain = random_feed(facts, batch=_ROWS, length=eager.plan.lengths[0], seed=_SEED)
    for one in optional:
        assert one.fill is not None
        plain[one.name] = torch.full_like(plain[one.name], one.fill)
    mixed = dict(plain)
    special = torch.tensor(sorted({*facts.vocabulary.special, facts.vocabulary.pad}))
    for argument in facts.arguments:
        if argument.kind == "ids":
            ids = plain[argument.name].clone()
            places = ids[..., 1:-1:2]
            places.copy_(special[torch.arange(places.shape[-1]) % len(special)].expand_as(places))
            mixed[argument.name] = ids
    return plain, mixed


def _is_the_same(
    eager: ReferencePass, feed: Feed, whole: Outputs, left_out: tuple[str, ...]
) -> bool:
    rest = {name: tensor for name, tensor in feed.items() if name not in left_out}
    outputs = _try(eager, rest)
    if outputs is None:
        return True  # it has no default of its own, which a constant could contradict
    tolerance = eager.plan.tolerance
    found = compare_outputs(eager.specs, tolerance, outputs, whole, feed, eager.scales)
    return all(is_within(difference, tolerance.rtol) for difference in found)


def _try(eager: ReferencePass, feed: Feed) -> Outputs | None:
    """Return eager's outputs; None: it refuses these inputs."""
    try:
        return eager.outputs(feed)
    except Exception:  # every architecture has its own
        return None
