"""Wrong weights on purpose, to see that the gate's probes would catch one.

They go into the loaded artifact where its weights can be reached, else into the eager model, whose
outputs the artifact must then differ from: a comparison fails whichever of its two sides is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FACTOR = 1.5
_CANDIDATES = 32


def sample_evenly(matrices: list[Any]) -> list[Any]:
    """Return a few of many, from all over the model."""
    return matrices[:: max(1, len(matrices) // _CANDIDATES)]


def dense_weights(module: Any) -> list[torch.Tensor]:
    """Return a few matrices that every token goes through, from all over the model."""
    weights, dense = [], []
    for name, weight in module.named_parameters():
        weights.append(weight)
        if weight.dim() > 1 and "embed" not in name:
            dense.append(weight)
    return sample_evenly(dense or weights)


@contextmanager
def corrupting_weight(weight: torch.Tensor) -> Iterator[None]:
    """Make one weight wrong while the block runs."""
    kept = weight.clone()
    weight.copy_(_corrupt(kept))
    try:
        yield
    finally:
        weight.copy_(kept)


def _corrupt(weight: torch.Tensor) -> torch.Tensor:
    # Rows move as well: a norm behind the layer would undo a mere factor.
    return weight.roll(1, 0) * FACTOR
