"""Linear layers in int8: weights by output channel, activations by token at run time.

``torch.ao.quantization.quantize_dynamic`` takes one range for all activations of a call. Then a
row's result depends on its padding and on the other rows: on all-MiniLM-L6-v2 it moves by 0.3 of
the largest value, and no bundle that pads could be proved. Here every token has a range of its
own: a layer's result for it is the same to the bit, whatever the other tokens are. It is also more
accurate (cosine of real sentences at least 0.992 against 0.965).

Activations have 8 bits around zero, weights 7. Without VNNI a CPU adds two products in 16 bits:
255 · 63 · 2 fits, with one bit more on either side it silently does not (``torch._int_mm`` is wrong
there: measured). A range that is symmetric needs no correction for its lowest value afterwards: the
operations around a layer's product cost half of what those of a range from lowest to highest do,
and the bit that they take from the weights they give to the activations.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.errors import (
    BackendUnavailableError,
    NumericsMismatchError,
    UnsupportedCheckpointError,
)
from tracefleet.verdict_types import Accuracy

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Packs the weights; ``x86`` packs linear layers in the same way.
ENGINE = "fbgemm"
#: Cosine of quantised and float32 outputs on fresh inputs. Measured: all-MiniLM-L6-v2 at least
#: 0.9914 on random ids (0.992 on sentences); 57 tiny random models at least 0.979: the lowest are
#: UMT5 and mixtures of experts, where rounding may choose another expert. With one range for a
#: whole call it is 0.89 for all-MiniLM-L6-v2, which nobody should serve.
LEAST_COSINE = 0.95
#: Steps from zero to the largest value.
_WEIGHT_LEVELS, _ACTIVATION_LEVELS = 63, 127
#: What stands for zero among unsigned bytes.
_ZERO = 128
_SMALLEST = 1e-30


def check_quantisable(model: nn.Module) -> None:
    """Refuse early what can't be quantised here.

    Raises:
        BackendUnavailableError: This machine's torch has no engine for it.
        UnsupportedCheckpointError: There is no linear layer.
    """
    import torch

    engines = torch.backends.quantized.supported_engines
    if ENGINE not in engines:
        raise BackendUnavailableError(
            f"dtype int8: expected torch's quantised engine {ENGINE}, got {engines}. "
            "Convert on an x86 CPU, or ask for float32, float16 or bfloat16."
        )
    if not any(_find_matrix(layer) is not None for layer in model.modules()):
        raise UnsupportedCheckpointError(
            f"{type(model).__name__}: expected linear layers, got none: nothing to quantise. "
            "Ask for float32, float16 or bfloat16."
        )


def quantise(model: nn.Module) -> None:
    """Replace every linear layer, in place; a layer with several names stays one layer.

    Args:
        model: Model in float32, untied if it is going to be traced.

    Raises:
        BackendUnavailableError: This machine's torch has no engine for it.
        UnsupportedCheckpointError: There is no linear layer.
    """
    check_quantisable(model)
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, layer in model.named_modules(remove_duplicate=False):
        if _find_matrix(layer) is not None:
            names[layer].append(name)
    while names:  # one by one, to free a layer's float32 weights before the next one is made
        layer, places = names.popitem()
        made = _layer_class()(_find_matrix(layer), layer.bias)
        for path, _, attribute in (place.rpartition(".") for place in places):
            setattr(model.get_submodule(path), attribute, made)


def find_packed_layers(model: nn.Module) -> dict[str, Any]:
    """Return the quantised layers of an eager model or of a loaded bundle, under all names."""
    import torch

    return {
        name: layer
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(getattr(layer, "packed", None), torch.ScriptObject)
    }


def unpack_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return int8 values, scales and zero points of all packed weights, by name."""
    found: dict[str, torch.Tensor] = {}
    for name, layer in find_packed_layers(model).items():
        weight, bias = _unpack(layer)
        found[f"{name}.packed.values"] = weight.int_repr()
        found[f"{name}.packed.scales"] = weight.q_per_channel_scales()
        found[f"{name}.packed.zero_points"] = weight.q_per_channel_zero_points()
        if bias is not None:  # ours is a parameter of its own: this one must not go unseen
            found[f"{name}.packed.bias"] = bias
    return found


@contextlib.contextmanager
def corrupting_layer(layer: Any, factor: float) -> Iterator[None]:
    """Give a quantised layer wrong weights while the block runs."""
    kept, (weight, _) = layer.packed, _unpack(layer)
    scales = weight.q_per_channel_scales() * factor
    layer.packed = pack(weight.int_repr().roll(1, 0), scales)
    try:
        yield
    finally:
        layer.packed = kept


def pack(values: torch.Tensor, scales: torch.Tensor) -> Any:
    """Pack int8 weights, shape ``(outputs, inputs)``, with a scale for each output."""
    import warnings

    import torch

    with _forcing_engine(), warnings.catch_warnings():
        # Quantised tensors are going to leave torch one day; the packed form has no other source.
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(values, scales, zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None)


def check_accuracy(accuracy: Accuracy) -> None:
    """Refuse a quantised model that is too far from the float32 one.

    Raises:
        NumericsMismatchError: Its cosine is below the least.
    """
    if not accuracy.min_cosine >= LEAST_COSINE:
        raise NumericsMismatchError(
            f"dtype int8: expected a cosine of at least {LEAST_COSINE:g} between quantised and "
            f"float32 outputs, got {accuracy.min_cosine:.4f} (relative error up to "
            f"{accuracy.max_rel_error:.3g}, top-1 agreement {accuracy.top1_agreement:.3f}). "
            "Nothing was published: int8 costs this model too much accuracy. Ask for float32, "
            "float16 or bfloat16."
        )


def _find_matrix(layer: nn.Module) -> torch.Tensor | None:
    """Return a linear layer's weights, shape ``(outputs, inputs)``; None: it is something else."""
    # Subclasses compute in other ways, and hooks may compute the weights in each call.
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if layer._forward_pre_hooks or layer._forward_hooks or type(layer) not in (nn.Linear, Conv1D):
        return None
    weight: torch.Tensor = layer.weight.detach()  # type: ignore[operator]
    if not weight.numel():
        return None
    return weight if type(layer) is nn.Linear else weight.t()


def _unpack(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    import torch

    weight, bias = torch.ops.quantized.linear_unpack(layer.packed)
    return weight, bias


@contextlib.contextmanager
def _forcing_engine() -> Iterator[None]:
    """Select the engine that packs, while the block runs."""
    import torch

    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextlib.contextmanager
def _pausing_trace() -> Iterator[None]:
    """Keep ``linear_unpack`` out of a trace, which can't hold its result's type."""
    import torch

    compiler: Any = torch._C  # its stubs lack these two
    state = compiler._get_tracing_state()
    compiler._set_tracing_state(None)
    try:
        yield
    finally:
        compiler._set_tracing_state(state)


@functools.cache
def _layer_class() -> Any:
    """Return the class of quantised layers (torch is imported late)."""
    import torch
    from torch import nn

    class Int8Linear(nn.Module):
        """``x`` in 127 steps up to its token's largest magnitude, times int8 weights."""

        # The name stands in every archive: no move of this file may change the bytes.
        __module__ = "tracefleet.archive"
        #: Kept out of what torch.jit compiles.
        __jit_unused_properties__ = ("weight",)
        bias: nn.Parameter | None

        def __init__(self, matrix: torch.Tensor, bias: nn.Parameter | None) -> None:
            super().__init__()
            self.out_features, self.in_features = matrix.shape
            scales = (matrix.abs().amax(1).double() / _WEIGHT_LEVELS).clamp(min=_SMALLEST)
            values = (matrix.double() / scales.unsqueeze(1)).round().to(torch.int8)
            self.packed = pack(values, scales)
            self.register_parameter("bias", bias)

        @property
        def weight(self) -> torch.Tensor:
            """Weights in float32: T5 reads their dtype before it calls the layer."""
            with _pausing_trace():
                return _unpack(self)[0].dequantize()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # An infinity norm reads once and takes ten times as long: it is not vectorised.
            largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
            largest = largest.clamp(min=_SMALLEST)
            products = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                x / largest, 1 / _ACTIVATION_LEVELS, _ZERO, self.packed
            )
            # In place: nobody else has seen these.
            result: torch.Tensor = products.mul_(largest)
            return result if self.bias is None else result.add_(self.bias)

    return Int8Linear
