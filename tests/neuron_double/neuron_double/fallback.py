"""A model of parts: some compiled, the others plain TorchScript on the CPU."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from neuron_double import nest, runtime
from neuron_double.artifact import configure, neuron_models
from neuron_double.partition import Cut
from neuron_double.recording import Recording


class _Mixed(nn.Module):
    """The cut graph with the public form of arguments and results."""

    def __init__(self, whole: nn.Module, outputs: Any) -> None:
        super().__init__()
        self.whole, self.outputs = whole, outputs

    def forward(self, *arguments: Any) -> Any:
        return nest.rebuild(self.outputs, iter(self.whole(*nest.flatten(arguments))))


def assemble(
    cut: Cut, parts: dict[str, torch.jit.ScriptModule], recording: Recording
) -> torch.jit.ScriptModule:
    """Put compiled parts into their places and record the whole.

    Args:
        cut: the partitioned graph.
        parts: name of a part -> what was compiled for it.
        recording: what was cut: example inputs, forms.
    """
    for name, part in parts.items():
        setattr(cut.whole, name, part)
    arguments = nest.rebuild(recording.inputs, iter(recording.examples))
    mixed = _Mixed(cut.whole, recording.outputs).eval().requires_grad_(False)
    with torch.no_grad(), warnings.catch_warnings(), runtime.compiling():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(mixed, arguments, check_trace=False, strict=False)
    module = cast("torch.jit.ScriptModule", traced)
    for part in neuron_models(module):
        configure(part)  # what ran in here is no loaded model
    return module


def examples_of(cut: Cut, recording: Recording) -> dict[str, list[Tensor]]:
    """Return the tensors that each part for the device receives."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[name] = list(arguments)

        return keep

    handles = [
        getattr(cut.whole, name).register_forward_pre_hook(hook(name)) for name in cut.on_device
    ]
    with torch.no_grad():
        cut.whole(*recording.examples)
    for handle in handles:
        handle.remove()
    return seen


def output_form(part: GraphModule) -> Any:
    """Return the form of what a part returns, and let it return a tuple in any case."""
    output = next(node for node in part.graph.nodes if node.op == "output")
    returned = output.args[0]
    if isinstance(returned, (tuple, list)):
        return tuple(None for _ in returned)
    output.args = ((returned,),)
    part.recompile()
    return None
