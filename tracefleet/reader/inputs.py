"""From what a caller has (arrays, tensors, nested lists) to the tensors a bundle takes.

Called by ``Model`` for each call. Nothing is guessed: an unknown name, a missing input, a float, a
negative id, two shapes that don't fit together are refused with the input's name.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracefleet.lengths import smallest_fit
from tracefleet.manifest_types import LENGTH_AXES, InputSpec

if TYPE_CHECKING:
    import torch

_MASK_OF = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def arrange(
    specs: Sequence[InputSpec], lengths: Sequence[int], given: Mapping[str, Any]
) -> list[torch.Tensor]:
    """Return one tensor for each input of the bundle, in its order.

    Args:
        specs: the bundle's inputs.
        lengths: the standard lengths.
        given: by name: tensors or arrays of the input's axes, integers for ids and floats for
            values; one row may lack its batch axis. Ids of shape ``(batch, length)`` may be
            nested lists whose rows differ in length. None: left out.

    Raises:
        ValueError: unknown name, missing input, wrong type or shape, empty, negative id.
        InputTooLongError: more tokens than the largest standard length.
    """
    by_name = {spec.name: spec for spec in specs}
    present = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(present.keys() - by_name.keys())
    if unknown:
        raise ValueError(f"unknown inputs {unknown}; this conversion takes {list(by_name)}")
    tensors: dict[str, torch.Tensor] = {}
    rows: dict[str, list[int]] = {}
    for name, value in present.items():
        tensors[name], rows[name] = _tensor_of(by_name[name], value)
    sizes = _sizes(specs, tensors, lengths)
    _mask_padding(by_name, tensors, rows)
    return [_filled(spec, tensors, sizes) for spec in specs]


def _tensor_of(spec: InputSpec, value: Any) -> tuple[torch.Tensor, list[int]]:
    """Return the input as the bundle takes it, and the real length of each row."""
    import torch

    if isinstance(value, list | tuple) and spec.axes[1:] in (("length",), ("decoder_length",)):
        tensor, lengths = _from_rows(spec, value)
    else:
        tensor = _from_array(spec, value)
        tensor = tensor.unsqueeze(0) if tensor.dim() == len(spec.axes) - 1 else tensor
        if tensor.dim() != len(spec.axes):
            raise ValueError(
                f"{spec.name}: expected shape ({', '.join(spec.axes)}), or one row without its "
                f"batch axis, got {tuple(tensor.shape)}"
            )
        size = 1 if spec.length_axis is None else tensor.shape[spec.length_axis]
        lengths = [size] * tensor.shape[0]
    if tensor.numel() == 0:
        raise ValueError(
            f"{spec.name}: expected at least one row and one token, got shape {tuple(tensor.shape)}"
        )
    dtype = getattr(torch, spec.dtype)
    if not dtype.is_floating_point:
        _check_range(spec.name, tensor, torch.iinfo(dtype).max)
    return tensor.to(dtype), lengths


def _check_range(name: str, tensor: torch.Tensor, most: int) -> None:
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high > most:
        raise ValueError(
            f"{name}: expected whole numbers from 0 to {most}, got {low if low < 0 else high}"
        )


def _from_rows(spec: InputSpec, value: Sequence[Any]) -> tuple[torch.Tensor, list[int]]:
    """Nested lists whose rows may differ in length: the shorter ones are padded."""
    if not spec.dtype.startswith("int"):
        return _from_lists(spec, value)
    table = _table(spec.name, value)
    lengths = [len(row) for row in table]
    if len(set(lengths)) > 1 and spec.pad_value is None:
        raise ValueError(
            f"{spec.name}: expected rows of one length, got {lengths}: padding would change the "
            "result of this model. Call it row by row."
        )
    pad = spec.pad_value or 0
    table = [row + [pad] * (max(lengths) - len(row)) for row in table]
    return _int_tensor(spec.name, table), lengths


def _from_lists(spec: InputSpec, value: Sequence[Any]) -> tuple[torch.Tensor, list[int]]:
    tensor = _from_array(spec, value)
    tensor = tensor.unsqueeze(0) if tensor.dim() == 1 else tensor
    return tensor, [tensor.shape[1]] * tensor.shape[0]


def _table(name: str, value: Sequence[Any]) -> list[list[int]]:
    """Return nested lists as rows of ints; a flat list is one row."""
    nested = [hasattr(row, "__len__") for row in value]
    if nested and any(nested) != all(nested):
        raise ValueError(f"{name}: expected a list of ints or a list of rows, got a mixture")
    table = [[_int(name, item) for item in row] for row in (value if any(nested) else [value])]
    if not all(table):
        raise ValueError(f"{name}: expected at least one token in each row, got an empty row")
    return table


def _int(name: str, item: Any) -> int:
    if isinstance(item, bool):
        raise ValueError(f"{name}: expected whole numbers, got {item!r}; write 1 or 0")
    try:
        return operator.index(item)
    except TypeError:
        raise ValueError(f"{name}: expected whole numbers, got {item!r}") from None


def _int_tensor(name: str, table: list[list[int]]) -> torch.Tensor:
    import torch

    try:
        return torch.tensor(table, dtype=torch.int64)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise ValueError(f"{name}: expected whole numbers of 64 bits, got {error}") from error


def _from_array(spec: InputSpec, value: Any) -> torch.Tensor:
    """Return a tensor or array as the input's kind of number, refusing every other kind.

    Integers are no reals here: they would be raw pixels or samples, which no processor has scaled.
    In a list, 1 may stand for 1.0.
    """
    import torch

    whole = spec.dtype.startswith("int")
    if isinstance(value, torch.Tensor):
        kind = value.dtype
        integer = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
        if not (integer if whole else kind.is_floating_point):
            raise _wrong_kind(spec, kind)
        return value.to(torch.int64 if whole else torch.float64)
    import numpy as np

    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{spec.name}: expected rows of one length, got {error}") from error
    kinds = "iu" if whole else "iuf" if isinstance(value, list | tuple) else "f"
    if array.dtype.kind not in kinds:
        raise _wrong_kind(spec, array.dtype)
    # A copy of its own: torch warns about arrays that are read-only.
    return torch.from_numpy(array.astype("int64" if whole else "float64"))


def _wrong_kind(spec: InputSpec, got: Any) -> ValueError:
    if spec.dtype.startswith("int"):
        return ValueError(
            f"{spec.name}: expected integers, got {got}. Convert it yourself if that loses nothing."
        )
    return ValueError(
        f"{spec.name}: expected real numbers as the checkpoint's processor makes them, got {got}. "
        "Give raw pixels or samples to the processor first."
    )


def _sizes(
    specs: Sequence[InputSpec], tensors: Mapping[str, torch.Tensor], lengths: Sequence[int]
) -> dict[str, int]:
    """Return the size of each named axis, which all inputs that have the axis must share."""
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for spec in specs:
        if spec.name not in tensors:
            continue
        for axis, size in zip(spec.axes, tensors[spec.name].shape, strict=True):
            if axis.isdigit():
                if size != int(axis):
                    raise ValueError(
                        f"{spec.name}: expected shape ({', '.join(spec.axes)}), got "
                        f"{tuple(tensors[spec.name].shape)}"
                    )
                continue
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"{spec.name}: expected {axis} {sizes[axis]} as in {source[axis]}, got {size}"
                )
            source.setdefault(axis, spec.name)
            if axis in LENGTH_AXES:
                _check_length(spec, lengths, size)
    return sizes


def _check_length(spec: InputSpec, lengths: Sequence[int], size: int) -> None:
    smallest_fit(lengths, size)
    if spec.pad_value is None and size not in lengths:
        raise ValueError(
            f"{spec.name}: expected a length of {', '.join(map(str, lengths))}, got {size}: "
            "padding would change the result of this model"
        )


def _mask_padding(
    by_name: Mapping[str, InputSpec],
    tensors: dict[str, torch.Tensor],
    rows: Mapping[str, list[int]],
) -> None:
    """Hide what ragged rows were padded with: the caller never saw it, nor may the model."""
    import torch

    for ids, mask in _MASK_OF.items():
        if len(set(rows.get(ids, [1]))) == 1:
            continue
        real = torch.arange(tensors[ids].shape[1]) < torch.tensor(rows[ids]).unsqueeze(1)
        if mask in tensors:
            if bool((tensors[mask].bool() & ~real).any()):
                raise ValueError(
                    f"{mask}: expected 0 where the shorter rows of {ids} have no token"
                )
        elif mask in by_name:
            tensors[mask] = real.to(getattr(torch, by_name[mask].dtype))
        elif ids == "input_ids":
            # A decoder looks back only, so that what is padded on its right changes nothing.
            raise ValueError(
                f"{ids}: expected rows of one length, got {rows[ids]}: this conversion takes no "
                f"{mask} that could hide padding. Call it row by row."
            )


def _filled(
    spec: InputSpec, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> torch.Tensor:
    import torch

    if spec.name in tensors:
        return tensors[spec.name]
    sizes = {**sizes, **{axis: int(axis) for axis in spec.axes if axis.isdigit()}}
    unknown = [axis for axis in spec.axes if axis not in sizes]
    if spec.fill_value is None or unknown:
        raise ValueError(f"{spec.name}: this conversion needs it, with axes {spec.axes}; got none")
    shape = [sizes[axis] for axis in spec.axes]
    return torch.full(shape, spec.fill_value, dtype=getattr(torch, spec.dtype))
