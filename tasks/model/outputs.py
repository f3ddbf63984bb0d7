"""What a model returns: which tensors, and what each axis means.

The meaning is measured and not guessed: two small eager calls of different batch and lengths show
which sizes follow which axis. The dispatcher slices by it, the gate compares by it, the manifest
publishes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.errors import ConversionError, UnsupportedCheckpointError, first_line
from tasks.model.facts import ModelFacts
from tasks.model.feeds import cut, random_feed
from tasks.model.state import sparing_buffers
from tracefleet.manifest_types import OutputSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.model.feeds import Feed

_SMALL = {"batch": 2, "length": 6, "decoder_length": 5}
_LARGE = {"batch": 3, "length": 8, "decoder_length": 7}
#: For raw sounds: wav2vec2's convolutions make one frame of 400 samples, and one more of each 320.
_SOUND_SCALE = 300


def call(model: nn.Module, feed: Feed) -> Mapping[str, Any]:
    """Run a model once on a feed, without caches, and return its named outputs."""
    options: dict[str, Any] = {"return_dict": True}
    if "use_cache" in inspect.signature(model.forward).parameters:
        options["use_cache"] = False
    outputs: Mapping[str, Any] = model(**feed, **options)
    return outputs


def call_tuple(
    model: nn.Module, feed: Feed, outputs: tuple[OutputSpec, ...]
) -> tuple[torch.Tensor, ...]:
    """Run a model once and return the tensors that ``outputs`` describes, in its order."""
    named = call(model, feed)
    return tuple(named[spec.name] for spec in outputs)


def move(feed: Feed, device: str) -> Feed:
    """Return a feed whose tensors are on a device."""
    return {name: tensor.to(device) for name, tensor in feed.items()}


def describe_outputs(model: nn.Module, facts: ModelFacts) -> tuple[OutputSpec, ...]:
    """Return the tensors that have one entry for each row of the batch.

    Caches, scalars and auxiliary losses are left out.

    Raises:
        UnsupportedCheckpointError: Eager can't run on ids, nothing per row is returned, or an axis
            follows neither batch nor length.
    """
    small, large = _measure(model, facts, _SMALL), _measure(model, facts, _LARGE)
    described = []
    for name, tensor in small.items():
        other = large.get(name)
        if other is None or tensor.dim() != other.dim():
            continue
        if _find_meaning(tensor, other, 0) != "batch":
            continue
        axes = tuple(_require_meaning(name, tensor, other, axis) for axis in range(tensor.dim()))
        dtype = str(tensor.dtype).removeprefix("torch.")
        described.append(OutputSpec(name=name, dtype=dtype, axes=axes))
    if not described:
        raise UnsupportedCheckpointError(
            f"{facts.architecture}: expected an output tensor with one entry per row, got "
            f"{sorted(small)}. This architecture can't be served row by row: ask for another task."
        )
    return tuple(described)


def _measure(model: nn.Module, facts: ModelFacts, sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    import torch

    first = facts.arguments[0]
    scale = _SOUND_SCALE if first.kind == "values" and first.axes[1:] == ("length",) else 1
    feed = random_feed(facts, batch=sizes["batch"], length=sizes["length"] * scale, seed=1)
    feed = cut(facts, feed, "decoder_length", sizes["decoder_length"])
    try:
        with torch.no_grad(), sparing_buffers(model):
            outputs = call(model, feed)
    except ConversionError:
        raise
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in feed.items()}
        raise UnsupportedCheckpointError(
            f"{facts.architecture}: expected eager to run on {shapes}, got "
            f"{type(error).__name__}: {first_line(error)}. "
            "The model needs other inputs than these: ask for another task."
        ) from error
    tensors = {}
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            tensors[name] = value
    return tensors


def _find_meaning(small: torch.Tensor, large: torch.Tensor, axis: int) -> str | None:
    sizes = (small.shape[axis], large.shape[axis])
    for name in _SMALL:
        if sizes == (_SMALL[name], _LARGE[name]):
            return name
    return str(sizes[0]) if sizes[0] == sizes[1] else None


def _require_meaning(name: str, small: torch.Tensor, large: torch.Tensor, axis: int) -> str:
    meaning = _find_meaning(small, large, axis)
    if meaning is None:
        raise UnsupportedCheckpointError(
            f"output {name}: expected axis {axis} to be fixed or to follow the batch or a length, "
            f"got sizes {small.shape[axis]} and {large.shape[axis]} for lengths {_SMALL} and "
            f"{_LARGE}. Its padding could not be cut off: ask for another task."
        )
    return meaning
