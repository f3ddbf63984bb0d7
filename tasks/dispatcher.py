"""The TorchScript source of a bundle's public methods.

TorchScript has no generics over tuples, so that the source is written out for the model's own
inputs and outputs. It stays inside what libtorch's interpreter runs: C++ and Triton call the very
same code.
"""

from __future__ import annotations

from tracefleet.manifest import InputSpec, OutputSpec


def dispatcher_source(
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    graphs: dict[int, str],
    batch: int,
) -> list[str]:
    """Return the methods to define, in order: ``forward_<length>``, ``_run_batch``, ``forward``.

    Args:
        inputs: the arguments, each ``(batch, length)`` or ``(batch, decoder_length)``.
        outputs: the returned tuple's elements.
        graphs: standard length, ascending -> name of the traced method that serves it.
        batch: rows in one traced call.
    """
    exact = [_exact_source(inputs, outputs, length, batch, graphs[length]) for length in graphs]
    return [
        *exact,
        _batch_source(inputs, outputs, graphs),
        _forward_source(inputs, outputs, batch),
    ]


def _signature(name: str, inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]) -> str:
    arguments = ", ".join(f"{spec.name}: Tensor" for spec in inputs)
    returned = ", ".join("Tensor" for _ in outputs)
    return f"def {name}(self, {arguments}) -> Tuple[{returned}]:"


def _exact_source(
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    length: int,
    batch: int,
    graph: str,
) -> str:
    """A guard before the graph: a trace computes nonsense on other shapes without complaining."""
    checks = "\n".join(
        f"    if {spec.name}.dim() != 2 or {spec.name}.size(0) != {batch} "
        f"or {spec.name}.size(1) != {length}:\n"
        f'        raise ValueError("forward_{length}: {spec.name} expected shape '
        f'({batch}, {length}), got " + str({spec.name}.size()) + "; forward() takes any shape")'
        for spec in inputs
    )
    arguments = ", ".join(spec.name for spec in inputs)
    return (
        f"{_signature(f'forward_{length}', inputs, outputs)}\n{checks}\n"
        f"    return self.{graph}({arguments})\n"
    )


def _batch_source(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], graphs: dict[int, str]
) -> str:
    """Pad one full batch to the smallest standard length that fits, run it, slice it back."""
    axes = sorted({spec.axes[1] for spec in inputs})
    lines = [_signature("_run_batch", inputs, outputs)]
    for axis in axes:
        first = next(spec.name for spec in inputs if spec.axes[1] == axis)
        lines.append(f"    {axis} = {first}.size(1)")
    longest = axes[0] if len(axes) == 1 else f"max({', '.join(axes)})"
    lines += [f"    longest = {longest}", "    standard = 0"]
    for index, length in enumerate(graphs):
        word = "if" if index == 0 else "elif"
        lines += [f"    {word} longest <= {length}:", f"        standard = {length}"]
    lines.append("    else:")
    lines.append(
        f'        raise ValueError("input has " + str(longest) + " tokens; expected at most '
        f'{max(graphs)}, the largest standard length of this bundle")'
    )
    for spec in inputs:
        lines.append(
            f"    {spec.name} = torch.constant_pad_nd({spec.name}, "
            f"[0, standard - {spec.axes[1]}], {spec.pad_value})"
        )
    lines += _routed_call(inputs, outputs, graphs)
    sliced = ", ".join(_sliced(f"out{i}", spec) for i, spec in enumerate(outputs))
    lines.append(f"    return ({sliced},)")
    return "\n".join(lines) + "\n"


def _routed_call(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], graphs: dict[int, str]
) -> list[str]:
    """Call the graph of the length; one shared graph is named once and so compiled once."""
    results = ", ".join(f"out{i}" for i in range(len(outputs))) + ("," if len(outputs) == 1 else "")
    arguments = ", ".join(spec.name for spec in inputs)
    routes = list(graphs.items())
    if len(set(graphs.values())) == 1:
        return [f"    {results} = self.{routes[0][1]}({arguments})"]
    lines = []
    for index, (length, graph) in enumerate(routes):
        last = index == len(routes) - 1
        word = "else" if last else f"{'if' if index == 0 else 'elif'} standard == {length}"
        lines += [f"    {word}:", f"        {results} = self.{graph}({arguments})"]
    return lines


def _sliced(name: str, spec: OutputSpec) -> str:
    for position, axis in enumerate(spec.axes):
        if axis in ("length", "decoder_length"):
            name = f"{name}.narrow({position}, 0, {axis})"
    return name


def _forward_source(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], batch: int
) -> str:
    """Split the rows into traced batches; a last incomplete batch repeats its first row."""
    lead = inputs[0].name
    lines = [_signature("forward", inputs, outputs), f"    rows = {lead}.size(0)"]
    for spec in inputs:
        partner = next(other.name for other in inputs if other.axes[1] == spec.axes[1])
        lines.append(
            f"    if {spec.name}.dim() != 2 or {spec.name}.size(0) != rows "
            f"or {spec.name}.size(1) != {partner}.size(1) or {spec.name}.numel() == 0:"
        )
        lines.append(
            f'        raise ValueError("{spec.name}: expected the shape of {partner}, (rows, '
            f'tokens) with at least one of each, got " + str({spec.name}.size()))'
        )
    arguments = ", ".join(spec.name for spec in inputs)
    lines.append(f"    if rows == {batch}:")
    lines.append(f"        return self._run_batch({arguments})")
    lines += [f"    parts{i}: List[Tensor] = []" for i in range(len(outputs))]
    lines.append(f"    for start in range(0, rows, {batch}):")
    lines.append(f"        count = min({batch}, rows - start)")
    for spec in inputs:
        lines.append(f"        part_{spec.name} = {spec.name}.narrow(0, start, count)")
        if batch > 1:
            lines.append(
                f"        part_{spec.name} = torch.cat([part_{spec.name}, "
                f"part_{spec.name}.narrow(0, 0, 1).repeat([{batch} - count, 1])], 0)"
            )
    results = ", ".join(f"out{i}" for i in range(len(outputs))) + ("," if len(outputs) == 1 else "")
    parts = ", ".join(f"part_{spec.name}" for spec in inputs)
    lines.append(f"        {results} = self._run_batch({parts})")
    lines += [f"        parts{i}.append(out{i}.narrow(0, 0, count))" for i in range(len(outputs))]
    joined = ", ".join(f"torch.cat(parts{i}, 0)" for i in range(len(outputs)))
    lines.append(f"    return ({joined},)")
    return "\n".join(lines) + "\n"
