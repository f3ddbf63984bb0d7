"""Archives of TorchScript: what is in one, and how it is loaded without a copy of its weights.

A process that loads an archive the plain way holds its weights in memory of its own. Here they are
views into the file, which all processes on a host share, and which are read when they are needed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: A smaller weight is not worth a page of its own.
_SMALLEST = 4096


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Place of a module's tensor in the archive; offset, size and stride in numbers of elements.

    Attributes:
        name: dotted name of the attribute that holds it.
        key: number of its storage, whose record is ``data/<key>``.
        offset: where the tensor begins in its storage.
        size: its shape.
        stride: its strides.
        elements: how many the storage has.
    """

    name: str
    key: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    elements: int


def read_placements(structure: bytes) -> list[Placement]:
    """Return which storage each attribute of an archive's modules has.

    Args:
        structure: the archive's record ``data.pkl``.

    Raises:
        pickle.UnpicklingError: it names a class that no archive of ours holds.
    """
    return list(_walk("", _StructureUnpickler(io.BytesIO(structure)).load()))


def load(path: str) -> torch.jit.ScriptModule:
    """Load an archive whose weights are views into its file.

    The file must stay as it is: what is published is never written again. Changes of a weight stay
    in this process.

    Args:
        path: of the file, which was checked.

    Raises:
        RuntimeError: torch can't load it.
    """
    import torch

    reader: Any = torch._C.PyTorchFileReader(path)
    try:
        placements = read_placements(reader.get_record("data.pkl"))
    except Exception as error:  # a pickle from outside can raise anything
        raise RuntimeError(f"its structure can't be read: {error}") from error
    large = {f"data/{one.key}": one for one in placements if one.elements >= _SMALLEST}
    module: torch.jit.ScriptModule = torch.jit.load(_copy_without(reader, set(large)))
    file = torch.from_file(path, shared=False, size=Path(path).stat().st_size, dtype=torch.uint8)
    for one in placements:
        record = f"data/{one.key}"
        if record in large:
            _set_view(module, one, file, reader.get_record_offset(record))
    return module


def _copy_without(reader: Any, left_out: set[str]) -> io.BytesIO:
    """Return the archive with some of its records empty."""
    import torch

    copy = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(copy)
    records = reader.get_all_records()
    version = next(name for name in records if name in (".data/version", "version"))
    # Without it the archive claims version 3, and torch "upgrades" today's operators at load.
    writer.set_min_version(int(reader.get_record(version)))
    for record in records:
        if record == version or record.startswith(".data/"):
            continue
        data = b"" if record in left_out else reader.get_record(record)
        writer.write_record(record, data, len(data))
    writer.write_end_of_file()
    copy.seek(0)
    return copy


def _set_view(
    module: torch.jit.ScriptModule, place: Placement, file: torch.Tensor, start: int
) -> None:
    """Give an attribute its part of the file in place of an empty tensor."""
    *owners, name = place.name.split(".")
    holder: Any = module._c
    for owner in owners:
        holder = holder.getattr(owner)
    empty = holder.getattr(name)
    held = file.narrow(0, start, place.elements * empty.element_size()).view(empty.dtype)
    weight = held.as_strided(place.size, place.stride, held.storage_offset() + place.offset)
    holder.setattr(name, weight.requires_grad_(empty.requires_grad))


class _Structure:
    """Any object of the archive's ``data.pkl``: only its attributes matter here."""

    def __setstate__(self, state: Any) -> None:
        # Packed weights come as a tuple: their tensors have no names, and are loaded as they are.
        self.attributes: dict[str, Any] = state if isinstance(state, dict) else {}


class _StructureUnpickler(pickle.Unpickler):
    """Reads which storage belongs to which attribute, and never builds a real object."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_qtensor"):
            return lambda *arguments: arguments
        if module.startswith(("__torch__", "torch")):
            return type(name, (_Structure,), {})
        if module == "collections" and name == "OrderedDict":
            return dict
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in an archive of ours")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _walk(path: str, holder: _Structure) -> Iterator[Placement]:
    for name, value in holder.attributes.items():
        dotted = f"{path}.{name}" if path else name
        if isinstance(value, _Structure):
            yield from _walk(dotted, value)
        elif isinstance(value, tuple) and value and isinstance(value[0], tuple):
            (_, _, key, _, elements), offset, size, stride = value[:4]
            yield Placement(
                name=dotted, key=key, offset=offset, size=size, stride=stride, elements=elements
            )
