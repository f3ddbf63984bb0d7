"""bucket_model_trace: one model, several shapes, a scripted kernel that chooses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from neuron_double import compiler, nest, recording
from neuron_double.artifact import forward_source, scripted, wrap
from neuron_double.flags import Flags
from torch import Tensor, nn

from torch_neuronx.tracing import compile_flags


class BucketModelConfig:
    """The kernel that pads the inputs and says which bucket takes them.

    Raises:
        NotImplementedError: a shared state buffer; the double has none.
    """

    def __init__(
        self,
        bucket_kernel: Callable[..., Any],
        *_: Any,
        shared_state_buffer: list[Tensor] | None = None,
        shared_state_buffer_preprocessor: Callable[..., Any] | None = None,
        func_kwargs: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        if shared_state_buffer is not None or shared_state_buffer_preprocessor is not None:
            raise NotImplementedError("the contract double has no shared state buffer")
        self.bucket_kernel, self.func_kwargs = bucket_kernel, func_kwargs or {}


class _Buckets(nn.Module):
    """Holds the kernel and a compiled model per bucket; its forward is defined later."""

    def __init__(self, kernel: Any, models: list[torch.jit.ScriptModule]) -> None:
        super().__init__()
        self.kernel = kernel
        for index, model in enumerate(models):
            setattr(self, f"bucket_{index}", model)


def bucket_model_trace(
    func: Callable[..., tuple[Any, dict[Any, int]]],
    example_inputs: list[Any],
    bucket_config: BucketModelConfig,
    compiler_workdir: str | Path | None = None,
    compiler_args: str | list[str] | None = None,
) -> torch.jit.ScriptModule:
    """Compile a model for several shapes; the buckets share its weights.

    Args:
        func: returns the model and its aliases.
        example_inputs: one nest of tensors for each bucket.
        bucket_config: the kernel.
        compiler_workdir: where the compiler's files stay.
        compiler_args: the compiler's flags.

    Raises:
        RuntimeError: the kernel is no scripted function, no device, or a compiler that fails.
    """
    flags = compile_flags(compiler_args, cpu_backend=False)
    kernel = bucket_config.bucket_kernel()
    if not isinstance(kernel, torch.jit.ScriptFunction):
        raise RuntimeError(
            f"bucket_kernel: expected a torch.jit.script function, got {type(kernel).__name__}"
        )
    kwargs = bucket_config.func_kwargs
    every = kwargs if isinstance(kwargs, list) else [kwargs] * len(example_inputs)
    models = []
    shared: dict[str, Tensor] = {}
    for index, (inputs, arguments) in enumerate(zip(example_inputs, every, strict=True)):
        model, _ = func(**arguments)
        workdir = None if compiler_workdir is None else Path(compiler_workdir) / f"bucket_{index}"
        shared = shared or {k: v.clone() for k, v in recording.state_of(model).items()}
        models.append(_compile_bucket(model, inputs, flags, shared, workdir))
    module = scripted(_Buckets(kernel, models))
    first = example_inputs[0]
    spec = nest.spec_of(tuple(first) if isinstance(first, (tuple, list)) else (first,))
    outputs = models[0]._c._get_method("forward").schema.returns[0].type
    module.define(_forward(spec, str(outputs), len(models)))
    return module


def _compile_bucket(
    model: nn.Module, inputs: Any, flags: Flags, shared: dict[str, Tensor], workdir: Path | None
) -> torch.jit.ScriptModule:
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    with recording.in_eval(model):
        recorded = recording.record(model, arguments, separated=shared)
    compiler.refuse_unsupported(recording.operators(recorded.graph))
    given = len(recorded.examples) - len(recorded.weights)
    facts = {"given": given, "aliases": [], "inline": False}
    neff = compiler.compile_graph(recorded.graph, recorded.examples, flags, workdir, facts=facts)
    return wrap(neff, recorded.inputs, recorded.outputs, weights=shared)


def _forward(spec: Any, outputs: str, count: int) -> str:
    """Spell the method that asks the kernel and calls its bucket."""
    form: Any = None if outputs == "Tensor" else (None,) * outputs.count("Tensor")
    body = forward_source(spec, form, run="self._choose({leaves})")
    routes = "".join(
        f"    if chosen == {index}:\n        return self.bucket_{index}.run(padded)\n"
        for index in range(count)
    )
    choose = (
        "def _choose(self, inputs: List[Tensor]) -> List[Tensor]:\n"
        "    padded, index = self.kernel(inputs)\n"
        "    chosen = int(index.item())\n"
        f"{routes}"
        "    raise RuntimeError('the bucket kernel chose no bucket')\n"
    )
    return f"{choose}\n{body}"
