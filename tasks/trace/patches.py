"""What ``torch.jit.trace`` can't record as it is written, in a form that it can.

Three habits of model code bake the traced input in, or can't be saved. While a model is recorded
they are replaced by something that computes the same for every input:

* Python autograd functions (Bloom's GeLU, RecurrentGemma's square root) can't be stored in an
  archive: their ``forward`` is called directly. Serving needs no backward.
* A loop over the experts that were hit bakes their number and names in: it visits every expert, and
  one that was not hit gets no tokens. Only where there is no batched implementation.
* ``scatter`` with a Python bool has no overload in the tracer: it gets the same value as an int.

Masks that transformers 4 makes with ``vmap`` are ``tasks.model.versions``' to replace.

None of it is trusted: the gate compares the saved bundle with the untouched eager model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from tasks.model.versions import hit_functions, recordable_masks

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def recordable(model: nn.Module) -> Iterator[None]:
    """Replace what can't be recorded, while the block runs.

    Args:
        model: what is recorded inside the block.
    """
    with ExitStack() as stack:
        for function in _autograd_functions(model):
            stack.enter_context(_bypassing_autograd(function))
        stack.enter_context(_visiting_every_expert(model))
        stack.enter_context(recordable_masks())
        yield


def _autograd_functions(model: nn.Module) -> list[Any]:
    """Return the Python autograd functions in the modules that define the model's classes."""
    found = set()
    for name in {type(module).__module__ for module in model.modules()}:
        # Our own classes keep the names that stand in archives: no module bears some of these.
        if name in sys.modules:
            found |= _functions_in(sys.modules[name])
    return sorted(found, key=lambda one: one.__qualname__)


def _functions_in(module: Any) -> set[Any]:
    import torch

    classes = {value for value in vars(module).values() if isinstance(value, type)}
    known = torch.autograd.Function
    return {one for one in classes - {known} if issubclass(one, known)}


class _Context:
    """Takes what ``forward`` keeps for a backward pass that never comes."""

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep nothing."""

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Mark nothing."""


@contextmanager
def _bypassing_autograd(function: Any) -> Iterator[None]:
    forward = function.forward
    function.apply = staticmethod(lambda *arguments: forward(_Context(), *arguments))
    try:
        yield
    finally:
        del function.apply


@contextmanager
def _visiting_every_expert(model: nn.Module) -> Iterator[None]:
    """Answer "which experts were hit?" with all of them, and scatter's bools with ints."""
    import torch
    from torch.overrides import TorchFunctionMode

    inside: list[nn.Module] = []
    asking = hit_functions()

    class Recordable(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            if func in asking and inside and _asks_for_hits(args):
                known = torch.arange(args[0].numel(), device=args[0].device)
                return known < _count_experts(inside[-1], args[0].numel())
            if func in (torch.Tensor.scatter, torch.Tensor.scatter_):
                args = tuple(int(one) if isinstance(one, bool) else one for one in args)
            result = func(*args, **(kwargs or {}))
            # LongCat leaves an expert out that gets no tokens: then it would be left out for ever.
            return result or 1 if func is torch.Tensor.numel and inside else result

    with ExitStack() as stack:
        for module in model.modules():
            if _count_experts(module, 0):
                before = module.register_forward_pre_hook(lambda m, _: inside.append(m))
                after = module.register_forward_hook(lambda *_: _leave(inside))
                stack.callback(before.remove)
                stack.callback(after.remove)
        stack.enter_context(Recordable())
        yield


def _leave(inside: list[nn.Module]) -> None:
    inside.pop()


def _asks_for_hits(arguments: tuple[Any, ...]) -> bool:
    """``torch.greater(tokens of each expert, 0)``: transformers' loops begin with it."""
    counts, bound = arguments
    integers = counts.dim() == 1 and not counts.is_floating_point()
    return integers and type(bound) is int and bound == 0


def _count_experts(module: nn.Module, otherwise: int) -> int:
    """Return how many experts a module has; DBRX counts one more for tokens that have none."""
    for name in ("total_experts", "num_experts", "num_local_experts"):
        number = getattr(module, name, None)
        if isinstance(number, int):
            return number
    return otherwise
