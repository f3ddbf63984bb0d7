"""Does a bundle run where its inputs are, or on the device of its recording alone?"""

from __future__ import annotations

from typing import Any

from tasks.model.graphs import DEVICE, NONE, TENSOR, walk
from tasks.model.quantise import find_packed_layers


def follows_device(module: Any, methods: tuple[str, ...]) -> bool:
    """Tell whether nothing in a loaded bundle binds it to the device of its recording.

    Args:
        module: Bundle, loaded from its file.
        methods: Names of its public methods.
    """
    if find_packed_layers(module):
        return False  # int8 has kernels for x86 alone
    graphs = [getattr(module, method).inlined_graph for method in methods]
    return not any(_names_a_device(graph) for graph in graphs)


def _names_a_device(graph: Any) -> bool:
    return any(_is_bound(node) for node in walk(graph))


def _is_bound(node: Any) -> bool:
    """Tell whether a node is a constant device, or makes a tensor where torch would by itself."""
    if node.kind() == "prim::Constant":
        return bool(node.hasAttribute("value") and node.output().type().kind() == DEVICE)
    place = _find_device_argument(node)
    return place is not None and bool(node.inputsAt(place).type().kind() == NONE)


def _find_device_argument(node: Any) -> int | None:
    """Return the place of a node's argument ``device``, if no tensor among the others decides."""
    import torch

    schema = node.schema()
    if "Device? device" not in schema:
        return None
    arguments = torch._C.parse_schema(schema).arguments
    if any(one.type.kind() == TENSOR for one in arguments):
        return None
    return [one.name for one in arguments].index("device")
