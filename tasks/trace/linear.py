"""Linear layers through oneDNN while a model is recorded: twice as fast where MKL is slow.

torch multiplies float32 matrices with MKL, which uses no AVX-512 on AMD's processors: there oneDNN,
which every Linux and Windows build of torch has beside it, takes half of the time at nearly every
size (docs/serving.md has the figures). The operator is in libtorch: nothing is packed or copied,
and the archive's weights stay what they are. Its sums are rounded otherwise than eager's; the gate
compares them like everything else.
"""
# No deferred annotations here: torch compiles the function below from its real types.

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional


@contextmanager
def fast_linear() -> Iterator[None]:
    """Record float32 linear layers as calls of oneDNN's, while the block runs.

    ``torch.nn.functional.linear`` and GPT-2's ``Conv1D`` are replaced: call it in a process that
    records one model at a time.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if not torch.backends.mkldnn.is_available():
        yield
        return
    original, scripted = torch.nn.functional.linear, _script()

    def linear(input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: A002  torch's own name
        if _fits(input, weight, bias):
            return scripted(input, weight, bias)
        return original(input, weight, bias)

    def multiply(self: Any, x: Any) -> Any:
        return linear(x, self.weight.t(), self.bias)

    # What a model scripts while it is recorded gets torch's own.
    torch.jit._builtins._register_builtin(linear, "aten::linear")
    forward = Conv1D.forward
    torch.nn.functional.linear, Conv1D.forward = linear, multiply
    try:
        yield
    finally:
        torch.nn.functional.linear, Conv1D.forward = original, forward


def _fits(x: Any, weight: Any, bias: Any) -> bool:
    """Tell whether oneDNN takes a layer as torch does: rows, a matrix, a number for each column."""
    import torch

    if x.dim() < 2 or weight.dim() != 2 or weight.dtype != torch.float32:
        return False
    return bias is None or _read_shape(bias) == _read_shape(weight)[:1]


def _read_shape(tensor: Any) -> tuple[int, ...]:
    """Return a shape as numbers: while torch traces, it hands out tensors and warns of them."""
    import torch

    tracer: Any = torch._C
    state = tracer._get_tracing_state()
    tracer._set_tracing_state(None)
    try:
        return tuple(tensor.shape)
    finally:
        tracer._set_tracing_state(state)


def _script() -> Any:
    """Return the function that stands in the archive: oneDNN's on a CPU, torch's own elsewhere."""
    import torch
    from torch import Tensor

    def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
        # An expert that gets no tokens has no rows, and under autocast x may be of another type.
        if x.is_cpu and x.numel() > 0 and x.dtype == torch.float32 and weight.dtype == x.dtype:
            found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return found
        return torch._C._nn.linear(x, weight, bias)

    # The name stands in every archive: no move of this file may change the bytes.
    linear.__module__ = "tracefleet.archive"
    return torch.jit.script(linear)
