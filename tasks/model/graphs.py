"""Nodes of torch.jit's graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Kinds of types, as a value's ``type().kind()`` names them.
DEVICE, TENSOR, NONE = "DeviceObjType", "TensorType", "NoneType"


def list_graphs(module: Any) -> Iterator[Any]:
    """Yield the graph of every method of a module and its submodules, to be read or changed."""
    for one in module.modules():
        for name in one._c._method_names():
            yield one._c._get_method(name).graph


def walk(block: Any) -> Iterator[Any]:
    """Yield every node of a graph or block, those of inner blocks included."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from walk(inner)
