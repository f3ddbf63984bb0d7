"""Replace what ``torch.jit.trace`` can't record, while it records a model.

Three constructs in model code bake the traced input in, or can't be saved. While a model is
recorded they are replaced by something that computes the same for every input:

* Python autograd functions (Bloom's GeLU, RecurrentGemma's square root) can't be stored in an
  archive: their ``forward`` is called directly.
* A loop over the experts that were hit bakes their number and names in: it visits every expert, and
  one that was not hit gets no tokens. Only where there is no batched implementation.
* ``scatter`` with a Python bool has no overload in the tracer: it gets the same value as an int.

Masks that transformers 4 makes with ``vmap`` are replaced by ``tasks.model.versions``.

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
        model: Model that is recorded inside the block.
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
        # Our own classes keep the module names of archives, some of which no longer exist.
        if name in sys.modules:
            found |= _functions_in(sys.modules[name])
    return sorted(found, key=lambda one: one.__qualname__)


def _functions_in(module: Any) -> set[Any]:
    import torch

    classes = {value for value in vars(module).values() if isinstance(value, type)}
    known = torch.autograd.Function
    return {one for one in classes - {known} if issubclass(one, known)}


class _Context:
    """Context of a ``forward`` without a backward pass: it keeps nothing."""

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep nothing."""

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Mark nothing."""


@contextmanager
def _bypassing_autograd(function: Any) -> Iterator[None]:
    # Serving needs no backward pass.
    forward = function.forward
    function.apply = staticmethod(lambda *arguments: forward(_Context(), *arguments))
    try:
        yield
    finally:
        del function.apply


@contextmanager
def _visiting_every_expert(model: nn.Module) -> Iterator[None]:
    """Make loops over experts visit all of them, and pass scatter's bools as ints."""
    import torch
    from torch.overrides import TorchFunctionMode

    inside: list[nn.Module] = []
    functions = hit_functions()

    class Recordable(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            if func in functions and inside and _selects_hit_experts(args):
                known = torch.arange(args[0].numel(), device=args[0].device)
                return known < _count_experts(inside[-1], args[0].numel())
            if func in (torch.Tensor.scatter, torch.Tensor.scatter_):
                args = tuple(map(_without_bool, args))
            result = func(*args, **(kwargs or {}))
            if func is torch.Tensor.numel and inside:
                # LongCat skips an expert that gets no tokens: the graph would skip it for ever.
                return result or 1
            return result

    with ExitStack() as stack:
        for module in model.modules():
            if _count_experts(module, 0):
                # Only calls inside of experts are replaced: others compare with 0 as well.
                before = module.register_forward_pre_hook(lambda m, _: inside.append(m))
                after = module.register_forward_hook(lambda *_: _leave(inside))
                stack.callback(before.remove)
                stack.callback(after.remove)
        stack.enter_context(Recordable())
        yield


def _leave(inside: list[nn.Module]) -> None:
    inside.pop()


def _without_bool(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _selects_hit_experts(arguments: tuple[Any, ...]) -> bool:
    """Recognise ``torch.greater(tokens of each expert, 0)``, which begins transformers' loops."""
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
