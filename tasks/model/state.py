"""Modules that write to their own buffers while they run: they write to copies instead.

A long rotary embedding (``longrope_frequency_update`` of transformers 5) copies its short or its
long frequencies into ``inv_freq`` in every call. Recorded like that, a bundle would hold what the
last recorded call left behind, and calls that run at once would read each other's frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.errors import UnsupportedCheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def restoring_module_state(model: nn.Module) -> Iterator[None]:
    """Restore the modules' attributes after the block, small caches included."""
    # BigBird switches to full attention for good after one short input, a dynamic rotary embedding
    # to other frequencies after a long one: every call has to be like the first.
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    caches = [
        (value, value.copy())
        for _, attributes in kept
        for value in attributes.values()
        if type(value) in (dict, list, set)  # includes submodules and buffers, not hooks
    ]
    try:
        yield
    finally:
        for held, attributes in kept:
            held.clear()
            held.update(attributes)
        for cache, before in caches:
            cache.clear()
            (cache.extend if isinstance(cache, list) else cache.update)(before)


@contextmanager
def sparing_buffers(model: nn.Module) -> Iterator[None]:
    """Leave a model's buffers and state as they are, whatever its modules do in the block.

    ``copy_`` into a buffer replaces the buffer by a copy, for the rest of the block. Every other
    write to one is refused. RWKV divides parameters, by 1 where it has few layers: what changes
    in them, the gate sees bit for bit.

    Args:
        model: Model that runs, or is recorded, inside the block.

    Raises:
        UnsupportedCheckpointError: A module wrote to a buffer in another way.
    """
    held = dict(model.named_buffers())
    before = {name: tensor._version for name, tensor in held.items()}
    with restoring_module_state(model), _writing_to_copies(model):
        yield
    written = sorted(name for name, tensor in held.items() if tensor._version != before[name])
    if written:
        raise UnsupportedCheckpointError(
            f"{type(model).__name__}: expected modules that leave their buffers as they are "
            f"while they run, got writes to {written[:3]}. Calls of a bundle that run at "
            "once would read each other's values; make them in forward instead of in place."
        )


@contextmanager
def _writing_to_copies(model: nn.Module) -> Iterator[None]:
    import torch
    from torch.overrides import TorchFunctionMode

    class Copying(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            if func is torch.Tensor.copy_:
                args = (_replace_by_copy(model, args[0]), *args[1:])
            return func(*args, **(kwargs or {}))

    with Copying():
        yield


def _replace_by_copy(model: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor to write to: a copy that takes a buffer's place, or the tensor itself."""
    places = []
    for module in model.modules():
        names = [name for name, held in module._buffers.items() if held is tensor]
        places += [(module._buffers, name) for name in names]
    if not places:
        return tensor
    copy = tensor.clone()
    for buffers, name in places:
        buffers[name] = copy
    return copy
