"""The TorchScript source of a conversion's public methods, the same for every backend.

A bundle is saved with these methods. Neuron's programs, one file for each length, get them when
they are loaded (``tracefleet.reader.programs``).

TorchScript has no generics over tuples, so the source is written out for the model's own inputs and
outputs. It uses only what libtorch's interpreter runs: C++ and Triton call the same code.
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
    exact = [_write_exact(inputs, outputs, length, batch, graphs[length]) for length in graphs]
    return [
        *exact,
        _write_run_batch(inputs, outputs, graphs),
        _write_forward(inputs, outputs, batch),
    ]


def _write_signature(
    name: str, inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]
) -> str:
    arguments = ", ".join(f"{spec.name}: Tensor" for spec in inputs)
    returned = ", ".join(["Tensor"] * len(outputs))
    return f"def {name}(self, {arguments}) -> Tuple[{returned}]:"


def _write_exact(
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    length: int,
    batch: int,
    graph: str,
) -> str:
    """Write ``forward_<length>``: check every shape, then call the graph."""
    lines = [_write_signature(f"forward_{length}", inputs, outputs)]
    # Without the check a trace computes nonsense on other shapes, and raises nothing.
    for spec in inputs:
        sizes = [str(size) for size in spec.shape(batch=batch, length=length)]
        lines += [
            f"    if {_write_size_test(spec.name, sizes)}:",
            f'        raise ValueError("forward_{length}: {spec.name} expected shape '
            f'({", ".join(sizes)}), got " + str({spec.name}.size()) + "; forward() takes any '
            'shape that fits")',
        ]
    lines.append(f"    return self.{graph}({_list_names(inputs)})")
    return "\n".join(lines) + "\n"


def _write_size_test(name: str, sizes: list[str]) -> str:
    """Write the condition that a tensor does not have these sizes, each an expression."""
    # The number of axes comes first: TorchScript's own error for a missing axis names no input.
    checks = [f"{name}.dim() != {len(sizes)}"]
    checks += [f"{name}.size({axis}) != {size}" for axis, size in enumerate(sizes)]
    return " or ".join(checks)


def _list_names(inputs: tuple[InputSpec, ...]) -> str:
    return ", ".join(spec.name for spec in inputs)


def _write_run_batch(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], graphs: dict[int, str]
) -> str:
    """Write ``_run_batch``: pad one full batch to the smallest length that fits, run, slice."""
    lines = [_write_signature("_run_batch", inputs, outputs)]
    if _find_leads(inputs):
        lines += _choose_length(inputs, graphs)
        for spec in inputs:
            lines += _pad(spec, list(graphs))
    lines += _call_graph(inputs, outputs, graphs)
    sliced = ", ".join(_slice(f"out{i}", spec) for i, spec in enumerate(outputs))
    lines.append(f"    return ({sliced},)")
    return "\n".join(lines) + "\n"


def _find_leads(inputs: tuple[InputSpec, ...]) -> dict[str, InputSpec]:
    """Return, for each axis that varies in length, the first input that has it."""
    leads: dict[str, InputSpec] = {}
    for spec in inputs:
        if spec.length_axis is not None:
            leads.setdefault(spec.axes[spec.length_axis], spec)
    return dict(sorted(leads.items()))


def _choose_length(inputs: tuple[InputSpec, ...], graphs: dict[int, str]) -> list[str]:
    """Write the lines that set ``standard`` to the smallest standard length that fits."""
    leads = _find_leads(inputs)
    lines = [f"    {axis} = {spec.name}.size({spec.length_axis})" for axis, spec in leads.items()]
    longest = next(iter(leads)) if len(leads) == 1 else f"max({', '.join(leads)})"
    lines += [f"    longest = {longest}", "    standard = 0"]
    word = "if"
    for length in graphs:
        lines += [f"    {word} longest <= {length}:", f"        standard = {length}"]
        word = "elif"
    lines += [
        "    else:",
        '        raise ValueError("input has " + str(longest) + " tokens; expected at most '
        f'{max(graphs)}, the largest standard length of this bundle")',
    ]
    return lines


def _pad(spec: InputSpec, lengths: list[int]) -> list[str]:
    """Write the lines that pad one input on its right, or refuse if padding changes the result."""
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
    # constant_pad_nd takes pairs from the last axis backwards.
    after = len(spec.axes) - 1 - spec.length_axis
    pads = ", ".join(["0, 0"] * after + [f"0, standard - {axis}"])
    return [f"    {spec.name} = torch.constant_pad_nd({spec.name}, [{pads}], {spec.pad_value})"]


def _call_graph(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], graphs: dict[int, str]
) -> list[str]:
    """Write the call of the length's graph."""
    results, arguments = _list_results(outputs), _list_names(inputs)
    names = list(graphs.values())
    # A graph that all lengths share is called once: each call would be compiled separately.
    if len(set(names)) == 1:
        return [f"    {results} = self.{names[0]}({arguments})"]
    lines = []
    word = "if"
    for length, graph in list(graphs.items())[:-1]:
        lines += [
            f"    {word} standard == {length}:",
            f"        {results} = self.{graph}({arguments})",
        ]
        word = "elif"
    return [*lines, "    else:", f"        {results} = self.{names[-1]}({arguments})"]


def _list_results(outputs: tuple[OutputSpec, ...]) -> str:
    names = [f"out{i}" for i in range(len(outputs))]
    # The comma unpacks a tuple of one.
    return f"{names[0]}," if len(names) == 1 else ", ".join(names)


def _slice(name: str, spec: OutputSpec) -> str:
    for position, axis in enumerate(spec.axes):
        if axis in LENGTH_AXES:
            name = f"{name}.narrow({position}, 0, {axis})"
    return name


def _write_forward(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], batch: int
) -> str:
    """Write ``forward``: split the rows into traced batches and join the results."""
    count = range(len(outputs))
    lines = [_write_signature("forward", inputs, outputs), f"    rows = {inputs[0].name}.size(0)"]
    lines += _check_shapes(inputs)
    lines.append(f"    if rows == {batch}:")
    lines.append(f"        return self._run_batch({_list_names(inputs)})")
    lines += [f"    parts{i}: List[Tensor] = []" for i in count]
    lines.append(f"    for start in range(0, rows, {batch}):")
    lines.append(f"        count = min({batch}, rows - start)")
    for spec in inputs:
        lines += _take_rows(spec, batch)
    parts = ", ".join(f"part_{spec.name}" for spec in inputs)
    lines.append(f"        {_list_results(outputs)} = self._run_batch({parts})")
    lines += [f"        parts{i}.append(out{i}.narrow(0, 0, count))" for i in count]
    joined = ", ".join(f"torch.cat(parts{i}, 0)" for i in count)
    lines.append(f"    return ({joined},)")
    return "\n".join(lines) + "\n"


def _take_rows(spec: InputSpec, batch: int) -> list[str]:
    """Write the lines that take one batch of an input; an incomplete one repeats its first row."""
    part = f"part_{spec.name}"
    lines = [f"        {part} = {spec.name}.narrow(0, start, count)"]
    if batch > 1:
        repeats = ", ".join([f"{batch} - count", *["1"] * (len(spec.axes) - 1)])
        lines.append(
            f"        {part} = torch.cat([{part}, {part}.narrow(0, 0, 1).repeat([{repeats}])], 0)"
        )
    return lines


def _check_shapes(inputs: tuple[InputSpec, ...]) -> list[str]:
    """Write the lines that refuse inputs whose shapes differ: a trace might broadcast them."""
    leads = _find_leads(inputs)
    lines = []
    for spec in inputs:
        sizes = ["rows", *spec.axes[1:]]
        shape = ", ".join(sizes)
        if spec.length_axis is not None:
            lead = leads[spec.axes[spec.length_axis]]
            sizes[spec.length_axis] = f"{lead.name}.size({lead.length_axis})"
        lines += [
            f"    if {_write_size_test(spec.name, sizes)} or {spec.name}.numel() == 0:",
            f'        raise ValueError("{spec.name}: expected shape ({shape}), at least 1 of each '
            f'and equal for all inputs, got " + str({spec.name}.size()))',
        ]
    return lines
