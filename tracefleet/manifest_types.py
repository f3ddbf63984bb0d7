"""The values that a manifest is made of: variant, inputs, outputs, files, versions.

Each refuses at construction what no honest conversion has, so that a manifest from outside is
checked by being read. ``tracefleet.manifest`` joins them with ``tracefleet.verdict_types``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracefleet.canonical import check_relative
from tracefleet.errors import ManifestError

JIT = "jit"
INT8 = "int8"
LENGTH_AXES = ("length", "decoder_length")
_SEGMENT = re.compile(r"[a-z0-9][a-z0-9-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of a checkpoint's possible conversions: task × backend × dtype × batch.

    Attributes:
        task: Hugging Face task name, such as ``fill-mask``.
        backend: ``jit``, ``neuronx`` or ``neuron``.
        dtype: type of the weights: ``float32``, ``float16``, ``bfloat16``, or ``int8``, which means
            linear layers in int8 and everything else in float32.
        batch: number of rows in one traced call.
    """

    task: str
    backend: str = "jit"
    dtype: str = "float32"
    batch: int = 1

    def __post_init__(self) -> None:
        """Refuse names that can't be part of one path segment."""
        for name in ("task", "backend", "dtype"):
            value = getattr(self, name)
            if not _SEGMENT.fullmatch(value):
                raise ManifestError(
                    f"variant: {name} expected lower-case letters, digits and hyphens, "
                    f"got {value!r}"
                )
        if self.batch < 1:
            raise ManifestError(f"variant: batch expected at least 1 row, got {self.batch}")

    @property
    def label(self) -> str:
        """The variant as one path segment; no label is a prefix of another variant's path."""
        return f"{self.task}.{self.backend}.{self.dtype}.b{self.batch}"


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One positional argument of the bundle's ``forward``.

    Attributes:
        name: name of the argument in the model's forward signature.
        dtype: type of the tensor: ``int64``, or the variant's dtype for pixels and samples.
        axes: ``batch``, ``length``, ``decoder_length`` or a fixed size written as a number.
        pad_value: value that pads the right-hand side up to a standard length; None: padding would
            change the result, so the bundle takes only inputs of exactly a standard length.
        fill_value: value of the whole input when a caller leaves it out; None: it is required.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]
    pad_value: int | None
    fill_value: int | None = None

    @property
    def length_axis(self) -> int | None:
        """Position of the axis that varies in length, if there is one."""
        return _length_axis(self.axes)

    def shape(self, *, batch: int, length: int) -> tuple[int, ...]:
        """Return the shape of this input at one batch and length."""
        sizes = {"batch": batch, **dict.fromkeys(LENGTH_AXES, length)}
        fixed = {axis: int(axis) for axis in self.axes if axis not in sizes}
        sizes |= fixed
        return tuple(sizes[axis] for axis in self.axes)


@dataclass(frozen=True, kw_only=True)
class General:
    """Shapes for which the gate proved one graph, so that ``forward`` runs a call as it is.

    Rows are neither padded to a standard length nor run one traced batch at a time. A call with
    more rows or tokens is split into equal parts inside the bundle.

    Attributes:
        shortest: fewest tokens of a row that is run unpadded; a shorter one is padded to the
            smallest standard length.
        rows: most rows in one run of the graph.
        tokens: most tokens in one run (rows × tokens of a row), but for a single row; the bundle's
            attribute ``token_budget`` begins with it. None: rows have no length.
    """

    shortest: int
    rows: int
    tokens: int | None

    def __post_init__(self) -> None:
        """Refuse what no gate proves."""
        for name in ("shortest", "rows", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ManifestError(f"general: {name} expected at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """One element of the tuple that ``forward`` returns.

    Attributes:
        name: name of the field in the eager model's output.
        dtype: type of the tensor.
        axes: ``batch``, ``length``, ``decoder_length`` or a fixed size written as a number.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]

    @property
    def length_axis(self) -> int | None:
        """Position of the axis that varies in length, if there is one."""
        return _length_axis(self.axes)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One published file.

    Attributes:
        path: path relative to the conversion's folder, normalised, ``/`` between segments.
        size: number of bytes.
        sha256: hex digest of the bytes.
        media_type: media type of the bytes.
    """

    path: str
    size: int
    sha256: str
    media_type: str

    def __post_init__(self) -> None:
        """Refuse paths that could leave the conversion's folder, and malformed digests."""
        check_relative(self.path)
        if not _SHA256.fullmatch(self.sha256):
            raise ManifestError(
                f"{self.path}: sha256 expected 64 hex digits, got {self.sha256!r}. "
                "Fetch the manifest again from a store that you trust."
            )
        if self.size < 0:
            raise ManifestError(f"{self.path}: size expected at least 0 bytes, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """Versions of the software that made a conversion's files.

    Attributes:
        python: version of Python.
        torch: version of torch.
        transformers: version of transformers.
        compiler: Neuron's packages, as ``neuronx-cc==… torch-neuronx==…``; None for ``jit``.
    """

    python: str
    torch: str
    transformers: str
    compiler: str | None = None


def _length_axis(axes: tuple[str, ...]) -> int | None:
    for position, axis in enumerate(axes):
        if axis in LENGTH_AXES:
            return position
    return None
