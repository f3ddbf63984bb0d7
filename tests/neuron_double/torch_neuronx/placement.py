"""Where and when a compiled model is loaded, and its weights replaced."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from neuron_double import runtime
from neuron_double.artifact import configure, header_of, neuron_models
from torch import Tensor, jit, nn


def lazy_load(trace: jit.ScriptModule, enable_lazy_load: bool = True) -> None:
    """Let ``torch.jit.load`` leave the program where it is until the first call."""
    for model in neuron_models(trace):
        configure(model, lazy=enable_lazy_load)


def async_load(trace: jit.ScriptModule, enable_async_load: bool = True) -> None:
    """Let the program load in the background; the double loads it at once all the same."""
    for model in neuron_models(trace):
        configure(model, **{"async": enable_async_load})


def set_neuron_cores(trace: Any, start_nc: int = -1, nc_count: int = -1) -> None:
    """Put a compiled model on given cores; nothing happens to another module.

    Raises:
        RuntimeError: no runtime.
        ValueError: cores that there are not.
    """
    _check_cores(start_nc, nc_count)
    for model in neuron_models(trace) if isinstance(trace, jit.ScriptModule) else []:
        configure(model, cores=[start_nc, nc_count])


def set_multicore(trace: Any) -> None:
    """Put a compiled model on every core."""
    set_neuron_cores(trace, 0, len(runtime.visible_cores()))


@contextlib.contextmanager
def neuron_cores_context(start_nc: int = -1, nc_count: int = -1) -> Iterator[None]:
    """Load what is loaded meanwhile on given cores; raises as ``set_neuron_cores``."""
    _check_cores(start_nc, nc_count)
    with runtime.placed(start_nc, nc_count):
        yield


@contextlib.contextmanager
def multicore_context() -> Iterator[None]:
    """Load what is loaded meanwhile on every core."""
    with neuron_cores_context(0, len(runtime.visible_cores())):
        yield


def move_trace_to_device(trace: jit.ScriptModule, device_id: int) -> None:
    """Put a compiled model and its separated weights on one core."""
    set_neuron_cores(trace, device_id, 1)


def replace_weights(
    neuron_model: jit.ScriptModule, weights: nn.Module | Mapping[str, Tensor]
) -> None:
    """Replace separated weights by name, in place; a warning where none are separated.

    Raises:
        KeyError: a name that the model lacks.
        RuntimeError: another shape or dtype.
    """
    given = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    for model in neuron_models(neuron_model):
        if header_of(model).get("inline", True):
            warnings.warn("replace_weights: the model has no separated weights", stacklevel=2)
            return
        held = dict(zip(model.names, model.weights, strict=True))
        for name, tensor in given.items():
            old = held[name]
            if (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
                raise RuntimeError(
                    f"{name}: expected {tuple(old.shape)}, got {tuple(tensor.shape)}"
                )
            held[name] = tensor.detach().clone()
        model.weights = list(held.values())


def _check_cores(start: int, count: int) -> None:
    cores = runtime.visible_cores()
    if count == 0 or count > len(cores):
        raise ValueError(f"nc_count: expected 1 to {len(cores)}, got {count}")
    if start >= len(cores):
        raise ValueError(f"start_nc: expected at most {len(cores) - 1}, got {start}")
