"""torch_neuronx.trace."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from neuron_double import compiler, nest, recording, settings
from neuron_double.artifact import wrap
from neuron_double.flags import BadFlagError, Flags, neuronx_flags
from torch import Tensor

from torch_neuronx.partitioning import PartitionerConfig, trace_partitioned

NO_DEVICE = (
    "Bad StatusOr access: INVALID_ARGUMENT: PJRT_Client_Create: error condition : Init: error "
    "condition !(num_devices > 0)"
)
NO_TARGET = (
    "If you want to compile on CPU, please supply compiler argument target, with one of options "
    'trn1, inf2, trn1n, or trn2. Ex: "--target trn1"'
)


def trace(
    func: Callable[..., Any],
    example_inputs: Any,
    *_: Any,
    input_output_aliases: dict[Any, int] = {},  # noqa: B006  as the SDK's own signature
    compiler_workdir: str | Path | None = None,
    compiler_args: str | list[str] | None = None,
    partitioner_config: PartitionerConfig | None = None,
    inline_weights_to_neff: bool = True,
    cpu_backend: bool = False,
) -> torch.jit.ScriptModule:
    """Compile a function for its example inputs' shapes; see the SDK's documentation.

    Raises:
        RuntimeError: no device and no ``cpu_backend``, no ``--target`` with it, inputs that are no
            nest of tensors, or a compiler that fails.
        ValueError: a limit of the partitioner is not kept.
    """
    inferred = _inferred(_)
    compiler_workdir = inferred.get("compiler_workdir", compiler_workdir)
    compiler_args = inferred.get("compiler_args", compiler_args)
    flags = compile_flags(compiler_args, cpu_backend)
    arguments = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(arguments, (tuple, list)):
        arguments = (arguments,)
    recording.untie(func)
    separated = {} if inline_weights_to_neff else recording.state_of(func)
    states = _states(func, arguments, input_output_aliases)
    held = {
        **separated,
        **{name: recording.state_of(func)[name] for name in states.values() if name},
    }
    with recording.in_eval(func):
        recorded = recording.record(func, tuple(arguments), separated=held)
    if partitioner_config is not None:
        return trace_partitioned(recorded, flags, partitioner_config)
    compiler.refuse_unsupported(recording.operators(recorded.graph))
    given = len(recorded.examples) - len(recorded.weights)
    facts = {
        "given": given,
        "aliases": _positions(states, recorded, input_output_aliases),
        "inline": inline_weights_to_neff,
    }
    workdir = Path(compiler_workdir) if compiler_workdir is not None else None
    neff = compiler.compile_graph(recorded.graph, recorded.examples, flags, workdir, facts=facts)
    copies = {name: tensor.detach().clone() for name, tensor in held.items()}
    return wrap(neff, recorded.inputs, recorded.outputs, weights=copies)


def compile_flags(given: str | list[str] | None, cpu_backend: bool) -> Flags:
    """Read the flags and apply the rules about devices.

    Raises:
        RuntimeError: as ``trace``.
    """
    device = settings.current().device
    if device in ("none", "inf1") and not cpu_backend:
        raise RuntimeError(NO_DEVICE)
    try:
        flags = neuronx_flags(given)
    except BadFlagError as error:
        raise compiler.fail("neuronx-cc", 70, str(error)) from error
    if flags.target:
        return flags
    if cpu_backend:
        raise RuntimeError(NO_TARGET)
    return Flags(target=device, cast=flags.cast, cast_type=flags.cast_type, line=flags.line)


def _inferred(extras: tuple[Any, ...]) -> dict[str, Any]:
    """Positional extras of old code: a warning, and a guess."""
    if not extras:
        return {}
    warnings.warn(
        "Positional arguments after example_inputs are deprecated", DeprecationWarning, stacklevel=3
    )
    found: dict[str, Any] = {}
    for value in extras:
        flags = isinstance(value, list) or (isinstance(value, str) and value.startswith("-"))
        if value is not None:
            found["compiler_args" if flags else "compiler_workdir"] = value
    return found


def _states(func: Callable[..., Any], arguments: Any, aliases: dict[Any, int]) -> dict[int, str]:
    """Map the id of each aliased tensor to its state_dict name; empty: it is an input."""
    if not aliases:
        return {}
    named: dict[int, str] = {}
    if isinstance(func, torch.nn.Module):
        pairs = [*func.named_parameters(), *func.named_buffers()]
        named = {id(tensor): name for name, tensor in pairs}
    inputs = {id(tensor) for tensor in nest.flatten(tuple(arguments))}
    unknown = [key for key in aliases if id(key) not in named and id(key) not in inputs]
    if unknown:
        raise ValueError(f"input_output_aliases: {len(unknown)} keys are no input or parameter")
    return {id(key): named.get(id(key), "") for key in aliases}


def _positions(
    states: dict[int, str], recorded: recording.Recording, aliases: dict[Any, int]
) -> list[list[int]]:
    """Say at which argument of the program each state lies, and which output renews it."""
    given = len(recorded.examples) - len(recorded.weights)
    ids = [id(tensor) for tensor in recorded.examples[:given]]
    places = []
    for key, index in aliases.items():
        name = states[id(key)]
        place = given + recorded.weights.index(name) if name else ids.index(id(key))
        places.append([place, index])
    return places
