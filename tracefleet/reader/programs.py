"""Join programs of one length each into one module with a bundle's methods.

A Neuron program takes exactly the shapes that it was compiled for. It gets the dispatcher that a
jit bundle is saved with, so both route, pad, slice and refuse alike. The reader uses this module,
and so does the gate, which thus validates what consumers call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tracefleet.manifest_types import InputSpec, OutputSpec
from tracefleet.reader.dispatcher import dispatcher_source

if TYPE_CHECKING:
    import torch


def compose(
    programs: Mapping[int, torch.jit.ScriptModule],
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    batch: int,
) -> torch.jit.ScriptModule:
    """Return a module with ``forward`` and ``forward_<length>`` over loaded programs.

    Args:
        programs: standard length, ascending -> the module that was compiled for it.
        inputs: arguments of every program, in order.
        outputs: elements of the tuple that each returns.
        batch: rows in one call of a program.
    """
    import torch

    # Defined anew for each call: TorchScript would add the methods to a type that is shared.
    class Programs(torch.nn.Module):
        """Holder of the programs."""

    holder = Programs()
    for length, program in programs.items():
        holder.add_module(f"length_{length}", program)
    module: torch.jit.ScriptModule = torch.jit.script(holder.eval())
    for length, program in programs.items():
        module.define(_write_call(length, program, inputs, outputs))
    graphs = {length: f"_traced_{length}" for length in programs}
    for source in dispatcher_source(inputs, outputs, graphs, batch):
        module.define(source)
    return module


def _write_call(
    length: int,
    program: torch.jit.ScriptModule,
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
) -> str:
    """Write the method that calls one program and returns a tuple."""
    arguments = ", ".join(f"{spec.name}: Tensor" for spec in inputs)
    names = ", ".join(spec.name for spec in inputs)
    returned = ", ".join(["Tensor"] * len(outputs))
    (result,) = program._c._get_method("forward").schema.returns
    call = f"self.length_{length}({names})"
    # A program with one output may return it without a tuple around it.
    if str(result.type) == "Tensor":
        call = f"({call},)"
    return f"def _traced_{length}(self, {arguments}) -> Tuple[{returned}]:\n    return {call}\n"
