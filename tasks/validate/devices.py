"""Devices of the gate: what ties a bundle to one, and what another one has to compute like."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

from tasks.errors import BackendUnavailableError
from tasks.model.graphs import DEVICE, NONE, TENSOR, walk
from tasks.model.quantise import find_packed_layers
from tracefleet import errors
from tracefleet.reader.placing import check_host


def follows_device(module: Any, methods: Sequence[str]) -> bool:
    """Tell whether nothing in a loaded bundle binds it to the device of its recording.

    Args:
        module: Bundle, loaded from its file.
        methods: Names of its public methods.
    """
    if find_packed_layers(module):
        return False  # int8 has kernels for x86 alone
    graphs = [getattr(module, method).inlined_graph for method in methods]
    return not any(_names_a_device(graph) for graph in graphs)


def use_full_precision(device: str) -> None:
    """Let a GPU compute float32 in float32: its convolutions round to TF32 by default."""
    import torch

    if device != "cpu":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def name_device(device: str) -> str:
    """Return what a device of this host is called; the whole job of one child.

    Raises:
        BackendUnavailableError: There is none.
    """
    import torch

    try:
        check_host(device)
    except errors.BackendUnavailableError as error:
        raise BackendUnavailableError(str(error)) from error
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


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
