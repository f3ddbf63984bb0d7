"""PartitionerConfig: CPU fallback of torch_neuronx, off unless one is given."""

from __future__ import annotations

from typing import Any

from neuron_double import fallback, support
from neuron_double.artifact import wrap
from neuron_double.compiler import compile_graph
from neuron_double.flags import Flags
from neuron_double.partition import Cut, cut
from neuron_double.recording import Recording, kind, operators
from torch import Tensor, jit


class PartitionerConfig:
    """How a model may be partitioned; violations raise ValueError at the trace."""

    def __init__(
        self,
        *,
        trace_kwargs: dict[str, Any] | None = None,
        model_support_percentage_threshold: float = 0.5,
        min_subgraph_size: int = -1,
        max_subgraph_count: int = -1,
        ops_to_partition: set[str] | None = None,
        analyze_parameters: dict[str, Any] | None = None,
    ) -> None:
        self.trace_kwargs = trace_kwargs or {}
        self.threshold = model_support_percentage_threshold
        self.min_subgraph_size = min_subgraph_size
        self.max_subgraph_count = max_subgraph_count
        self.ops_to_partition = set(ops_to_partition or ())
        self.analyze_parameters = analyze_parameters or {}


def trace_partitioned(
    recording: Recording, flags: Flags, config: PartitionerConfig
) -> jit.ScriptModule:
    """Compile what is supported and leave the rest on the CPU.

    Raises:
        ValueError: one of the configuration's limits is not kept.
    """
    refused = config.ops_to_partition | set(support.refusals())
    pieces = cut(recording.graph, lambda node: kind(node) not in refused)
    _check(pieces, config)
    parts = {}
    for name, examples in fallback.examples_of(pieces, recording).items():
        parts[name] = _compile_part(getattr(pieces.whole, name), examples, flags)
    return fallback.assemble(pieces, parts, recording)


def _compile_part(part: Any, examples: list[Tensor], flags: Flags) -> jit.ScriptModule:
    outputs = fallback.output_form(part)
    facts = {"given": len(examples), "aliases": []}
    neff = compile_graph(part, examples, flags, facts=facts)
    return wrap(neff, tuple(None for _ in examples), outputs)


def _check(pieces: Cut, config: PartitionerConfig) -> None:
    """Keep the limits, each with its own message."""
    if pieces.coverage < config.threshold:
        raise ValueError(
            f"The model support percentage is {pieces.coverage:.0%}, below the threshold "
            f"{config.threshold:.0%}"
        )
    count = len(pieces.on_device)
    if 0 <= config.max_subgraph_count < count:
        raise ValueError(f"{count} subgraphs exceed max_subgraph_count {config.max_subgraph_count}")
    _check_sizes(pieces, config.min_subgraph_size)


def _check_sizes(pieces: Cut, smallest: int) -> None:
    sizes: list[int] = [len(operators(getattr(pieces.whole, name))) for name in pieces.on_device]
    if smallest >= 0 and any(size < smallest for size in sizes):
        raise ValueError(f"subgraphs of {sizes} operators: min_subgraph_size is {smallest}")
