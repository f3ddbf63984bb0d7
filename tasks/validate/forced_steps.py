"""Steps of a bundle that are forced to eager's tokens: their errors, and planted faults.

A cache of every size is tried at its first positions, where the steps fill it themselves, and at
those that only a cache of that size has, with eager's keys and values before them. The faults are
those that a search can make: another position, another row's cache (beams that were not reordered),
another row's source, padding that is attended, tokens that are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.validate.difference import Difference, compare, is_within, worst_of
from tasks.validate.generation_cases import FIRST_STEPS, choose_positions
from tasks.validate.generation_reference import OWN, GenerationReference
from tasks.validate.level_noise import join_written
from tracefleet.verdict_types import Tolerance

if TYPE_CHECKING:
    import torch

_FAULTED = 3
#: A fault is seen that moves the logits by so many tolerances.
_SEEN = 2.0


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What the forced steps showed.

    Attributes:
        max_abs_error: Largest error of a logit.
        max_rel_error: The same, relative to the largest logit.
        failures: Name of each cache that failed, and how.
        faults: Names of the planted faults that were seen.
        missed: Names of those that were not.
    """

    max_abs_error: float
    max_rel_error: float
    failures: dict[str, str]
    faults: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What ``encode`` and ``prefill`` returned, from which every run begins."""

    logits: torch.Tensor
    own: list[torch.Tensor]
    cross: list[torch.Tensor]


@dataclass(kw_only=True)
class _Call:
    """Everything that one call of ``step`` gets."""

    mask: torch.Tensor
    ids: torch.Tensor
    position: int
    own: list[torch.Tensor]
    cross: list[torch.Tensor]


def check_steps(
    module: Any,
    reference: GenerationReference,
    held: dict[str, torch.Tensor],
    tolerance: Tolerance,
) -> Steps:
    """Compare forced steps with eager's logits, in caches of every size.

    Args:
        module: Loaded bundle.
        reference: Eager's logits and answers.
        held: Tensors of the reference's file.
        tolerance: Bound on an error.
    """
    bounds = reference.noise.loosen(tolerance)
    found: list[Difference] = []
    failures = {}
    opened = _open(module, reference, held)
    for size in reference.lengths:
        logits, written = zip(*_run(module, opened, reference, held, size, bounds), strict=True)
        found += logits
        worst = worst_of([*logits, *filter(None, written)])
        if not worst.passed:
            failures[f"steps in a cache of {size}"] = (
                worst.reason or f"relative error {worst.max_rel:.3g}"
            )
    seen, missed = _plant_faults(module, opened, reference, held, bounds[0])
    overall = worst_of(found)
    return Steps(
        max_abs_error=overall.max_abs,
        max_rel_error=overall.max_rel,
        failures=failures,
        faults=tuple(seen),
        missed=tuple(missed),
    )


def _run(
    module: Any,
    opened: _Opened,
    reference: GenerationReference,
    held: dict[str, torch.Tensor],
    size: int,
    bounds: tuple[Tolerance, Tolerance],
) -> Iterator[tuple[Difference, Difference | None]]:
    """Yield differences of logits and of what is written, for each position of this size."""
    tolerance, of_written = bounds
    lengths = reference.lengths
    scale = float(held["forced/logits"].abs().max())
    kept = zip(choose_positions(lengths), held["forced/logits"].unbind(1), strict=True)
    expected = dict(kept)
    call = _begin(opened, held, size)
    yield compare(opened.logits.float(), expected[0], tolerance, scale=scale), None
    for position in sorted(expected)[1:]:
        if position >= FIRST_STEPS and not _belongs(position, size, lengths):
            continue
        if position >= size:
            break
        if position >= FIRST_STEPS:
            call.own = _take_own(reference, held, position, size)
        _force_token(call, held, position)
        logits = _step(module, call).float()
        yield (
            compare(logits, expected[position], tolerance, scale=scale),
            _compare_written(call, held, position, of_written),
        )


def _compare_written(
    call: _Call, held: dict[str, torch.Tensor], position: int, tolerance: Tolerance
) -> Difference:
    """Compare the keys and values that a step wrote at its position with eager's."""
    own = [held[f"{OWN}{place}"] for place in range(len(call.own))]
    got, expected = (join_written(tensors, position) for tensors in (call.own, own))
    return compare(got, expected, tolerance)


def _belongs(position: int, size: int, lengths: tuple[int, ...]) -> bool:
    """Tell whether a cache has this size when a search is at the position."""
    return next(length for length in lengths if length > position) == size


def _take_own(
    reference: GenerationReference, held: dict[str, torch.Tensor], position: int, size: int
) -> list[torch.Tensor]:
    """Return eager's keys and values of the tokens before a position, in a cache of a size."""
    own = [held[f"{OWN}{place}"] for place in range(reference.generation.held[0])]
    return _resize([one[:, :, :position] for one in own], size)


def _force_token(call: _Call, held: dict[str, torch.Tensor], position: int) -> None:
    call.ids, call.position = held["forced/tokens"][:, position : position + 1], position


def _open(module: Any, reference: GenerationReference, held: dict[str, torch.Tensor]) -> _Opened:
    mask, first = held["forced/attention_mask"], held["forced/tokens"][:, :1]
    hidden = module.encode(held["forced/input_ids"], mask)
    logits, *caches = module.prefill(hidden, mask, first)
    count = reference.generation.held[0]
    return _Opened(logits=logits, own=caches[:count], cross=caches[count:])


def _begin(opened: _Opened, held: dict[str, torch.Tensor], size: int) -> _Call:
    """Return the call after the first one, with a cache of this size that is its own."""
    mask, first = held["forced/attention_mask"], held["forced/tokens"][:, :1]
    own = _resize(opened.own, size)
    return _Call(mask=mask, ids=first, position=0, own=own, cross=opened.cross)


def _resize(own: list[torch.Tensor], size: int) -> list[torch.Tensor]:
    from torch.nn.functional import pad

    return [pad(one, (0, 0, 0, size - one.shape[2])) for one in own]


def _step(module: Any, call: _Call) -> torch.Tensor:
    import torch

    position = torch.tensor(call.position)
    logits: torch.Tensor = module.step(call.mask, call.ids, position, call.own, call.cross)
    return logits


def _plant_faults(
    module: Any,
    opened: _Opened,
    reference: GenerationReference,
    held: dict[str, torch.Tensor],
    tolerance: Tolerance,
) -> tuple[list[str], list[str]]:
    """Return the names of the faults that changed the logits, and of those that did not."""
    size = reference.lengths[-1]
    at = min(_FAULTED, size - 2)
    positions = choose_positions(reference.lengths)
    # One token before it is the start, which all rows share.
    if at not in positions or at < 1 + int(not reference.generation.layers):
        return [], []
    expected = held["forced/logits"][:, positions.index(at)]
    seen: list[str] = []
    missed: list[str] = []
    for name, plant in _FAULTS.items():
        call = _begin(opened, held, size)
        for position in range(1, at + 1):
            _force_token(call, held, position)
            if position == at:
                plant(call)
            logits = _step(module, call)
        difference = compare(logits.float(), expected, tolerance)
        (missed if is_within(difference, _SEEN * tolerance.rtol) else seen).append(name)
    return seen, missed


def _shift_position(call: _Call) -> None:
    call.position += 1


def _swap_own(call: _Call) -> None:
    call.own = [one.flip(0) for one in call.own]


def _swap_source(call: _Call) -> None:
    call.cross = [one.flip(0) for one in call.cross]


def _attend_padding(call: _Call) -> None:
    call.mask = call.mask.new_ones(call.mask.shape)


def _lose_tokens(call: _Call) -> None:
    for one in call.own:
        lost = one[:, :, : call.position]
        # Where it is 0 already, as an id may be, that would lose nothing.
        one[:, :, : call.position] = (lost == 0).to(lost.dtype)


_FAULTS: dict[str, Callable[[_Call], None]] = {
    "position off by one": _shift_position,
    "beams not reordered": _swap_own,
    "source of another row": _swap_source,
    "padding attended": _attend_padding,
    "earlier tokens lost": _lose_tokens,
}
