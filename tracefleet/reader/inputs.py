"""Convert a caller's arrays, tensors and nested lists to the tensors that a bundle takes.

``Model`` uses it for each call. Nothing is guessed: an unknown name, a missing input, a float, a
negative id and shapes that don't fit together are refused with the input's name.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracefleet.lengths import smallest_fit
from tracefleet.manifest_types import LENGTH_AXES, General, InputSpec

if TYPE_CHECKING:
    import torch

_MASK_OF = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def arrange(
    specs: Sequence[InputSpec],
    lengths: Sequence[int],
    given: Mapping[str, Any],
    general: General | None = None,
) -> list[torch.Tensor]:
    """Return one tensor for each input of the bundle, in its order.

    Args:
        specs: the bundle's inputs.
        lengths: the standard lengths.
        general: where the bundle runs rows at their own length; None: nowhere.
        given: values by name; None: left out. A value is a tensor or an array with the input's
            axes, of integers for ids and of floats for other values; one row may lack its batch
            axis. Ids of shape ``(batch, length)`` may be nested lists whose rows differ in length.

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
        tensors[name], rows[name] = _to_tensor(by_name[name], value)
    sizes = _match_sizes(specs, tensors, lengths, general)
    _mask_padding(by_name, tensors, rows)
    for spec in specs:
        if spec.name not in tensors:
            tensors[spec.name] = _fill(spec, sizes)
    return [tensors[spec.name] for spec in specs]


def _to_tensor(spec: InputSpec, value: Any) -> tuple[torch.Tensor, list[int]]:
    """Return the input as the bundle takes it, and each row's length without padding."""
    import torch

    if isinstance(value, list | tuple) and spec.axes[1:] in (("length",), ("decoder_length",)):
        tensor, lengths = _convert_lists(spec, value)
    else:
        tensor = _convert_array(spec, value)
        if tensor.dim() == len(spec.axes) - 1:
            tensor = tensor.unsqueeze(0)
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
    for value in (int(tensor.min()), int(tensor.max())):
        if not 0 <= value <= most:
            raise ValueError(f"{name}: expected whole numbers from 0 to {most}, got {value}")


def _convert_lists(spec: InputSpec, value: Sequence[Any]) -> tuple[torch.Tensor, list[int]]:
    """Convert nested lists; rows of ids may differ in length, and the shorter ones are padded."""
    if not spec.dtype.startswith("int"):
        tensor = _convert_array(spec, value)
        if tensor.dim() == 1:
            tensor = tensor.unsqueeze(0)
        return tensor, [tensor.shape[1]] * tensor.shape[0]
    table = read_rows(spec.name, value)
    lengths = [len(row) for row in table]
    if len(set(lengths)) > 1 and spec.pad_value is None:
        raise ValueError(
            f"{spec.name}: expected rows of one length, got {lengths}: padding would change the "
            "result of this model. Call it row by row."
        )
    pad = spec.pad_value or 0
    table = [row + [pad] * (max(lengths) - len(row)) for row in table]
    return _to_int_tensor(spec.name, table), lengths


def read_rows(name: str, value: Sequence[Any], *, first: int = 0) -> list[list[int]]:
    """Return nested lists as rows of ints; a flat list is one row.

    Args:
        name: of the input.
        value: ids, or rows of ids.
        first: number of the first row, for messages.

    Raises:
        ValueError: a row is empty or holds something else, or rows and ids are mixed.
    """
    nested = {hasattr(row, "__len__") for row in value}
    if len(nested) > 1:
        raise ValueError(f"{name}: expected a list of ints or a list of rows, got a mixture")
    table = []
    several = nested == {True}
    for place, row in enumerate(value if several else [value], first):
        where = f"{name}: row {place}" if several else name
        table.append(list(row) if set(map(type, row)) == {int} else _read_row(where, row))
    return table


def _read_row(where: str, row: Sequence[Any]) -> list[int]:
    if len(row) == 0:
        raise ValueError(f"{where}: expected at least one token in each row, got an empty row")
    return [_to_int(where, item) for item in row]


def _to_int(name: str, item: Any) -> int:
    if isinstance(item, bool):
        raise ValueError(f"{name}: expected whole numbers, got {item!r}; write 1 or 0")
    try:
        return operator.index(item)
    except TypeError:
        raise ValueError(f"{name}: expected whole numbers, got {item!r}") from None


def _to_int_tensor(name: str, table: list[list[int]]) -> torch.Tensor:
    import torch

    try:
        return torch.tensor(table, dtype=torch.int64)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise ValueError(f"{name}: expected whole numbers of 64 bits, got {error}") from error


def _convert_array(spec: InputSpec, value: Any) -> torch.Tensor:
    """Return an array, a tensor or lists as integers or as reals, whichever the input takes."""
    import torch

    if isinstance(value, torch.Tensor):
        return _convert_tensor(spec, value)
    import numpy as np

    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{spec.name}: expected rows of one length, got {error}") from error
    kinds, dtype = ("iu", "int64") if spec.dtype.startswith("int") else ("f", "float64")
    # Integers in an array are raw pixels or samples that no processor has scaled; in a list, 1 is
    # a common way to write 1.0.
    if dtype == "float64" and isinstance(value, list | tuple):
        kinds = "iuf"
    if array.dtype.kind not in kinds:
        raise _kind_refusal(spec, array.dtype)
    # astype copies: torch warns about arrays that are read-only.
    return torch.from_numpy(array.astype(dtype))


def _convert_tensor(spec: InputSpec, value: torch.Tensor) -> torch.Tensor:
    import torch

    kind = value.dtype
    if spec.dtype.startswith("int"):
        if kind.is_floating_point or kind.is_complex or kind == torch.bool:
            raise _kind_refusal(spec, kind)
        return value.to(torch.int64)
    if not kind.is_floating_point:
        raise _kind_refusal(spec, kind)
    return value.to(torch.float64)


def _kind_refusal(spec: InputSpec, got: Any) -> ValueError:
    if spec.dtype.startswith("int"):
        return ValueError(
            f"{spec.name}: expected integers, got {got}. Convert it yourself if that loses nothing."
        )
    return ValueError(
        f"{spec.name}: expected real numbers as the checkpoint's processor returns them, got "
        f"{got}. Pass raw pixels or samples through the processor first."
    )


def _match_sizes(
    specs: Sequence[InputSpec],
    tensors: Mapping[str, torch.Tensor],
    lengths: Sequence[int],
    general: General | None,
) -> dict[str, int]:
    """Return the size of each named axis, which all inputs that have the axis must share."""
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for spec in specs:
        if spec.name not in tensors:
            continue
        shape = tuple(tensors[spec.name].shape)
        for axis, size in zip(spec.axes, shape, strict=True):
            if axis.isdigit():
                if size != int(axis):
                    raise ValueError(
                        f"{spec.name}: expected shape ({', '.join(spec.axes)}), got {shape}"
                    )
                continue
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"{spec.name}: expected {axis} {sizes[axis]} as in {source[axis]}, got {size}"
                )
            source.setdefault(axis, spec.name)
            if axis in LENGTH_AXES:
                _check_length(spec, lengths, size, general)
    return sizes


def _check_length(
    spec: InputSpec, lengths: Sequence[int], size: int, general: General | None
) -> None:
    smallest_fit(lengths, size)
    runs_unpadded = size in lengths or (general is not None and size >= general.shortest)
    if spec.pad_value is None and not runs_unpadded:
        wanted = f"a length of {', '.join(map(str, lengths))}"
        if general is not None:
            wanted = f"at least {general.shortest}"
        raise ValueError(
            f"{spec.name}: expected {wanted}, got {size}: padding would change the result of this "
            "model"
        )


def _mask_padding(
    by_name: Mapping[str, InputSpec],
    tensors: dict[str, torch.Tensor],
    rows: Mapping[str, list[int]],
) -> None:
    """Mask the padding that was added to shorter rows, so that the model does not attend to it."""
    import torch

    for ids, mask in _MASK_OF.items():
        if len(set(rows.get(ids, [1]))) == 1:
            continue
        real = torch.arange(tensors[ids].shape[1]) < torch.tensor(rows[ids]).unsqueeze(1)
        if mask in tensors:
            if bool((tensors[mask].bool().cpu() & ~real).any()):
                raise ValueError(
                    f"{mask}: expected 0 where the shorter rows of {ids} have no token"
                )
        elif mask in by_name:
            tensors[mask] = real.to(getattr(torch, by_name[mask].dtype))
        elif ids == "input_ids":
            # Only these: a decoder attends to earlier tokens alone, so padding on its right has no
            # effect.
            raise ValueError(
                f"{ids}: expected rows of one length, got {rows[ids]}: this conversion takes no "
                f"{mask} that could hide padding. Call it row by row."
            )


def _fill(spec: InputSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    """Return the value that the model assumes for an input that was left out."""
    import torch

    fixed = {axis: int(axis) for axis in spec.axes if axis.isdigit()}
    known = {**sizes, **fixed}
    if spec.fill_value is None or not known.keys() >= set(spec.axes):
        raise ValueError(f"{spec.name}: this conversion needs it, with axes {spec.axes}; got none")
    shape = [known[axis] for axis in spec.axes]
    return torch.full(shape, spec.fill_value, dtype=getattr(torch, spec.dtype))
