"""The TorchScript source of a conversion's public methods, whatever its backend.

A bundle is saved with them; the programs of Neuron, one file for each length, get them when they
are loaded (``tracefleet.reader.programs``).

TorchScript has no generics over tuples, so that the source is written out for the model's own
inputs and outputs. It stays inside what libtorch's interpreter runs: C++ and Triton call the very
same code.
"""

from __future__ import annotations

from tracefleet.manifest_types import LENGTH_AXES, InputSpec, OutputSpec


def dispatcher_source(
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    graphs: dict[int, str],
    batch: int,
) -> list[str]:
    """Return the methods to define, in order: ``forward_<length>``, ``_run_batch``, ``forward``.

    Args:
        inputs: the arguments: a batch axis first, at most one length axis, fixed sizes elsewhere.
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
    lines = [_signature(f"forward_{length}", inputs, outputs)]
    for spec in inputs:
        sizes = [str(size) for size in spec.shape(batch=batch, length=length)]
        lines += [
            f"    if {_differs(spec.name, sizes)}:",
            f'        raise ValueError("forward_{length}: {spec.name} expected shape '
            f'({", ".join(sizes)}), got " + str({spec.name}.size()) + "; forward() takes any '
            'shape that fits")',
        ]
    lines.append(f"    return self.{graph}({', '.join(spec.name for spec in inputs)})")
    return "\n".join(lines) + "\n"


def _differs(name: str, sizes: list[str]) -> str:
    """The condition that a tensor is not of these sizes, each a TorchScript expression."""
    checks = [f"{name}.dim() != {len(sizes)}"]
    checks += [f"{name}.size({axis}) != {size}" for axis, size in enumerate(sizes)]
    return " or ".join(checks)


def _batch_source(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], graphs: dict[int, str]
) -> str:
    """Pad one full batch to the smallest standard length that fits, run it, slice it back."""
    lines = [_signature("_run_batch", inputs, outputs)]
    if _leads(inputs):
        lines += _routed(inputs, graphs)
    lines += _routed_call(inputs, outputs, graphs)
    sliced = ", ".join(_sliced(f"out{i}", spec) for i, spec in enumerate(outputs))
    lines.append(f"    return ({sliced},)")
    return "\n".join(lines) + "\n"


def _leads(inputs: tuple[InputSpec, ...]) -> dict[str, InputSpec]:
    """Return, for each axis that varies in length, the first input that has it."""
    leads: dict[str, InputSpec] = {}
    for spec in inputs:
        if spec.length_axis is not None:
            leads.setdefault(spec.axes[spec.length_axis], spec)
    return dict(sorted(leads.items()))


def _routed(inputs: tuple[InputSpec, ...], graphs: dict[int, str]) -> list[str]:
    leads = _leads(inputs)
    lines = [f"    {axis} = {spec.name}.size({spec.length_axis})" for axis, spec in leads.items()]
    longest = next(iter(leads)) if len(leads) == 1 else f"max({', '.join(leads)})"
    lines += [f"    longest = {longest}", "    standard = 0"]
    for index, length in enumerate(graphs):
        word = "if" if index == 0 else "elif"
        lines += [f"    {word} longest <= {length}:", f"        standard = {length}"]
    lines += [
        "    else:",
        '        raise ValueError("input has " + str(longest) + " tokens; expected at most '
        f'{max(graphs)}, the largest standard length of this bundle")',
    ]
    return lines + [line for spec in inputs for line in _padded(spec, list(graphs))]


def _padded(spec: InputSpec, lengths: list[int]) -> list[str]:
    """Fill one input up to the standard length on its right, or refuse where that would lie."""
    if spec.length_axis is None:
        return []
    axis = spec.axes[spec.length_axis]
    if spec.pad_value is None:
        return [
            f"    if {axis} != standard:",
            f'        raise ValueError("{spec.name}: expected exactly one of the lengths '
            f'{", ".join(map(str, lengths))}, got " + str({axis}) + "; padding would change the '
            'result of this model")',
        ]
    after = len(spec.axes) - 1 - spec.length_axis
    pads = ", ".join(["0, 0"] * after + [f"0, standard - {axis}"])
    return [f"    {spec.name} = torch.constant_pad_nd({spec.name}, [{pads}], {spec.pad_value})"]


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
        if axis in LENGTH_AXES:
            name = f"{name}.narrow({position}, 0, {axis})"
    return name


def _forward_source(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], batch: int
) -> str:
    """Split the rows into traced batches; a last incomplete batch repeats its first row."""
    lead = inputs[0].name
    lines = [_signature("forward", inputs, outputs), f"    rows = {lead}.size(0)"]
    lines += _shape_checks(inputs)
    arguments = ", ".join(spec.name for spec in inputs)
    lines.append(f"    if rows == {batch}:")
    lines.append(f"        return self._run_batch({arguments})")
    lines += [f"    parts{i}: List[Tensor] = []" for i in range(len(outputs))]
    lines.append(f"    for start in range(0, rows, {batch}):")
    lines.append(f"        count = min({batch}, rows - start)")
    for spec in inputs:
        part = f"part_{spec.name}"
        lines.append(f"        {part} = {spec.name}.narrow(0, start, count)")
        if batch > 1:
            repeats = ", ".join([f"{batch} - count", *["1"] * (len(spec.axes) - 1)])
            lines.append(
                f"        {part} = torch.cat([{part}, {part}.narrow(0, 0, 1).repeat([{repeats}])], "
                "0)"
            )
    results = ", ".join(f"out{i}" for i in range(len(outputs))) + ("," if len(outputs) == 1 else "")
    parts = ", ".join(f"part_{spec.name}" for spec in inputs)
    lines.append(f"        {results} = self._run_batch({parts})")
    lines += [f"        parts{i}.append(out{i}.narrow(0, 0, count))" for i in range(len(outputs))]
    joined = ", ".join(f"torch.cat(parts{i}, 0)" for i in range(len(outputs)))
    lines.append(f"    return ({joined},)")
    return "\n".join(lines) + "\n"


def _shape_checks(inputs: tuple[InputSpec, ...]) -> list[str]:
    """Refuse inputs that do not fit each other: a trace would broadcast or compute nonsense."""
    leads = _leads(inputs)
    lines = []
    for spec in inputs:
        # Asked for before any other size: TorchScript's own error for a missing axis says nothing.
        sizes = ["rows" if axis == "batch" else axis for axis in spec.axes]
        if spec.length_axis is not None:
            lead = leads[spec.axes[spec.length_axis]]
            sizes[spec.length_axis] = f"{lead.name}.size({lead.length_axis})"
        shape = ", ".join("rows" if axis == "batch" else axis for axis in spec.axes)
        lines += [
            f"    if {_differs(spec.name, sizes)} or {spec.name}.numel() == 0:",
            f'        raise ValueError("{spec.name}: expected shape ({shape}), at least 1 of each '
            f'and equal for all inputs, got " + str({spec.name}.size()))',
        ]
    return lines
