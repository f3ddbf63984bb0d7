"""Make recorded graphs run where their inputs are.

A trace on a CPU holds ``cpu`` as a constant wherever the model made a mask or positions, and such a
graph runs nowhere else. Each becomes the device of an input of the same graph; tensors that were
baked in are moved there. On the CPU nothing changes, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.model.graphs import DEVICE, TENSOR, list_graphs, walk

if TYPE_CHECKING:
    import torch


def follow_inputs(traced: torch.jit.ScriptModule) -> None:
    """Replace the constant devices of a module's graphs, in place.

    Args:
        traced: Recorded module; the graphs of its submodules are changed too.
    """
    import torch

    with torch.no_grad():
        for graph in list_graphs(traced):
            source = _find_tensor(graph)
            constants = list(_find_constants(graph))
            if source is not None and constants:
                _replace(graph, source, constants)


def _find_tensor(graph: Any) -> Any:
    """Return a graph's first tensor among its inputs; None: it has none."""
    return next((one for one in graph.inputs() if one.type().kind() == TENSOR), None)


def _find_constants(graph: Any) -> Iterator[Any]:
    for node in walk(graph):
        if node.kind() == "prim::Constant" and node.hasAttribute("value"):
            kind = node.output().type().kind()
            # A number that is a tensor without axes mixes with tensors of every device.
            if kind == DEVICE or (kind == TENSOR and node.t("value").dim() > 0):
                yield node


def _replace(graph: Any, source: Any, constants: list[Any]) -> None:
    import torch

    first = next(iter(graph.nodes()))
    device = graph.create("prim::device", [source], 1)
    device.insertBefore(first)
    device.output().setType(torch._C.DeviceObjType.get())
    for node in constants:
        if node.output().type().kind() == DEVICE:
            node.output().replaceAllUsesWith(device.output())
            node.destroy()
        else:
            _move(graph, node, device.output())


def _move(graph: Any, constant: Any, device: Any) -> None:
    """Let what uses a baked tensor get it from the device."""
    none, no = graph.insertConstant(None), graph.insertConstant(False)
    for value in (none, no):
        value.node().moveAfter(constant)
    moved = graph.create("aten::to", [constant.output(), device, none, no, no], 1)
    moved.insertAfter(no.node())
    # This takes its own first input too, which is set back.
    constant.output().replaceAllUsesWith(moved.output())
    moved.replaceInput(0, constant.output())
