"""``forward`` of a graph that was proved for every shape: calls run as they are, in few runs."""

from __future__ import annotations

import math

from tracefleet.manifest_types import General, InputSpec, OutputSpec
from tracefleet.reader.script import (
    find_leads,
    list_names,
    list_results,
    write_longest,
    write_refusal,
    write_shape_checks,
    write_signature,
)

#: Attribute of a general bundle: most tokens in one run. Who has more memory may raise it.
BUDGET = "token_budget"
#: Method that pads, for rows that are shorter than any that was proved.
PADDING = "_forward_padded"


def write_general(
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    graphs: dict[int, str],
    general: General,
) -> str:
    """Write ``forward`` of a general graph: one run, or several with an equal share of the rows."""
    count, names = range(len(outputs)), list_names(inputs)
    graph = next(iter(graphs.values()))
    lines = [write_signature("forward", inputs, outputs), f"    rows = {inputs[0].name}.size(0)"]
    lines += write_shape_checks(inputs)
    lines += _choose_rows(inputs, graphs, general)
    lines += [
        "    if rows <= most:",
        f"        return self.{graph}({names})",
        "    runs = (rows + most - 1) // most",
        "    share = (rows + runs - 1) // runs",
    ]
    lines += [f"    parts{i}: List[Tensor] = []" for i in count]
    parts = ", ".join(f"{spec.name}.narrow(0, start, count)" for spec in inputs)
    lines += [
        "    for start in range(0, rows, share):",
        "        count = min(share, rows - start)",
        f"        {list_results(outputs)} = self.{graph}({parts})",
    ]
    lines += [f"        parts{i}.append(out{i})" for i in count]
    joined = ", ".join(f"torch.cat(parts{i}, 0)" for i in count)
    lines.append(f"    return ({joined},)")
    return "\n".join(lines) + "\n"


def _choose_rows(
    inputs: tuple[InputSpec, ...], graphs: dict[int, str], general: General
) -> list[str]:
    """Write the lines that set ``most``, the rows of one run; they refuse what is too long."""
    if not find_leads(inputs):
        return [f"    most = {general.rows}"]
    lines = [*write_longest(inputs), f"    if longest > {max(graphs)}:", write_refusal(graphs)]
    if general.shortest > 1:
        lines.append(f"    if longest < {general.shortest}:")
        lines.append(f"        return self.{PADDING}({list_names(inputs)})")
    # Each choice of a row is as long as the row.
    each = f"longest * {_count_choices(inputs)}"
    lines.append(f"    most = min({general.rows}, max(1, self.{BUDGET} // ({each})))")
    return lines


def _count_choices(inputs: tuple[InputSpec, ...]) -> int:
    """Return how many texts a row holds: the fixed sizes before its varying axis."""
    leads = find_leads(inputs)
    lead = next(iter(leads.values()))
    return math.prod(int(axis) for axis in lead.axes[1 : lead.length_axis])
