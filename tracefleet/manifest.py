"""The manifest: what a conversion is, in canonical JSON, readable by anyone.

A manifest binds every published file by digest and says how to call the bundle. It holds no
clock time, host or user: two honest runs of one request write the same bytes. Who, when and how
fast is an attestation beside it.

Laws, each with a test per direction: ``parse(manifest.to_bytes()) == manifest`` and
``parse(data).to_bytes() == data`` for every ``data`` that ``to_bytes`` wrote.
The format is published as ``manifest.schema.json`` in this package.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from tracefleet.canonical import canonical_json, check_relative
from tracefleet.decode import decode
from tracefleet.errors import ManifestError
from tracefleet.lengths import check_lengths

SCHEMA = 2
#: Written before lengths said what their graphs do at other shapes.
_FIRST_SCHEMA = 1
_SINCE_2 = ("other_lengths", "other_batches")
BUNDLE_MEDIA_TYPE = "application/vnd.torchscript"
VALIDATED = "validated"
UNVALIDATED_ON_DEVICE = "unvalidated-on-device"
#: A manifest's name, and that of one whose verdict is still to come.
MANIFEST, CANDIDATE = "manifest.json", "candidate.json"
#: Where a bundle lies in its conversion's folder, which so is a Triton model repository.
BUNDLE_PATH = "model/1/model.pt"
JIT = "jit"
LENGTH_AXES = ("length", "decoder_length")
HOLDS, DIFFERS, RAISES, UNTRIED = "holds", "differs", "raises", "untried"
GENERALITY = (HOLDS, DIFFERS, RAISES, UNTRIED)
_SEGMENT = re.compile(r"[a-z0-9][a-z0-9-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Which flavour of a checkpoint: task × backend × dtype × batch.

    Attributes:
        task: a Hugging Face task name, such as ``fill-mask``.
        backend: ``jit``, ``neuronx`` or ``neuron``.
        dtype: of the weights: ``float32``, ``float16``, ``bfloat16``, or ``int8``: linear layers in
            int8, everything else in float32.
        batch: rows in one traced call.
    """

    task: str
    backend: str = "jit"
    dtype: str = "float32"
    batch: int = 1

    def __post_init__(self) -> None:
        """Refuse names that could not be part of one path segment."""
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
        name: the argument's name in the model's forward signature.
        dtype: of the tensor: ``int64``, or the variant's dtype for pixels and samples.
        axes: ``batch``, ``length``, ``decoder_length`` or a fixed size written as a number.
        pad_value: what fills the right-hand side up to a standard length; None: padding would
            change the result, so that the bundle takes the standard lengths alone.
        fill_value: what stands in for the whole input when a caller leaves it out; None: required.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]
    pad_value: int | None
    fill_value: int | None = None

    @property
    def length_axis(self) -> int | None:
        """Which axis follows a length, if one does."""
        return _length_axis(self.axes)

    def shape(self, *, batch: int, length: int) -> tuple[int, ...]:
        """Return the shape of this input at one batch and length."""
        return tuple(
            batch if axis == "batch" else length if axis in LENGTH_AXES else int(axis)
            for axis in self.axes
        )


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """One element of the tuple that ``forward`` returns.

    Attributes:
        name: the field of the eager model's output.
        dtype: of the tensor.
        axes: ``batch``, ``length``, ``decoder_length`` or a fixed size written as a number.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]

    @property
    def length_axis(self) -> int | None:
        """Which axis follows a length, if one does."""
        return _length_axis(self.axes)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One published file.

    Attributes:
        path: relative to the conversion's folder, normalised, ``/`` between segments.
        size: in bytes.
        sha256: hex digest of the bytes.
        media_type: what the bytes are.
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
    """Versions that shaped the bytes.

    ``compiler`` is Neuron's, as ``neuronx-cc==… torch-neuronx==…``; None for jit.
    """

    python: str
    torch: str
    transformers: str
    compiler: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """An output passes when ``max|traced - eager| <= atol + rtol * max|eager|``.

    Both are over the valid (unpadded) positions of one output; ``max|eager|`` is at least what it
    is on the traced input.
    """

    atol: float
    rtol: float


@dataclass(frozen=True, kw_only=True)
class LengthVerdict:
    """What the gate measured at one standard length, the worst over all probes and outputs.

    Attributes:
        length: the standard length, in tokens.
        probes: how many probes counted.
        vacuous: names of probes that can't move this model and so prove nothing.
        max_abs_error: max|traced - eager|.
        max_rel_error: max|traced - eager| / max|eager|.
        min_cosine: the smallest cosine similarity between a traced and an eager output.
        top1_agreement: share of last-axis argmaxes that agree, for outputs that are logits.
        passed: every probe within the tolerance.
        other_lengths: what the bare graph, which the bundle guards, does at other lengths than
            it was traced at: ``holds``, ``differs`` (silently wrong), ``raises``; ``untried``
            where eager itself refuses them or none can be. Measured, not assumed.
        other_batches: the same for other numbers of rows.
    """

    length: int
    probes: int
    vacuous: tuple[str, ...]
    max_abs_error: float
    max_rel_error: float
    min_cosine: float
    top1_agreement: float
    passed: bool
    other_lengths: str = UNTRIED
    other_batches: str = UNTRIED

    def __post_init__(self) -> None:
        """Refuse what no measurement gives."""
        for name in _SINCE_2:
            if getattr(self, name) not in GENERALITY:
                raise ManifestError(
                    f"validation: {name} expected one of {', '.join(GENERALITY)}, got "
                    f"{getattr(self, name)!r}"
                )


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How far a quantised model is from the float32 one: the worst over fresh inputs.

    Attributes:
        max_rel_error: max|quantised - float32| / max|float32|.
        min_cosine: the smallest cosine similarity between two outputs.
        top1_agreement: share of last-axis argmaxes that agree, for outputs that are logits.
    """

    max_rel_error: float
    min_cosine: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The gate's verdict.

    Attributes:
        verdict: ``validated``, or ``unvalidated-on-device`` for what could not be run here.
        tolerance: the bound that was applied.
        lengths: one verdict for each standard length.
        negative_controls: planted faults that the same probes caught.
        accuracy: what quantisation costs; None: nothing is quantised.
    """

    verdict: str
    tolerance: Tolerance
    lengths: tuple[LengthVerdict, ...]
    negative_controls: tuple[str, ...]
    accuracy: Accuracy | None = None

    def __post_init__(self) -> None:
        """Refuse verdicts that no gate gives."""
        if self.verdict not in (VALIDATED, UNVALIDATED_ON_DEVICE):
            raise ManifestError(
                f"validation: verdict expected {VALIDATED!r} or {UNVALIDATED_ON_DEVICE!r}, "
                f"got {self.verdict!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A conversion, whole. See the module's docstring for its laws.

    Attributes:
        schema: version of this format.
        key: the conversion key, sha256 over what identifies the conversion.
        source: where the checkpoint came from.
        commit: what the revision resolved to.
        license: as the checkpoint's card declares it, if it does.
        variant: task, backend, dtype, batch.
        lengths: the standard lengths, ascending, in tokens.
        options: what else the request chose that shapes the conversion.
        inputs: positional arguments of ``forward``, in order.
        outputs: elements of the returned tuple, in order.
        tied_groups: names that shared one storage before untying. The copies are independent
            now: a model from this conversion must never be trained.
        same_program: the graphs of all lengths are one program but for literal lengths.
        files: every file of the conversion but this one.
        toolchain: versions that shaped the bytes.
        recipe: version of tracefleet's conversion semantics.
        validation: the gate's verdict.
    """

    schema: int = SCHEMA
    key: str
    source: str
    commit: str
    license: str | None
    variant: Variant
    lengths: tuple[int, ...]
    options: dict[str, str]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    tied_groups: tuple[tuple[str, ...], ...]
    same_program: bool
    files: tuple[FileEntry, ...]
    toolchain: Toolchain
    recipe: int
    validation: Validation

    def __post_init__(self) -> None:
        """Refuse a manifest of another schema or with contradictory contents."""
        if self.schema not in (_FIRST_SCHEMA, SCHEMA):
            raise ManifestError(
                f"manifest: schema expected at most {SCHEMA}, got {self.schema}. "
                "Upgrade tracefleet to read it."
            )
        if not _SHA256.fullmatch(self.key):
            raise ManifestError(f"manifest: key expected 64 hex digits, got {self.key!r}")
        try:
            ascending = check_lengths(self.lengths)
        except ValueError as error:
            raise ManifestError(f"manifest: {error}") from error
        if ascending != self.lengths:
            raise ManifestError(f"manifest: lengths expected {ascending}, got {self.lengths}")
        paths = [file.path for file in self.files]
        if paths != sorted(set(paths)):
            raise ManifestError(f"manifest: files expected sorted, each once; got {paths}")

    @property
    def archives(self) -> tuple[FileEntry, ...]:
        """The TorchScript archives among the files: a bundle, or a program for each length."""
        return tuple(file for file in self.files if file.media_type == BUNDLE_MEDIA_TYPE)

    @property
    def bundle(self) -> FileEntry:
        """The one archive that holds every length.

        Raises:
            ManifestError: there is none, or several.
        """
        bundles = self.archives
        if len(bundles) != 1:
            raise ManifestError(
                f"manifest: expected one {BUNDLE_MEDIA_TYPE} file, got {len(bundles)}. "
                "This conversion can't be opened as a bundle."
            )
        return bundles[0]

    @property
    def programs(self) -> dict[int, FileEntry]:
        """The archive of each standard length, where each has its own.

        Raises:
            ManifestError: a length has none, or there are more.
        """
        found = {file.path: file for file in self.archives}
        paths = {length: program_path(length) for length in self.lengths}
        if found.keys() != set(paths.values()):
            raise ManifestError(
                f"manifest: expected {sorted(paths.values())}, a program for each length, got "
                f"{sorted(found)}. This conversion can't be opened on Neuron."
            )
        return {length: found[path] for length, path in paths.items()}

    @property
    def file_name(self) -> str:
        """Name of the manifest in its conversion's folder.

        Only what was validated is ever a ``manifest.json``; a conversion may have both.
        """
        return MANIFEST if self.validation.verdict == VALIDATED else CANDIDATE

    @property
    def digest(self) -> str:
        """Sha256 of the canonical bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the canonical JSON, of the schema that it was read in."""
        raw = dataclasses.asdict(self)
        if self.schema == _FIRST_SCHEMA:
            del raw["validation"]["accuracy"]
            for verdict in raw["validation"]["lengths"]:
                for name in _SINCE_2:
                    del verdict[name]
        return canonical_json(raw)


def parse(data: bytes) -> Manifest:
    """Read a manifest back from its bytes.

    Raises:
        ManifestError: not JSON, not of this schema, an unknown or missing field, an unsafe path.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"manifest: expected JSON, got {data[:40]!r}…: {error}") from error
    return decode(Manifest, _of_today(raw), where="manifest")


def _of_today(raw: Any) -> Any:
    """Give a manifest of the first schema what its validation did not say yet."""
    if not isinstance(raw, dict) or raw.get("schema") != _FIRST_SCHEMA:
        return raw
    try:
        lengths = [
            {**verdict, **dict.fromkeys(_SINCE_2, UNTRIED)}
            for verdict in raw["validation"]["lengths"]
        ]
        new = {"lengths": lengths, "accuracy": None}
        return {**raw, "validation": {**raw["validation"], **new}}
    except (KeyError, TypeError):
        return raw  # malformed: decode says where


def program_path(length: int) -> str:
    """Return where the program of one standard length lies in its conversion's folder."""
    return f"model/length-{length}.pt"


def _length_axis(axes: tuple[str, ...]) -> int | None:
    found = [position for position, axis in enumerate(axes) if axis in LENGTH_AXES]
    return found[0] if found else None
