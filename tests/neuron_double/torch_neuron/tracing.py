"""torch_neuron.trace: partitions by itself, and falls back to the CPU where it can't compile."""

from __future__ import annotations

import copy
import enum
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from neuron_double import compiler, fallback, recording, settings, support
from neuron_double.artifact import NEURON, configure, neuron_models, wrap
from neuron_double.flags import BadFlagError, Flags, neuron_flags
from neuron_double.partition import Cut, cut
from torch import Tensor

logger = logging.getLogger("Neuron")
NOTHING_COMPILED = (
    "No operations were successfully partitioned and compiled to neuron for this model - aborting "
    "trace!"
)
_JIT_ARGUMENTS = frozenset({"strict", "check_trace", "check_tolerance", "check_inputs"})


class Optimization(enum.Enum):
    """What ``optimizations`` may ask for."""

    FLOAT32_TO_FLOAT16 = "FLOAT32_TO_FLOAT16"


class DecodeError(Exception):
    """protobuf's own, for a graph over 2 GB; protobuf is not needed for the double."""


DecodeError.__module__ = "google.protobuf.message"


@dataclass(frozen=True)
class Operator:
    """What a subgraph_builder_function is asked about."""

    name: str
    kind: str


def trace(
    model: Callable[..., Any],
    example_inputs: Any,
    *,
    compiler_args: list[str] | None = None,
    compiler_timeout: int | None = None,
    compiler_workdir: str | Path | None = None,
    subgraph_builder_function: Callable[[Any], bool] | None = None,
    minimum_segment_size: int = 2,
    single_fusion_ratio_threshold: float = 0.6,
    fallback: bool = True,
    dynamic_batch_size: bool = False,
    optimizations: Collection[Optimization] | None = None,
    separate_weights: bool = False,
    op_whitelist: Collection[str] | None = None,
    subgraph_inputs_pruning: bool = True,
    skip_compiler: bool = False,
    debug_must_trace: bool = False,
    allow_no_ops_on_neuron: bool = False,
    **kwargs: Any,
) -> torch.jit.ScriptModule:
    """Compile what neuron-cc takes; the rest stays on the CPU. See the SDK's documentation.

    Raises:
        AttributeError: ``fallback=False`` and an unsupported operator.
        RuntimeError: nothing was compiled, or inputs that can't be traced.
        TypeError: an argument that torch.jit.trace doesn't know.
        DecodeError: too many constants without ``separate_weights``.
        subprocess.TimeoutExpired: the compiler hung.
    """
    if unknown := set(kwargs) - _JIT_ARGUMENTS:
        raise TypeError(f"trace() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    flags = _flags(compiler_args, optimizations)
    arguments = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    recording.untie(model)
    with recording.in_eval(model):
        recorded = recording.record(model, arguments, dicts=not kwargs.get("strict", True))
    _check_constants(model, separate_weights)

    def on_device(node: torch.fx.Node) -> bool:
        name = recording.kind(node)
        if name in support.refusals() or (op_whitelist is not None and name not in op_whitelist):
            return False
        if not fallback:
            return True
        builder = subgraph_builder_function
        asked = builder is None or builder(Operator(node.name, name))
        return asked and name not in support.ALWAYS_ON_CPU

    if not fallback and (refused := support.refused(recording.operators(recorded.graph))):
        raise AttributeError(f"neuron-cc has no converter for {refused[0]}")
    pieces = cut(
        recorded.graph,
        on_device,
        min_size=minimum_segment_size if fallback else 1,
        fusion_ratio=single_fusion_ratio_threshold,
    )
    job = _Job(flags, compiler_timeout, compiler_workdir, separate_weights)
    parts = {} if skip_compiler else _compile(pieces, recorded, job)
    if not parts and not (skip_compiler or allow_no_ops_on_neuron):
        raise RuntimeError(NOTHING_COMPILED)
    return _finish(pieces, parts, recorded, dynamic_batch_size)


@dataclass(frozen=True)
class _Job:
    """What all subgraphs of one trace have in common."""

    flags: Flags
    timeout: float | None
    workdir: str | Path | None
    separate_weights: bool


def _flags(given: list[str] | None, optimizations: Collection[Optimization] | None) -> Flags:
    try:
        flags = neuron_flags(given)
    except BadFlagError as error:
        raise compiler.fail("neuron-cc", 2, str(error)) from error
    if optimizations:
        return Flags(target="inf1", cast="all", cast_type="fp16", line=flags.line)
    return flags


def _check_constants(model: Any, separate_weights: bool) -> None:
    """neuron-cc gets a TensorFlow GraphDef, and protobuf holds 2 GB."""
    size = sum(tensor.nbytes for tensor in recording.state_of(model).values())
    struck = settings.current().fault == "limit2gb"
    if (struck or size > settings.current().constant_limit) and not separate_weights:
        raise DecodeError("Error parsing message with type 'tensorflow.GraphDef'")


def _compile(
    pieces: Cut, recorded: recording.Recording, job: _Job
) -> dict[str, torch.jit.ScriptModule]:
    """Compile each part; one that fails stays on the CPU, with the log lines of the real one."""
    parts: dict[str, torch.jit.ScriptModule] = {}
    for index, (name, examples) in enumerate(fallback.examples_of(pieces, recorded).items()):
        try:
            parts[name] = _compile_part(pieces, name, examples, job, index)
        except (compiler.CompilerExitError, ValueError) as error:
            status = getattr(error, "status", 1)
            logger.info("Compile command returned: %s", status)
            logger.warning(
                "torch.neuron.trace failed on _NeuronGraph$%s; falling back to native python "
                "function call",
                index,
            )
            logger.error(  # noqa: TRY400  the real one logs its cause in the line
                "neuron-cc failed with the following command line call:\nneuron-cc compile %s\n"
                "subprocess.SubprocessError: %s",
                job.flags.line,
                error,
            )
    return parts


def _compile_part(
    pieces: Cut, name: str, examples: list[Tensor], job: _Job, index: int
) -> torch.jit.ScriptModule:
    part = copy.deepcopy(getattr(pieces.whole, name))  # what fails runs on the CPU as it is
    struck = settings.current().strikes
    outputs = fallback.output_form(part)
    workdir = None if job.workdir is None else Path(job.workdir) / str(index)
    facts = {"given": len(examples), "aliases": [], "inline": not job.separate_weights}
    neff = compiler.compile_graph(
        part,
        examples,
        job.flags,
        workdir,
        facts=facts,
        timeout=job.timeout,
        spared=bool(struck) and index >= struck,
    )
    return wrap(neff, tuple(None for _ in examples), outputs, operator=NEURON)


def _finish(
    pieces: Cut,
    parts: dict[str, torch.jit.ScriptModule],
    recorded: recording.Recording,
    dynamic_batch_size: bool,
) -> torch.jit.ScriptModule:
    compiled = sum(len(recording.operators(getattr(pieces.whole, name))) for name in parts)
    if pieces.operators and compiled / pieces.operators < 0.5:
        logger.warning("torch.neuron.trace was unable to compile > 50% of the operators")
    module = fallback.assemble(pieces, parts, recorded)
    for model in neuron_models(module) if dynamic_batch_size else []:
        configure(model, dynamic_batch=True)
    return module
