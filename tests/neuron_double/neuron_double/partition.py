"""Cut a graph into what the device runs and what stays on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.split_module import split_module

from neuron_double.recording import operators


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A partitioned graph.

    Attributes:
        whole: calls the parts, in order.
        on_device: names of the parts for the device, in the order of the graph.
        operators: how many operators there are.
        device_operators: how many of them are in those parts.
    """

    whole: GraphModule
    on_device: tuple[str, ...]
    operators: int
    device_operators: int

    @property
    def coverage(self) -> float:
        """Share of the operators that the device runs."""
        return self.device_operators / max(self.operators, 1)


def cut(
    graph: GraphModule,
    supported: Callable[[Node], bool],
    *,
    min_size: int = 1,
    fusion_ratio: float = 1.0,
) -> Cut:
    """Give runs of supported operators to the device, everything else to the CPU.

    Args:
        graph: of aten operators.
        supported: whether the device may run a node.
        min_size: shorter runs stay on the CPU.
        fusion_ratio: where one run holds a larger share, the other runs stay on the CPU.
    """
    nodes = operators(graph)
    runs = [run for run in _runs(graph, supported) if len(run) >= min_size]
    largest = max(runs, key=len, default=[])
    if runs and len(largest) / len(nodes) > fusion_ratio:
        runs = [largest]
    chosen = {node: index for index, run in enumerate(runs) for node in run}
    places = _places(graph, chosen)
    whole = split_module(graph, graph, lambda node: places.get(node, 0))
    names = tuple(dict.fromkeys(f"submod_{places[node]}" for node in chosen))
    for name in names:
        _inline_constants(whole, name)
    _drop_unused(whole)
    return Cut(
        whole=whole,
        on_device=names,
        operators=len(nodes),
        device_operators=len(chosen),
    )


def _runs(graph: GraphModule, supported: Callable[[Node], bool]) -> list[list[Node]]:
    """Neighbouring supported operators; picking from a tuple belongs to who made it."""
    runs: list[list[Node]] = [[]]
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, torch._ops.OpOverload):
            if not supported(node):
                runs.append([])
            else:
                runs[-1].append(node)
    return [run for run in runs if run]


def _places(graph: GraphModule, chosen: dict[Node, int]) -> dict[Node, int]:
    """Number the parts so that the device's and the CPU's alternate."""
    places: dict[Node, int] = {}
    part, last = 0, -2
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            places[node] = places[node.args[0]]
            continue
        run = chosen.get(node, -1)
        if run != last and last != -2:
            part += 1
        places[node], last = part, run
    return places


def _inline_constants(whole: GraphModule, name: str) -> None:
    """Move weights into the part that reads them: split_module passes them as arguments."""
    part = getattr(whole, name)
    call = next(node for node in whole.graph.nodes if node.target == name)
    takes = [node for node in part.graph.nodes if node.op == "placeholder"]
    kept = []
    for place, given in zip(takes, call.args, strict=True):
        if given.op != "get_attr":
            kept.append(given)
            continue
        value = getattr(whole, given.target).detach()
        part.register_buffer(f"inlined_{given.target}", value, persistent=False)
        with part.graph.inserting_before(place):
            constant = part.graph.get_attr(f"inlined_{given.target}")
        place.replace_all_uses_with(constant)
        part.graph.erase_node(place)
    call.args = tuple(kept)
    part.recompile()
    whole.graph.eliminate_dead_code()
    whole.recompile()


def _drop_unused(whole: GraphModule) -> None:
    """Weights that moved into a part must not be stored a second time."""
    used = {node.target for node in whole.graph.nodes if node.op == "get_attr"}
    for held in (whole._parameters, whole._buffers):
        for name in [name for name in held if name not in used]:
            del held[name]
