"""Pieces of TorchScript source that both kinds of dispatcher are written of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracefleet.manifest_types import InputSpec, OutputSpec

if TYPE_CHECKING:
    import torch


def write_signature(
    name: str, inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]
) -> str:
    """Write a method's first line: tensors in, a tuple of tensors out."""
    arguments = ", ".join(f"{spec.name}: Tensor" for spec in inputs)
    returned = ", ".join(["Tensor"] * len(outputs))
    return f"def {name}(self, {arguments}) -> Tuple[{returned}]:"


def write_size_test(name: str, sizes: list[str]) -> str:
    """Write the condition that a tensor does not have these sizes, each an expression."""
    # The number of axes comes first: TorchScript's own error for a missing axis names no input.
    checks = [f"{name}.dim() != {len(sizes)}"]
    checks += [f"{name}.size({axis}) != {size}" for axis, size in enumerate(sizes)]
    return " or ".join(checks)


def list_names(inputs: tuple[InputSpec, ...]) -> str:
    """Return the arguments' names, as a call of a graph lists them."""
    return ", ".join(spec.name for spec in inputs)


def list_results(outputs: tuple[OutputSpec, ...]) -> str:
    """Return the names that a call's results are unpacked into."""
    names = [f"out{i}" for i in range(len(outputs))]
    # The comma unpacks a tuple of one.
    return f"{names[0]}," if len(names) == 1 else ", ".join(names)


def find_leads(inputs: tuple[InputSpec, ...]) -> dict[str, InputSpec]:
    """Return, for each axis that varies in length, the first input that has it."""
    leads: dict[str, InputSpec] = {}
    for spec in inputs:
        if spec.length_axis is not None:
            leads.setdefault(spec.axes[spec.length_axis], spec)
    return dict(sorted(leads.items()))


def write_longest(inputs: tuple[InputSpec, ...]) -> list[str]:
    """Write the lines that set each length, and ``longest`` to the largest of them."""
    leads = find_leads(inputs)
    lines = [f"    {axis} = {spec.name}.size({spec.length_axis})" for axis, spec in leads.items()]
    longest = next(iter(leads)) if len(leads) == 1 else f"max({', '.join(leads)})"
    return [*lines, f"    longest = {longest}"]


def write_refusal(graphs: dict[int, str]) -> str:
    """Write the line that refuses a row that is longer than every standard length."""
    return (
        '        raise ValueError("input has " + str(longest) + " tokens; expected at most '
        f'{max(graphs)}, the largest standard length of this bundle")'
    )


def write_shape_checks(inputs: tuple[InputSpec, ...]) -> list[str]:
    """Write the lines that refuse inputs whose shapes differ: a trace might broadcast them."""
    leads = find_leads(inputs)
    lines = []
    for spec in inputs:
        sizes = ["rows", *spec.axes[1:]]
        shape = ", ".join(sizes)
        if spec.length_axis is not None:
            lead = leads[spec.axes[spec.length_axis]]
            sizes[spec.length_axis] = f"{lead.name}.size({lead.length_axis})"
        lines += [
            f"    if {write_size_test(spec.name, sizes)} or {spec.name}.numel() == 0:",
            f'        raise ValueError("{spec.name}: expected shape ({shape}), at least 1 of each '
            f'and equal for all inputs, got " + str({spec.name}.size()))',
        ]
    return lines


def returns_tensor(program: torch.jit.ScriptModule) -> bool:
    """Tell whether a program returns its one output without a tuple around it."""
    (result,) = program._c._get_method("forward").schema.returns
    return str(result.type) == "Tensor"
