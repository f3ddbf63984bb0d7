"""From a function to a graph of aten operators, as the compiler's front end does it.

``torch.jit.trace`` first, so that control flow is frozen the way the real SDK freezes it; then the
recording is run once under ``make_fx``, which gives a graph that can be counted, cut and rewritten.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from neuron_double import nest

#: below the public name -> the operator that people read about
_PUBLIC = {
    "_fft_r2c": "fft_fft",
    "_fft_c2c": "fft_fft",
    "_fft_c2r": "fft_ifft",
    "linalg_inv_ex": "linalg_inv",
    "_linalg_solve_ex": "linalg_solve",
    "_linalg_svd": "linalg_svd",
}


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A traced function.

    Attributes:
        graph: takes the inputs' tensors, then the separated weights; returns a flat tuple.
        inputs: their form.
        outputs: theirs.
        examples: the tensors it was traced with, weights included.
        example_outputs: what it computed for them.
        weights: names of the separated weights, in order.
    """

    graph: GraphModule
    inputs: Any
    outputs: Any
    examples: list[Tensor]
    example_outputs: list[Tensor]
    weights: tuple[str, ...] = ()


class _Flat(nn.Module):
    """The function from flat tensors to flat tensors, weights as arguments where separated."""

    def __init__(
        self, function: Callable[..., Any], inputs: Any, weights: tuple[str, ...], dicts: bool
    ) -> None:
        super().__init__()
        # In a list it is no submodule: its weights would be recorded, and they are arguments here.
        self.held = [function]
        if not weights:
            self.function = function
        self.inputs, self.weights, self.dicts = inputs, weights, dicts
        self.outputs: Any = None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        arguments = nest.rebuild(self.inputs, rest)
        if self.weights:
            named = dict(zip(self.weights, rest, strict=True))
            with _holding(cast("nn.Module", self.held[0]), named):
                result = self.held[0](*arguments)
        else:
            result = self.held[0](*arguments)
        self.outputs = nest.spec_of(result, dicts=self.dicts)
        return tuple(nest.flatten(result))


@contextlib.contextmanager
def _holding(module: nn.Module, named: dict[str, Tensor]) -> Iterator[None]:
    """Let a module compute with other tensors; torch's own functional_call refuses to be traced."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for name, tensor in named.items():
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        held = part._parameters if leaf in part._parameters else part._buffers
        kept.append((held, leaf, held[leaf]))
        held[leaf] = tensor  # type: ignore[assignment]
    try:
        yield
    finally:
        for held, leaf, value in kept:
            held[leaf] = value


def record(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    separated: dict[str, Tensor] | None = None,
    dicts: bool = True,
) -> Recording:
    """Record a function for its example arguments.

    Args:
        function: a module or a plain function of tensors.
        arguments: its positional arguments, each a nest of tensors.
        separated: weights that stay arguments of the program, by name.
        dicts: whether it may return a dict.

    Raises:
        RuntimeError: an argument or a result is no nest of tensors, or torch.jit refuses.
    """
    weights = separated or {}
    spec = nest.spec_of(arguments)
    flat = _Flat(function, spec, tuple(weights), dicts)
    examples = [*nest.flatten(arguments), *(tensor.detach() for tensor in weights.values())]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(flat, tuple(examples), check_trace=False)
        # Two runs first: the executor's own passes call operators in a way that make_fx can't see.
        traced(*examples)
        results = traced(*examples)
        graph = make_fx(lambda *tensors: traced(*tensors), tracing_mode="real")(*examples)
    return Recording(
        graph=graph,
        inputs=spec,
        outputs=flat.outputs,
        examples=examples,
        example_outputs=list(results),
        weights=tuple(weights),
    )


def operators(graph: GraphModule) -> list[Node]:
    """Return the nodes that compute something."""
    nodes = (node for node in graph.graph.nodes if node.op == "call_function")
    return [node for node in nodes if isinstance(node.target, torch._ops.OpOverload)]


def kind(node: Node) -> str:
    """Return an operator's public name: ``aten::addmm``."""
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, _, name = node.target.name().partition("::")
    name = name.split(".")[0]
    return f"{namespace}::{_PUBLIC.get(name, name)}"


def counts(graph: GraphModule) -> Counter[str]:
    """Count operators by name."""
    return Counter(kind(node) for node in operators(graph))


def untie(function: Callable[..., Any]) -> None:
    """Do to the caller's module what moving it to XLA does: tied names get tensors of their own."""
    if not isinstance(function, nn.Module):
        return
    seen: set[int] = set()
    for module in function.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in seen:
                clone = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                module._parameters[name] = clone
            elif parameter is not None:
                seen.add(id(parameter))


def state_of(function: Callable[..., Any]) -> dict[str, Tensor]:
    """Return a module's weights by state_dict name; a plain function has none."""
    return dict(function.state_dict()) if isinstance(function, nn.Module) else {}


@contextlib.contextmanager
def in_eval(function: Callable[..., Any]) -> Iterator[None]:
    """Trace as inference, whatever mode the module is in."""
    training = isinstance(function, nn.Module) and function.training
    if training:
        function.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if training:
            function.train()  # type: ignore[attr-defined]
