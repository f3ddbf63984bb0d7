"""One call of a loaded program: fixed shapes, dynamic batch, state, injected run faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuron_double import nest, settings

if TYPE_CHECKING:
    from neuron_double.runtime import Loaded

_INT32 = 1 << 32


def run_program(loaded: Loaded, inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Run a program on inputs of exactly its shapes, or of any batch where that is dynamic.

    Raises:
        RuntimeError: a count, shape or dtype that the program was not compiled for.
        ValueError: dynamic batch, and another axis differs.
    """
    expected = loaded.header["inputs"][: loaded.header["given"]]
    if len(inputs) != len(expected):
        raise RuntimeError(f"Expected {len(expected)} input tensors, received {len(inputs)}")
    for index, (tensor, (_, dtype)) in enumerate(zip(inputs, expected, strict=True)):
        if nest.dtype_name(tensor) != dtype:
            raise RuntimeError(
                f"Incorrect tensor type at input tensor #{index}: received "
                f"{nest.dtype_name(tensor)}, expected {dtype}"
            )
    if loaded.config["dynamic_batch"]:
        return _in_chunks(loaded, inputs, weights, expected)
    for index, (tensor, (shape, _)) in enumerate(zip(inputs, expected, strict=True)):
        if list(tensor.shape) != shape:
            raise RuntimeError(
                f"Incorrect tensor shape at input tensor #{index}: received "
                f"{list(tensor.shape)}, expected {shape}"
            )
    return _run_exact(loaded, inputs, weights)


def _in_chunks(
    loaded: Loaded, inputs: list[Tensor], weights: list[Tensor], expected: list[Any]
) -> list[Tensor]:
    """Run the traced batch as often as the rows need; zeros fill up the last one."""
    for index, (tensor, (shape, _)) in enumerate(zip(inputs, expected, strict=True)):
        if list(tensor.shape[1:]) != shape[1:] or tensor.dim() != len(shape):
            raise ValueError(
                f"Incorrect tensor shape at input tensor #{index}: received "
                f"{list(tensor.shape)}, expected {['*', *shape[1:]]}"
            )
    rows, batch = inputs[0].shape[0], expected[0][0][0]
    if any(tensor.shape[0] != rows for tensor in inputs):
        raise RuntimeError("Inconsistent batch sizes found on inputs")
    parts = []
    for start in range(0, rows, batch):
        chunk = [tensor[start : start + batch] for tensor in inputs]
        short = batch - chunk[0].shape[0]
        if short:
            chunk = [torch.cat([part, part.new_zeros(short, *part.shape[1:])]) for part in chunk]
        parts.append(_run_exact(loaded, chunk, weights))
    return [torch.cat(pieces)[:rows] for pieces in zip(*parts, strict=True)]


def _run_exact(loaded: Loaded, inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    assert loaded.program is not None
    run_fault = settings.current().run_fault
    if run_fault == "numerical":
        raise RuntimeError("Failed to execute the model status=1003 message=Numerical Error")
    arguments = [_narrowed(tensor) for tensor in [*inputs, *weights]]
    for position, tensor in loaded.state.items():
        arguments[position] = tensor
    outputs = list(loaded.program(*arguments))
    # An aliased output becomes the state of the next call.
    for position, index in loaded.header["aliases"]:
        loaded.state[position] = outputs[index]
    return [_spoilt(output, run_fault) for output in outputs]


def _narrowed(tensor: Tensor) -> Tensor:
    """The cores know no int64: larger values wrap."""
    if tensor.dtype != torch.int64:
        return tensor
    return tensor.to(torch.int32).to(torch.int64)


def _spoilt(output: Tensor, run_fault: str) -> Tensor:
    if not output.is_floating_point() or not run_fault:
        return output.clone()
    return output * float("nan") if run_fault == "nan" else output * 1.25
