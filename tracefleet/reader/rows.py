"""Rows of unequal lengths: which of them run together, and how their results are put back in order.

Rows that run together are padded to the longest of them, and padding costs as much as tokens. So
rows are sorted by length and run in groups of nearly the same length: for mixed texts about four
times as fast as one padded call (`make bench-serve`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracefleet.lengths import smallest_fit
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import InputSpec, OutputSpec
from tracefleet.reader.inputs import read_rows
from tracefleet.reader.left_padding import MASK, has_differing, refuse_left_padded_rows
from tracefleet.reader.outputs import Run

if TYPE_CHECKING:
    import torch

#: Most tokens of a group where the bundle has no budget of its own; see ``General.tokens``.
_TOKENS = 1024

#: Values of each input that was given, one list of tokens for each row.
Table = dict[str, list[list[int]]]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that run together.

    Attributes:
        rows: their positions in the table.
        inputs: their values, as ``arrange`` takes them.
    """

    rows: list[int]
    inputs: Table


def read_table(manifest: Manifest, given: Mapping[str, Any]) -> Table | None:
    """Return ids in nested lists whose rows differ in length; None: they are anything else.

    Raises:
        ValueError: a row is empty, holds no whole numbers, or inputs have unequal numbers of rows.
        InputTooLongError: a row is longer than the largest standard length.
    """
    specs = {spec.name: spec for spec in manifest.inputs}
    present = {name: value for name, value in given.items() if value is not None}
    if not all(name in specs and _is_nested(specs[name], v) for name, v in present.items()):
        return None
    if not any(len(set(map(len, value))) > 1 for value in present.values()):
        return None
    table = {}
    for name, value in present.items():
        table[name] = read_rows(name, [_as_list(row) for row in value])
    lead = next(iter(table))
    for name, rows in table.items():
        if len(rows) != len(table[lead]):
            raise ValueError(
                f"{name}: expected batch {len(table[lead])} as in {lead}, got {len(rows)}"
            )
    _check_table(manifest, table, 0)
    return table


def collect(manifest: Manifest, rows: Sequence[Any], *, first: int = 0) -> Table:
    """Return rows that came one by one as a table.

    Args:
        manifest: of the conversion.
        rows: ids of one row each, or a mapping of input names to one row's ids.
        first: number of the first row, for messages.

    Raises:
        InputTooLongError: a row is longer than the largest standard length.
        ValueError: a row is empty, holds no whole numbers, or has other inputs than the first one.
    """
    lead = manifest.inputs[0].name
    named = [_name_values(row, lead) for row in rows]
    for place, row in enumerate(named, first):
        if row.keys() != named[0].keys():
            raise ValueError(
                f"row {place}: expected {sorted(named[0])} as in the rows before, got {sorted(row)}"
            )
    _check_inputs(manifest, named[0])
    table = {}
    for name in named[0]:
        values = [_as_list(row[name]) for row in named]
        if not all(isinstance(value, list | tuple) for value in values):
            raise ValueError(f"{name}: expected a list of ids for each row, got other values")
        table[name] = read_rows(name, values, first=first)
    _check_table(manifest, table, first)
    return table


def _check_inputs(manifest: Manifest, names: Iterable[str]) -> None:
    """Require inputs of ids, each a list for one row."""
    specs = {spec.name: spec for spec in manifest.inputs}
    unknown = sorted(set(names) - specs.keys())
    if unknown:
        raise ValueError(f"unknown inputs {unknown}; this conversion takes {list(specs)}")
    for name in names:
        if len(specs[name].axes) != 2 or not specs[name].dtype.startswith("int"):
            raise ValueError(f"{name}: expected an input of ids; call the model itself for others")


def describe_run(manifest: Manifest, tensors: Sequence[torch.Tensor], seconds: float) -> Run:
    """Return what a call of ``forward`` came to."""
    by_name = dict(zip((spec.name for spec in manifest.inputs), tensors, strict=True))
    lead = tensors[0]
    rows, axis = lead.shape[0], manifest.inputs[0].length_axis
    if axis is None:
        return Run(rows=rows, tokens=rows, padded=0.0, seconds=seconds)
    size = lead.shape[axis]
    texts = rows * math.prod(lead.shape[1:axis])
    tokens = texts * size
    mask = by_name.get("attention_mask")
    if mask is not None:
        tokens = int(mask.sum())
    batch = 1 if manifest.general is not None else manifest.variant.batch
    computed = math.ceil(rows / batch) * batch * (texts // rows) * _cost(manifest, size)
    return Run(rows=rows, tokens=tokens, padded=1 - tokens / computed, seconds=seconds)


def group(manifest: Manifest, table: Table, *, tokens: int | None) -> Iterator[Group]:
    """Yield the groups that a table is run in, shortest rows first.

    Args:
        manifest: of the conversion.
        table: rows of each input.
        tokens: most tokens of a group, padding included, but for a single row; None: the default.
    """
    costs = [_cost(manifest, longest) for longest in _measure(table)]
    alike, most, budget = not _can_pad(manifest, table), _count_rows(manifest), tokens or _TOKENS
    current: list[int] = []
    for row in sorted(range(len(costs)), key=lambda row: (costs[row], _shape(table, row))):
        full = len(current) == most or (len(current) + 1) * costs[row] > budget
        differs = alike and current and _shape(table, row) != _shape(table, current[0])
        if current and (full or differs):
            yield _take(table, current)
            current = []
        current.append(row)
    yield _take(table, current)


def join(
    manifest: Manifest, table: Table, results: Sequence[tuple[Group, Sequence[torch.Tensor]]]
) -> list[torch.Tensor]:
    """Put the results of all groups back in the order of the rows; shorter ones end in zeros."""
    rows: dict[int, list[torch.Tensor]] = {}
    for group, tensors in results:
        rows.update(split(manifest, group, tensors))
    in_order = [rows[row] for row in range(len(rows))]
    return [
        _stack(spec, parts)
        for spec, parts in zip(manifest.outputs, zip(*in_order, strict=True), strict=True)
    ]


def split(
    manifest: Manifest, group: Group, tensors: Sequence[torch.Tensor]
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Yield each row of a group with its own results, without batch axis and padding."""
    for place, row in enumerate(group.rows):
        own = []
        for spec, tensor in zip(manifest.outputs, tensors, strict=True):
            result = tensor[place]
            if spec.length_axis is not None:
                size = _length_of(manifest.inputs, group, place, spec.axes[spec.length_axis])
                # Arrays of either library: Triton's front has no torch.
                result = result[(slice(None),) * (spec.length_axis - 1) + (slice(size),)]
            own.append(result)
        yield row, own


def _name_values(row: Any, lead: str) -> Mapping[str, Any]:
    return row if isinstance(row, Mapping) else {lead: row}


def _as_list(row: Any) -> Any:
    """Return one row of an array as a list; what is none is refused where rows are read."""
    return row.tolist() if hasattr(row, "tolist") else row


def _is_nested(spec: InputSpec, value: Any) -> bool:
    if not spec.dtype.startswith("int") or len(spec.axes) != 2 or spec.length_axis is None:
        return False
    return isinstance(value, list | tuple) and all(map(_is_row, value))


def _is_row(value: Any) -> bool:
    """Tell whether a value is one row of numbers: a list, or an array or tensor of one axis."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", None) == 1


def _check_table(manifest: Manifest, table: Table, first: int) -> None:
    """Require rows that fit, and one length in all inputs of a row that share an axis."""
    longest = _measure(table)
    for place, size in enumerate(longest, first):
        smallest_fit(manifest.lengths, size, row=place)
    specs = {spec.name: spec for spec in manifest.inputs}
    leads: dict[str, str] = {}
    for name, rows in table.items():
        lead = leads.setdefault(specs[name].axes[1], name)
        for place, (row, other) in enumerate(zip(rows, table[lead], strict=True), first):
            if len(row) != len(other):
                wanted = f"{len(other)} values as in {lead}"
                raise ValueError(f"{name}: row {place}: expected {wanted}, got {len(row)}")
    refuse_left_padded_rows(manifest, table, longest, first)


def _measure(table: Table) -> list[int]:
    """Return each row's length: that of its longest input."""
    return [max(map(len, row)) for row in zip(*table.values(), strict=True)]


def _cost(manifest: Manifest, tokens: int) -> int:
    """Return how many positions a row is computed with, if it runs alone."""
    standard = smallest_fit(manifest.lengths, tokens)
    general = manifest.general
    return tokens if general is not None and tokens >= general.shortest else standard


def _can_pad(manifest: Manifest, table: Table) -> bool:
    """Tell whether rows of other lengths may run together, their padding hidden by a mask."""
    has_mask = any(spec.name == MASK for spec in manifest.inputs)
    if not has_mask or has_differing(manifest, table):
        return False
    return all(spec.pad_value is not None for spec in manifest.inputs if spec.name in table)


def _count_rows(manifest: Manifest) -> int | None:
    return None if manifest.general is None else manifest.general.rows


def _shape(table: Table, row: int) -> list[int]:
    return [len(rows[row]) for rows in table.values()]


def _take(table: Table, rows: list[int]) -> Group:
    inputs = {}
    for name, values in table.items():
        inputs[name] = [values[row] for row in rows]
    return Group(rows=rows, inputs=inputs)


def _stack(spec: OutputSpec, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join single rows of an output; those with fewer tokens are filled up with zeros."""
    import torch

    if spec.length_axis is None:
        return torch.stack(list(rows))
    axis = spec.length_axis - 1
    shape = list(rows[0].shape)
    shape[axis] = max(row.shape[axis] for row in rows)
    stacked = rows[0].new_zeros(len(rows), *shape)
    for place, row in enumerate(rows):
        stacked[place].narrow(axis, 0, row.shape[axis]).copy_(row)
    return stacked


def _length_of(specs: Sequence[InputSpec], group: Group, place: int, axis: str) -> int:
    (name, *_) = (spec.name for spec in specs if axis in spec.axes and spec.name in group.inputs)
    return len(group.inputs[name][place])
