"""AWS Neuron through ``torch_neuron.trace``: Inf1, which AWS has archived.

The package partitions a model by itself and leaves on the host's CPU what it can't compile, with
only a line in its log: the share of operators on the device is measured here, and a model with too
small a share is refused. Runs on Python 3.10 and torch 1.13.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.backends import device_gate, host, programs
from tasks.backends.base import Backend, Job
from tasks.backends.compiling import compile_program
from tasks.backends.options import NeuronOptions
from tasks.backends.programs import Prepared, Program
from tasks.backends.prove_programs import Compiler, prove_programs
from tasks.child_main import report_progress
from tasks.errors import CompilationError
from tasks.trace.bundle import TracedFile
from tracefleet.program_files import FORWARD

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.model.feeds import Feed

_NAME = "neuron"
#: More constants than this don't fit neuron-cc's input (aws-neuron-sdk #420, #424).
_INLINE_LIMIT = 1_900_000_000
#: Operators that cost time, by their names without a leading underscore or ``native``. Lookups of
#: ids and integer arithmetic on masks stay on the CPU by the SDK's design.
_COSTLY = re.compile(
    r"(linear|matmul|addmm|mm|bmm|baddbmm|einsum|conv\w*|scaled_dot_product\w*|layer_norm|group_norm"
    r"|batch_norm|softmax|log_softmax|gelu|silu|relu|tanh|sigmoid|erf|exp|topk|lstm|gru)"
)


def prepare(job: Job, log: Path) -> Prepared:
    """See ``programs.prepare``."""
    # Without an analysis of operators: this SDK's own only writes a share into its log.
    return programs.prepare(job, log)


def compile_one(job: Job, prepared: Prepared, program: Program, log: Path) -> TracedFile:
    """See ``compiling.compile_program``.

    Raises:
        CompilationError: Reason ``device coverage``: too much of the model stayed on the CPU.
    """
    assert isinstance(job.compiling, NeuronOptions)
    options = job.compiling
    # A search's position has no rows, which would be split.
    dynamic = options.dynamic_batch and program.part == FORWARD

    def compile_module(module: nn.Module, feed: Feed, workdir: Path) -> torch.jit.ScriptModule:
        compiled: torch.jit.ScriptModule = host.import_runtime(_NAME).trace(
            module,
            tuple(feed.values()),
            compiler_args=options.compiler_args,
            compiler_workdir=str(workdir),
            fallback=options.fallback,
            dynamic_batch_size=dynamic,
            separate_weights=_separates_weights(options, module),
        )
        _check_coverage(module, feed, compiled, options.min_coverage)
        return compiled

    return compile_program(job, prepared, program, log, compile_module)


def measure_coverage(
    eager: torch.jit.ScriptModule, compiled: torch.jit.ScriptModule
) -> tuple[float, str]:
    """Measure the share of costly operators that are on the device.

    Args:
        eager: Module as ``torch.jit.trace`` records it.
        compiled: Result of ``torch_neuron.trace``: its graph has the operators left on the CPU.

    Returns:
        The share, and the names of those on the CPU, for people.
    """
    before, left = _count_operators(eager), _count_operators(compiled)
    share = 1 - sum(left.values()) / max(sum(before.values()), 1)
    named = ", ".join(f"{name} × {count}" for name, count in left.most_common(8))
    return max(share, 0.0), named


def _check_coverage(
    module: nn.Module, feed: Feed, compiled: torch.jit.ScriptModule, least: float
) -> None:
    import torch

    eager = torch.jit.trace(module, tuple(feed.values()), check_trace=False)
    share, left = measure_coverage(eager, compiled)
    report_progress(f"{share:.1%} of its costly operators are on the device")
    if share < least:
        raise CompilationError(
            f"expected at least {least:.0%} of the costly operators on the device, got "
            f"{share:.1%}; the CPU would compute {left}. Lower min_coverage if that is what you "
            "want, or convert for jit.",
            reason="device coverage",
        )


def _count_operators(module: Any) -> Counter[str]:
    kinds: Counter[str] = Counter()
    graph = module.inlined_graph  # kept in a variable: its nodes don't outlive it
    blocks = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            kinds[node.kind()] += 1
            blocks.extend(node.blocks())
    costly = (kind for kind in kinds if _is_costly(kind))
    return Counter({kind: kinds[kind] for kind in costly})


def _is_costly(kind: str) -> bool:
    name = kind.removeprefix("aten::").removeprefix("_").removeprefix("native_")
    return kind.startswith("aten::") and _COSTLY.fullmatch(name) is not None


def _separates_weights(options: NeuronOptions, module: nn.Module) -> bool:
    if options.separate_weights is not None:
        return options.separate_weights
    state = module.state_dict().values()
    size: int = sum(t.numel() * t.element_size() for t in state)
    return size > _INLINE_LIMIT


COMPILER = Compiler(
    toolchain=partial(host.toolchain, _NAME),
    has_device=partial(host.has_device, _NAME),
    prepare=prepare,
    compile=compile_one,
    validate=partial(device_gate.validate_programs, backend=_NAME),
    validate_search=partial(device_gate.validate_search, backend=_NAME),
)
NEURON = Backend(
    name=_NAME,
    toolchain=COMPILER.toolchain,
    has_device=COMPILER.has_device,
    prove=partial(prove_programs, compiler=COMPILER),
)
