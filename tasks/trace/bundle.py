"""One TorchScript archive for all standard lengths, the weights in it once.

The bundle's contract with consumers (Python, C++, Triton):

* ``forward(<inputs>)``: any number of rows, any length up to the largest standard length. It
  routes to the smallest standard length that fits, pads on the right, runs the traced batch as
  often as the rows need, and slices the outputs back.
* ``forward_<length>(<inputs>)``: exactly the traced batch and length; anything else raises.

The archive is written in one streaming pass: graph and structure come from a skeleton whose
weights are on the meta device, each tensor's bytes from the live model, and the digest is computed
on what is written. Source paths of this machine (``.debug_pkl``) and example inputs are left out;
the rest is the same for the same request in every process, and so is the digest.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tasks.errors import TraceError, first_line
from tracefleet.manifest import BUNDLE_PATH
from tracefleet.manifest_types import InputSpec, OutputSpec

if TYPE_CHECKING:
    import torch

_LEFT_OUT = ("traced_inputs", ".data/", "byteorder", "version")
_ON_META, _ON_CPU = b"X\x04\x00\x00\x00meta", b"X\x03\x00\x00\x00cpu"


@dataclass(frozen=True, kw_only=True)
class TracedFile:
    """A TorchScript archive on disk: a bundle, or the program of one length.

    Attributes:
        path: Path on this machine.
        size: Size in bytes.
        sha256: Digest of the bytes that were written.
        weight_bytes: Size of the weights in it.
        published: Path in the conversion's folder.
    """

    path: Path
    size: int
    sha256: str
    weight_bytes: int
    published: str = BUNDLE_PATH


def write_bundle(
    traced: torch.jit.ScriptModule,
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    graphs: dict[int, str],
    batch: int,
    target: Path,
) -> TracedFile:
    """Give a traced module its public methods and write it to ``target``.

    The module's weights are on the meta device afterwards: it can't be run any more.

    Args:
        traced: Recorded module.
        inputs: Arguments of every method, in order.
        outputs: Elements of the returned tuple.
        graphs: Name of the traced method that serves each standard length, ascending.
        batch: Rows in one traced call.
        target: File to write.

    Raises:
        TraceError: torch.jit can't save the module (a Python function in its graph, for one).
    """
    from tracefleet.reader.dispatcher import dispatcher_source

    for source in dispatcher_source(inputs, outputs, graphs, batch):
        traced.define(source)
    weights = {
        **dict(traced.named_parameters(remove_duplicate=False)),
        **dict(traced.named_buffers(remove_duplicate=False)),
    }
    traced.to("meta")
    skeleton = io.BytesIO()
    try:
        import torch

        torch.jit.save(traced, skeleton)
    except RuntimeError as error:
        raise TraceError(
            f"expected torch.jit to save the traced module, got: {first_line(error)}. "
            "The architecture calls a Python autograd function that TorchScript can't store."
        ) from error
    skeleton.seek(0)
    return _compose(skeleton, weights, target)


class _HashingFile:
    """A write-only stream with the digest and size of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._file.write(data)
        self.size += len(data)
        return len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _compose(skeleton: IO[bytes], weights: dict[str, torch.Tensor], target: Path) -> TracedFile:
    """Copy the skeleton's records, with each weight's bytes in place of its empty record."""
    import torch

    reader = torch._C.PyTorchFileReader(skeleton)
    structure = reader.get_record("data.pkl")
    layouts = _storage_layouts(structure)
    # The record's name depends on the version itself.
    record = next(name for name in reader.get_all_records() if name in (".data/version", "version"))
    version = int(reader.get_record(record))
    weight_bytes = 0
    with target.open("wb") as file:
        stream = _HashingFile(file)
        writer = torch._C.PyTorchFileWriter(stream)  # type: ignore[call-overload]
        # Without it the archive claims version 3, and torch "upgrades" today's operators at load.
        writer.set_min_version(version)
        for record in reader.get_all_records():
            if record.startswith(_LEFT_OUT) or record.endswith(".debug_pkl"):
                continue
            layout = layouts.get(record.removeprefix("data/"))
            if record.startswith("data/") and layout is not None:
                held = layout.bytes_of(weights[layout.name])
                writer.write_record(record, held.data_ptr(), held.numel())
                weight_bytes += held.numel()
                continue
            data = reader.get_record(record)
            if record == "data.pkl":
                data = data.replace(_ON_META, _ON_CPU)
            elif record.startswith("data/"):  # of packed weights, which never were on meta
                weight_bytes += len(data)
            writer.write_record(record, data, len(data))
        writer.write_end_of_file()
    return TracedFile(
        path=target, size=stream.size, sha256=stream.sha256, weight_bytes=weight_bytes
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Place of a named tensor in its storage, in numbers of elements."""

    name: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    elements: int

    def bytes_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the storage's bytes, shape ``(n,)`` uint8; copied only where they must move."""
        import torch

        flat = tensor.detach()
        if not (flat.is_contiguous() and flat.numel() == self.elements and self.offset == 0):
            whole = torch.zeros(self.elements, dtype=tensor.dtype)
            whole.as_strided(self.size, self.stride, self.offset).copy_(flat)
            flat = whole
        return flat.reshape(-1).view(torch.uint8)


class _Structure:
    """Any object of the archive's ``data.pkl``: only its attributes matter here."""

    def __setstate__(self, state: Any) -> None:
        # Packed weights come as a tuple: their tensors have no names, and are written as they are.
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


def _storage_layouts(structure: bytes) -> dict[str, _Layout]:
    """Map each storage record of ``data.pkl`` to the attribute that holds it."""
    root = _StructureUnpickler(io.BytesIO(structure)).load()
    layouts: dict[str, _Layout] = {}
    pending: list[tuple[str, Any]] = [("", root)]
    while pending:
        path, holder = pending.pop()
        for name, value in holder.attributes.items():
            dotted = f"{path}.{name}" if path else name
            if isinstance(value, _Structure):
                pending.append((dotted, value))
            elif isinstance(value, tuple) and value and isinstance(value[0], tuple):
                (_, _, key, _, elements), offset, size, stride = value[:4]
                layouts[key] = _Layout(
                    name=dotted, offset=offset, size=size, stride=stride, elements=elements
                )
    return layouts
