"""What a trace returns: a ScriptModule that holds a program and calls a Neuron operator.

The state is the stamp, a configuration in JSON, the program's bytes and, where they were separated,
the weights. ``__setstate__`` runs inside ``torch.jit.load``, in Python and C++ alike: that is where
a program is placed on a core.
"""

# No postponed annotations: TorchScript reads them.
import json
from typing import Any

import torch
from torch import Tensor, nn

from neuron_double import nest
from neuron_double.stamp import STAMP

NEURONX, NEURON = "forward_v2", "forward_1"
_NOT_LOADED = -1


class _NeuronxModel(nn.Module):
    """Calls torch_neuronx's operator."""

    stamp: str
    config: str
    neff: list[Tensor]
    names: list[str]
    weights: list[Tensor]
    handle: Tensor

    def __init__(self, config: str, neff: Tensor, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.stamp, self.config, self.neff = STAMP, config, [neff]
        self.names, self.weights = list(weights), list(weights.values())
        self.handle = torch.tensor(_NOT_LOADED)

    @torch.jit.export
    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        outputs: list[Tensor] = torch.ops.neuron.forward_v2(
            self.handle, self.config, self.neff, inputs, self.weights
        )
        return outputs

    @torch.jit.export
    def __getstate__(self) -> tuple[str, str, list[Tensor], list[str], list[Tensor], bool]:
        return self.stamp, self.config, self.neff, self.names, self.weights, self.training

    @torch.jit.export
    def __setstate__(
        self, state: tuple[str, str, list[Tensor], list[str], list[Tensor], bool]
    ) -> None:
        self.stamp = state[0]
        self.config = state[1]
        self.neff = state[2]
        self.names = state[3]
        self.weights = state[4]
        self.training = state[5]
        self.handle = torch.ops.neuron.forward_v2(self.config, self.neff)


class _NeuronModel(nn.Module):
    """Calls torch_neuron's operator; TorchScript can't take the name from a field."""

    stamp: str
    config: str
    neff: list[Tensor]
    names: list[str]
    weights: list[Tensor]
    handle: Tensor

    def __init__(self, config: str, neff: Tensor, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.stamp, self.config, self.neff = STAMP, config, [neff]
        self.names, self.weights = list(weights), list(weights.values())
        self.handle = torch.tensor(_NOT_LOADED)

    @torch.jit.export
    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        outputs: list[Tensor] = torch.ops.neuron.forward_1(
            self.handle, self.config, self.neff, inputs, self.weights
        )
        return outputs

    @torch.jit.export
    def __getstate__(self) -> tuple[str, str, list[Tensor], list[str], list[Tensor], bool]:
        return self.stamp, self.config, self.neff, self.names, self.weights, self.training

    @torch.jit.export
    def __setstate__(
        self, state: tuple[str, str, list[Tensor], list[str], list[Tensor], bool]
    ) -> None:
        self.stamp = state[0]
        self.config = state[1]
        self.neff = state[2]
        self.names = state[3]
        self.weights = state[4]
        self.training = state[5]
        self.handle = torch.ops.neuron.forward_1(self.config, self.neff)


def wrap(
    neff: bytes,
    inputs: Any,
    outputs: Any,
    *,
    operator: str = NEURONX,
    weights: dict[str, Tensor] | None = None,
    **config: Any,
) -> torch.jit.ScriptModule:
    """Give a program its ScriptModule.

    Args:
        neff: the program.
        inputs: form of its arguments, a tuple.
        outputs: form of its result.
        operator: ``forward_v2`` or ``forward_1``.
        weights: the separated ones, by name.
        config: fields that differ from the usual.
    """
    usual = {"lazy": False, "async": False, "dynamic_batch": False, "cores": [-1, -1]}
    kind = _NeuronxModel if operator == NEURONX else _NeuronModel
    data = torch.frombuffer(bytearray(neff), dtype=torch.uint8)
    module = scripted(kind(json.dumps({**usual, **config}), data, weights or {}))
    module.define(forward_source(inputs, outputs))
    return module


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    """Script a module with a type of its own: ``torch.jit.script`` shares types, methods too."""
    recursive = torch.jit._recursive
    made: torch.jit.ScriptModule = recursive.create_script_module(
        module.eval(), recursive.infer_methods_to_compile, share_types=False
    )
    return made


def forward_source(inputs: Any, outputs: Any, run: str = "self.run({leaves})") -> str:
    """Spell the public method: nest in, one flat call, nest out.

    No aten operator is among its words: those of a graph are what the host runs.
    """
    names = [f"input_{index}" for index in range(len(inputs))]
    pairs = list(zip(inputs, names, strict=True))
    arguments = "".join(f", {name}: {nest.type_source(spec)}" for spec, name in pairs)
    leaves = ", ".join(leaf for spec, name in pairs for leaf in nest.leaf_sources(spec, name))
    taken: list[str] = []

    def take() -> str:
        taken.append(f"output_{len(taken)}")
        return taken[-1]

    result = nest.value_source(outputs, take)
    return (
        f"def forward(self{arguments}) -> {nest.type_source(outputs)}:\n"
        f"    {', '.join(taken)}, = {run.format(leaves=f'[{leaves}]')}\n"
        f"    return {result}\n"
    )


def neff_bytes(neff: Tensor) -> bytes:
    """Return a program's bytes."""
    return neff.contiguous().numpy().tobytes()


def neuron_models(module: torch.jit.ScriptModule) -> list[Any]:
    """Return the compiled parts of a module, itself included."""
    return [part for part in module.modules() if _is_stamped(part)]


def _is_stamped(module: nn.Module) -> bool:
    script = getattr(module, "_c", None)
    return script is not None and script.hasattr("stamp") and script.hasattr("neff")


def header_of(model: Any) -> dict[str, Any]:
    """Return a compiled model's header."""
    header: dict[str, Any] = json.loads(neff_bytes(model.neff[0]).partition(b"\n")[0])
    return header


def configure(model: Any, **changes: Any) -> None:
    """Change a compiled model's configuration; it is loaded anew at its next call."""
    model.config = json.dumps({**json.loads(model.config), **changes})
    model.handle = torch.tensor(_NOT_LOADED)
