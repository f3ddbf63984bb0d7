"""The TorchScript source of a conversion's public methods, the same for every backend.

A bundle is saved with these methods. Neuron's programs, one file for each length, get them when
they are loaded (``tracefleet.reader.programs``).

TorchScript has no generics over tuples, so the source is written out for the model's own inputs and
outputs. It uses only what libtorch's interpreter runs: C++ and Triton call the same code.
"""

from __future__ import annotations

from tracefleet.manifest_types import (
    LENGTH_AXES,
    General,
    InputSpec,
    OutputSpec,
)
from tracefleet.reader.general import PADDING, write_general
from tracefleet.reader.script import (
    find_leads,
    list_names,
    list_results,
    write_longest,
    write_refusal,
    write_shape_checks,
    write_signature,
    write_size_test,
)


def dispatcher_source(
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    graphs: dict[int, str],
    batch: int,
    general: General | None = None,
) -> list[str]:
    """Return the methods to define, in order: ``forward_<length>``, helpers, ``forward``.

    Args:
        inputs: the arguments: a batch axis first, at most one length axis, fixed sizes elsewhere.
        outputs: the returned tuple's elements.
        graphs: standard length, ascending -> name of the traced method that serves it.
        batch: rows in one traced call.
        general: where one graph was proved for every shape; None: rows are padded to a standard
            length and run one traced batch at a time.
    """
    exact = [_write_exact(inputs, outputs, length, batch, graphs[length]) for length in graphs]
    if general is None:
        return [*exact, *_write_padding("forward", inputs, outputs, graphs, batch)]
    padding = []
    if general.shortest > 1:
        padding = _write_padding(PADDING, inputs, outputs, graphs, batch)
    return [*exact, *padding, write_general(inputs, outputs, graphs, general)]


def _write_padding(
    name: str,
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    graphs: dict[int, str],
    batch: int,
) -> list[str]:
    """Write ``_run_batch``, and the method that runs any rows by it."""
    return [
        _write_run_batch(inputs, outputs, graphs),
        _write_forward(name, inputs, outputs, batch),
    ]


def _write_exact(
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    length: int,
    batch: int,
    graph: str,
) -> str:
    """Write ``forward_<length>``: check every shape, then call the graph."""
    lines = [write_signature(f"forward_{length}", inputs, outputs)]
    # Without the check a trace computes nonsense on other shapes, and raises nothing.
    for spec in inputs:
        sizes = [str(size) for size in spec.shape(batch=batch, length=length)]
        lines += [
            f"    if {write_size_test(spec.name, sizes)}:",
            f'        raise ValueError("forward_{length}: {spec.name} expected shape '
            f'({", ".join(sizes)}), got " + str({spec.name}.size()) + "; forward() takes any '
            'shape that fits")',
        ]
    lines.append(f"    return self.{graph}({list_names(inputs)})")
    return "\n".join(lines) + "\n"


def _write_run_batch(
    inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], graphs: dict[int, str]
) -> str:
    """Write ``_run_batch``: pad one full batch to the smallest length that fits, run, slice."""
    lines = [write_signature("_run_batch", inputs, outputs)]
    if find_leads(inputs):
        lines += _choose_length(inputs, graphs)
        for spec in inputs:
            lines += _pad(spec, list(graphs))
    lines += _call_graph(inputs, outputs, graphs)
    sliced = ", ".join(_slice(f"out{i}", spec) for i, spec in enumerate(outputs))
    lines.append(f"    return ({sliced},)")
    return "\n".join(lines) + "\n"


def _choose_length(inputs: tuple[InputSpec, ...], graphs: dict[int, str]) -> list[str]:
    """Write the lines that set ``standard`` to the smallest standard length that fits."""
    lines = [*write_longest(inputs), "    standard = 0"]
    word = "if"
    for length in graphs:
        lines += [f"    {word} longest <= {length}:", f"        standard = {length}"]
        word = "elif"
    return [*lines, "    else:", write_refusal(graphs)]


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
    results, arguments = list_results(outputs), list_names(inputs)
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


def _slice(name: str, spec: OutputSpec) -> str:
    for position, axis in enumerate(spec.axes):
        if axis in LENGTH_AXES:
            name = f"{name}.narrow({position}, 0, {axis})"
    return name


def _write_forward(
    name: str, inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...], batch: int
) -> str:
    """Write the method that splits the rows into traced batches and joins the results."""
    count = range(len(outputs))
    lines = [write_signature(name, inputs, outputs), f"    rows = {inputs[0].name}.size(0)"]
    lines += write_shape_checks(inputs)
    lines.append(f"    if rows == {batch}:")
    lines.append(f"        return self._run_batch({list_names(inputs)})")
    lines += [f"    parts{i}: List[Tensor] = []" for i in count]
    lines.append(f"    for start in range(0, rows, {batch}):")
    lines.append(f"        count = min({batch}, rows - start)")
    for spec in inputs:
        lines += _take_rows(spec, batch)
    parts = ", ".join(f"part_{spec.name}" for spec in inputs)
    lines.append(f"        {list_results(outputs)} = self._run_batch({parts})")
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
