"""Join programs of one length each into one module with a bundle's methods.

A Neuron program takes exactly the shapes that it was compiled for. It gets the dispatcher that a
jit bundle is saved with, so both route, pad, slice and refuse alike. The reader uses this module,
and so does the gate, which thus validates what consumers call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tracefleet.manifest_types import InputSpec, OutputSpec
from tracefleet.reader.dispatcher import dispatcher_source
from tracefleet.reader.padded import PaddedSearch
from tracefleet.reader.script import returns_tensor

if TYPE_CHECKING:
    import torch


def compose(
    programs: Mapping[int, torch.jit.ScriptModule],
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    batch: int,
    search: PaddedSearch | None = None,
) -> torch.jit.ScriptModule:
    """Return a module with ``forward`` and ``forward_<length>`` over loaded programs.

    Args:
        programs: standard length, ascending -> the module that was compiled for it.
        inputs: arguments of every program, in order.
        outputs: elements of the tuple that each returns.
        batch: rows in one call of a program.
        search: what gives it ``generate`` too; None: it has none.
    """
    modules = {f"length_{length}": program for length, program in programs.items()}
    sources = [
        _write_call(length, program, inputs, outputs) for length, program in programs.items()
    ]
    graphs = {length: f"_traced_{length}" for length in programs}
    sources += dispatcher_source(inputs, outputs, graphs, batch)
    if search is None:
        return join(modules, sources)
    return join({**modules, **search.modules}, [*sources, *search.sources])


def join(
    modules: Mapping[str, torch.jit.ScriptModule], sources: Iterable[str]
) -> torch.jit.ScriptModule:
    """Return a module that holds others by their names, with methods that call them."""
    import torch

    # Defined anew for each call: TorchScript would add the methods to a type that is shared.
    class Programs(torch.nn.Module):
        """Holder of the programs."""

    holder = Programs()
    for name, program in modules.items():
        holder.add_module(name, program)
    module: torch.jit.ScriptModule = torch.jit.script(holder.eval())
    for source in sources:
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
    call = f"self.length_{length}({names})"
    if returns_tensor(program):
        call = f"({call},)"
    return f"def _traced_{length}(self, {arguments}) -> Tuple[{returned}]:\n    return {call}\n"
