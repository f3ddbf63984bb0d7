"""Make numbers of the model's code numbers again in recorded graphs.

``torch.jit.trace`` holds the number of ``mask * 1e6`` as a tensor without axes, of type float64,
and only in memory knows that it was a number. In an archive it is a tensor like others: times a
mask of booleans it makes float64 where eager makes float32. torch's optimiser happens to undo that,
and consumers run without it (its first calls take seconds).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.model.graphs import TENSOR, list_graphs, walk

if TYPE_CHECKING:
    import torch

_NUMBER = "NumberType"


def restore_numbers(traced: torch.jit.ScriptModule) -> None:
    """Replace the tensors that were numbers, in place, wherever an operator takes a number.

    Args:
        traced: Recorded module, in the process that recorded it.
    """
    for graph in list_graphs(traced):
        for node in list(_find_numbers(graph)):
            _restore(graph, node)


def _find_numbers(graph: Any) -> Iterator[Any]:
    for node in walk(graph):
        is_constant = node.kind() == "prim::Constant" and node.hasAttribute("value")
        if is_constant and node.output().type().kind() == TENSOR and _was_number(node.t("value")):
            yield node


def _was_number(tensor: torch.Tensor) -> bool:
    """Tell whether a baked tensor was a Python float: those don't decide a result's type."""
    import torch

    if tensor.dim() > 0 or tensor.dtype != torch.float64:
        return False
    return torch.result_type(torch.zeros(1, dtype=torch.bool), tensor) != torch.float64


def _restore(graph: Any, constant: Any) -> None:
    number = graph.insertConstant(constant.t("value").item())
    number.node().moveAfter(constant)
    for use in list(constant.output().uses()):
        if _takes_number(use.user, use.offset):
            use.user.replaceInput(use.offset, number)


def _takes_number(node: Any, place: int) -> bool:
    """Tell whether an operator has a form that takes a number there, and the same elsewhere."""
    import torch

    wanted = [value.type().kind() == TENSOR for value in node.inputs()]
    wanted[place] = False
    for schema in torch._C._jit_get_schemas_for_operator(node.kind()):
        kinds = [argument.type.kind() for argument in schema.arguments]
        if [kind == TENSOR for kind in kinds] == wanted and kinds[place] == _NUMBER:
            return True
    return False
