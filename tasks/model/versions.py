"""Differences between versions of transformers and of torch: they are handled here alone.

The conversion path runs on transformers 4.46, the newest that suits Inf1's torch 1.13, and on later
ones up to 5.x. Everything else in ``tasks`` works with all of them; bundles and int8, which jit
alone needs, are written for torch 2.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.errors import UnsupportedCheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn


def since(major: int, minor: int = 0) -> bool:
    """Tell whether the installed transformers is of this version or a later one."""
    import transformers

    installed = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return installed >= (major, minor)


def torch_since(major: int, minor: int = 0) -> bool:
    """Tell whether the installed torch is of this version or a later one."""
    import torch

    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return installed >= (major, minor)


@contextmanager
def on_meta() -> Iterator[None]:
    """Build modules without memory, while the block runs; torch 1 builds them in memory."""
    import torch

    if torch_since(2):
        with torch.device("meta"):
            yield
        return
    from transformers.modeling_utils import no_init_weights

    with no_init_weights():
        yield


def list_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter and buffer under every one of its names."""
    if torch_since(2):
        return {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
    found = {}
    for held in ("_parameters", "_buffers"):
        for path, module in model.named_modules(remove_duplicate=False):
            for name, tensor in getattr(module, held).items():
                if tensor is not None:
                    found[f"{path}.{name}" if path else name] = tensor
    return found


def dtype_option(dtype: torch.dtype) -> dict[str, Any]:
    """Return the argument of ``from_pretrained`` for the dtype to load in."""
    return {"dtype" if since(4, 56) else "torch_dtype": dtype}


def pil_option() -> dict[str, Any]:
    """Return the argument of ``AutoImageProcessor`` for processors that need no torchvision."""
    return {"backend": "pil"} if since(5) else {"use_fast": False}


def can_set_experts(model: Any) -> bool:
    """Tell whether a model's implementation of experts can be set; before 5 none can.

    Older loops over experts are recorded as they are, or by ``tasks.trace.patches``.
    """
    return since(5) and bool(model._can_set_experts_implementation())


def check_config(config: Any) -> None:
    """Refuse a config that transformers 5 wrote and an older one reads only in part.

    Raises:
        UnsupportedCheckpointError: The older one's defaults differ from what is written.
    """
    # 5 writes rotary embeddings as rope_parameters. Older ones keep them and compute with their own
    # defaults: eager itself is another model then, and no comparison with it would show it.
    text = config.get_text_config()
    written = getattr(text, "rope_parameters", None)
    if since(5) or not written:
        return
    scaling = getattr(text, "rope_scaling", None) or {"rope_type": "default"}
    read = {"rope_theta": getattr(text, "rope_theta", None), **scaling}
    if written != read:
        raise UnsupportedCheckpointError(
            f"config.json: expected rotary embeddings that this transformers reads, got "
            f"rope_parameters {written}, of which it makes {read}. Convert with transformers 5."
        )


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Let a model compute with plain attention instead of sdpa, while the block runs.

    Args:
        model: ``PreTrainedModel``, or a module with such a model as ``inner``.
    """
    model = getattr(model, "inner", model)
    # Before 5 most models are built of other classes for other attention: 4.52 can't switch them,
    # 4.57 logs that it can't and goes on with sdpa.
    switching = _switching_in_place if since(5) else _swapping_for_twin
    with switching(model):
        yield


@contextmanager
def _switching_in_place(model: Any) -> Iterator[None]:
    used = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(used)


@contextmanager
def _swapping_for_twin(model: Any) -> Iterator[None]:
    """Give the model the submodules of a twin with plain attention over the same weights."""
    held = vars(model)
    kept, twin = dict(held), _build_eager_twin(model)
    held.clear()
    held.update(vars(twin))
    try:
        yield
    finally:
        held.clear()
        held.update(kept)


def _build_eager_twin(model: Any) -> Any:
    from transformers.modeling_utils import no_init_weights

    kind, options = type(model), dtype_option(model.dtype)
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        options["add_pooling_layer"] = getattr(model, "pooler", None) is not None
    with no_init_weights():
        config = copy.deepcopy(model.config)
        twin = kind._from_config(config, attn_implementation="eager", **options).eval()
    for name, module in twin.named_modules():
        own = model.get_submodule(name)
        module._parameters, module._buffers = dict(own._parameters), dict(own._buffers)
    return twin


def hit_functions() -> tuple[Callable[..., Any], ...]:
    """Return the functions by which loops over experts find the experts that were hit."""
    import torch

    return (torch.greater,) if since(5) else (torch.greater, torch.Tensor.gt)


@contextmanager
def recordable_masks() -> Iterator[None]:
    """Let masks of attention be recorded, while the block runs."""
    # 4.53 to 4.57 make them with torch.vmap, which the tracer can't see through. Their functions
    # compare and index positions: positions of four axes broadcast to the very same mask, as in
    # transformers 5.
    if since(5) or not since(4, 53):
        yield
        return
    from transformers import masking_utils

    replaced = {
        "_vmap_for_bhqkv": _broadcast,
        # It makes indexing inside of vmap a Python function, which no archive can hold.
        "TransformGetItemToIndex": contextlib.nullcontext,
    }
    kept = {name: getattr(masking_utils, name) for name in replaced}
    vars(masking_utils).update(replaced)
    try:
        yield
    finally:
        vars(masking_utils).update(kept)


def _broadcast(visible: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a mask's function for all rows, heads, queries and keys at once."""

    def broadcast(
        rows: torch.Tensor, heads: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        mask = visible(
            rows[:, None, None, None], heads[:, None, None], queries[:, None], keys[None]
        )
        return mask.expand(rows.shape[0], heads.shape[0], queries.shape[0], keys.shape[0])

    return broadcast
