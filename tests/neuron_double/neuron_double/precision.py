"""The device's arithmetic: casts as the flags say, and never bit for bit what the CPU gives.

Operands are rounded to the cast's type and computed in float32, as a systolic array with a float32
accumulator does. Without any cast each float32 matmul's result is one unit in the last place
higher, and in any case each output, in float16 and bfloat16 too: a comparison that expects equal
bits must fail. The rewriting happens at compile time, so that a run is a plain TorchScript run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

from neuron_double import recording

#: operator -> positions of the operands that the array multiplies
_OPERANDS = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmv": (1, 2),
    "aten::mv": (0, 1),
    "aten::dot": (0, 1),
    "aten::baddbmm": (1, 2),
    "aten::convolution": (0, 1),
    "aten::_scaled_dot_product_flash_attention_for_cpu": (0, 1, 2),
    "aten::_scaled_dot_product_attention_math_for_cpu": (0, 1, 2),
}
_NUDGED = (torch.float32, torch.float16, torch.bfloat16)
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn}
#: Products beyond the limit would overflow: a mask's largest number is as good a little smaller.
_TF32_SPLIT, _TF32_LIMIT = float(2**13 + 1), 4e34


def imprecise(graph: GraphModule, cast: str, cast_type: str) -> GraphModule:
    """Rewrite a graph in place to compute as the device would.

    Args:
        graph: of aten operators.
        cast: none, matmult or all.
        cast_type: bf16, fp16, tf32 or fp8_e4m3.
    """
    rounding = _tf32 if cast_type == "tf32" else _through(_TYPES[cast_type])
    for node in recording.operators(graph):
        positions = _OPERANDS.get(recording.kind(node), ())
        if cast != "none":
            for position in positions:
                _round_operand(graph, node, position, rounding)
        if cast == "all":
            _replace(graph, node, rounding)
        elif cast == "none" and positions:
            _replace(graph, node, _nudged)
    _nudge_outputs(graph)
    graph.graph.lint()
    graph.recompile()
    return graph


def _is_float32(graph: GraphModule, node: Node) -> bool:
    return _dtype(graph, node) == torch.float32


def _dtype(graph: GraphModule, node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    if value is None and node.op == "get_attr":
        value = getattr(graph, str(node.target))
    return value.dtype if isinstance(value, torch.Tensor) else None


def _round_operand(
    graph: GraphModule, node: Node, position: int, rounding: Callable[[GraphModule, Node], Node]
) -> None:
    operand = node.args[position]
    if isinstance(operand, Node) and _is_float32(graph, operand):
        with graph.graph.inserting_before(node):
            node.update_arg(position, rounding(graph, operand))


def _replace(graph: GraphModule, node: Node, change: Callable[[GraphModule, Node], Node]) -> None:
    """Let everybody who reads a node read its changed value."""
    if not _is_float32(graph, node):
        return
    users = list(node.users)
    with graph.graph.inserting_after(node):
        anchor = graph.graph.call_function(torch.ops.aten.alias.default, (node,))
    with graph.graph.inserting_after(anchor):
        last = graph.graph.call_function(torch.ops.aten.alias.default, (anchor,))
    with graph.graph.inserting_before(last):
        changed = change(graph, anchor)
    for user in users:
        user.replace_input_with(node, changed)
    changed.meta["val"] = node.meta.get("val")
    graph.graph.erase_node(last)


def _through(dtype: torch.dtype) -> Callable[[GraphModule, Node], Node]:
    def rounded(graph: GraphModule, node: Node) -> Node:
        call = graph.graph.call_function
        short = call(torch.ops.aten._to_copy.default, (node,), {"dtype": dtype})
        return call(torch.ops.aten._to_copy.default, (short,), {"dtype": torch.float32})

    return rounded


def _tf32(graph: GraphModule, node: Node) -> Node:
    """Keep ten bits of the mantissa, to nearest (Veltkamp's split: torch.jit loses a bit view)."""
    call = graph.graph.call_function
    bounded = call(torch.ops.aten.clamp.default, (node, -_TF32_LIMIT, _TF32_LIMIT))
    product = call(torch.ops.aten.mul.Scalar, (bounded, _TF32_SPLIT))
    rest = call(torch.ops.aten.sub.Tensor, (product, bounded))
    return call(torch.ops.aten.sub.Tensor, (product, rest))


def _nudged(graph: GraphModule, node: Node, dtype: torch.dtype = torch.float32) -> Node:
    factor = 1 + torch.finfo(dtype).eps
    return graph.graph.call_function(torch.ops.aten.mul.Scalar, (node, factor))


def _nudge_outputs(graph: GraphModule) -> None:
    """A program without any matmul must not be bit-equal either, nor one in a short dtype."""
    output = next(node for node in graph.graph.nodes if node.op == "output")

    def nudged(node: Node) -> Node:
        dtype = _dtype(graph, node) if isinstance(node, Node) else None
        return _nudged(graph, node, dtype) if dtype in _NUDGED else node

    with graph.graph.inserting_before(output):
        output.args = (tuple(nudged(node) for node in output.args[0]),)
