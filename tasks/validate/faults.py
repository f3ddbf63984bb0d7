"""Faults that the gate plants, to see that its probes would catch a wrong weight.

In the loaded bundle where its weights can be reached; else in the eager model, whose outputs the
artifact must then differ from: a comparison does not mind which of its two sides is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FACTOR = 1.5
_CANDIDATES = 32


def spread(matrices: list[Any]) -> list[Any]:
    """Return a few of many, from all over the model."""
    return matrices[:: max(1, len(matrices) // _CANDIDATES)]


def dense_weights(module: Any) -> list[torch.Tensor]:
    """Return a few matrices that every token goes through, spread over the model."""
    named = list(module.named_parameters())
    dense = [p for name, p in named if p.dim() > 1 and "embed" not in name]
    return spread(dense or [p for _, p in named])


@contextmanager
def planted(weight: torch.Tensor) -> Iterator[None]:
    """Spoil one weight while the block runs."""
    kept = weight.clone()
    weight.copy_(_spoilt(kept))
    try:
        yield
    finally:
        weight.copy_(kept)


def _spoilt(weight: torch.Tensor) -> torch.Tensor:
    """A wrong weight; its rows are moved as well: a norm behind it takes a mere factor back."""
    return weight.roll(1, 0) * FACTOR
