"""One TorchScript archive for all standard lengths, the weights in it once.

The bundle's contract with consumers (Python, C++, Triton):

* ``forward(<inputs>)``: any number of rows, any length up to the largest standard length. Where the
  graph was proved general it runs the rows as they are, as many at once as were proved and the
  attribute ``token_budget`` allows. Else it routes to the smallest standard length that fits, pads
  on the right, runs the traced batch as often as the rows need, and slices the outputs back.
* ``forward_<length>(<inputs>)``: exactly the traced batch and length; anything else raises.
* ``generate(…)`` of encoder-decoders (``tracefleet.reader.search_script``), and its pieces
  ``encode``, ``prefill`` and ``step`` (``tasks.trace.generation``).

The archive is written in one streaming pass: graph and structure come from a skeleton whose
weights are on the meta device, each tensor's bytes from the live model, and the digest is computed
on what is written. Source paths of this machine (``.debug_pkl``) and example inputs are left out;
the rest is the same for the same request in every process, and so is the digest.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tasks.errors import TraceError, first_line
from tasks.trace.devices import follow_inputs
from tasks.trace.scalars import restore_numbers
from tracefleet.manifest import BUNDLE_PATH
from tracefleet.manifest_types import General, InputSpec, OutputSpec
from tracefleet.reader.archive import Placement, read_placements

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
    general: General | None = None,
    search: Sequence[str] = (),
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
        general: Shapes at which ``forward`` runs calls as they are; None: it pads.
        search: Methods of ``generate``, in order; none: it has none.

    Raises:
        TraceError: torch.jit can't save the module (a Python function in its graph, for one).
    """
    from tracefleet.reader.dispatcher import dispatcher_source
    from tracefleet.reader.general import BUDGET

    # Only now: whoever compared the graphs has seen them as they were recorded.
    restore_numbers(traced)
    follow_inputs(traced)
    if general is not None and general.tokens is not None:
        _add_number(traced, BUDGET, general.tokens)
    for source in [*dispatcher_source(inputs, outputs, graphs, batch, general), *search]:
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
            "The architecture calls a Python autograd function that TorchScript can't store: "
            "serve it with transformers."
        ) from error
    skeleton.seek(0)
    return _compose(skeleton, weights, target)


def _add_number(module: torch.jit.ScriptModule, name: str, value: int) -> None:
    """Give a module an attribute that its methods read and its users may set."""
    import torch

    module._c._register_attribute(name, torch._C.IntType.get(), value)


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
    places = {one.key: one for one in read_placements(reader.get_record("data.pkl"))}
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
            place = places.get(record.removeprefix("data/"))
            if record.startswith("data/") and place is not None:
                held = _read_storage(place, weights[place.name])
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


def _read_storage(place: Placement, tensor: torch.Tensor) -> torch.Tensor:
    """Return a storage's bytes, shape ``(n,)`` uint8; copied only where they must move."""
    import torch

    flat = tensor.detach()
    if not (flat.is_contiguous() and flat.numel() == place.elements and place.offset == 0):
        whole = torch.zeros(place.elements, dtype=tensor.dtype)
        whole.as_strided(place.size, place.stride, place.offset).copy_(flat)
        flat = whole
    return flat.reshape(-1).view(torch.uint8)
