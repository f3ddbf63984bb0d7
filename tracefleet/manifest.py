"""The manifest: what a conversion is, in canonical JSON, readable by anyone.

A manifest names every published file with its digest and describes how to call the bundle. It
holds no time, host or user: two conversions of one request write the same bytes. Who converted,
when and how fast is in an attestation beside it.

Laws, each with a test per direction: ``parse(manifest.to_bytes()) == manifest`` and
``parse(data).to_bytes() == data`` for every ``data`` that ``to_bytes`` wrote.
The format is published as ``manifest.schema.json`` in this package; the values in a manifest are
defined in ``tracefleet.manifest_types`` and ``tracefleet.verdict_types``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tracefleet.canonical import canonical_json
from tracefleet.decode import decode
from tracefleet.errors import ManifestError
from tracefleet.generation_types import Generation
from tracefleet.lengths import check_lengths
from tracefleet.manifest_types import (
    FileEntry,
    General,
    InputSpec,
    OutputSpec,
    Toolchain,
    Variant,
)
from tracefleet.opens_with import check_form
from tracefleet.text.spec import TextSpec
from tracefleet.verdict_types import (
    GENERALITY_FIELDS,
    UNTRIED,
    VALIDATED,
    Validation,
)

SCHEMA = 3
#: Lacks the accuracy of quantised models and what each graph does at other shapes.
_FIRST_SCHEMA = 1
_SECOND_SCHEMA = 2
#: The first one that says where one graph was proved for every shape.
GENERAL_SCHEMA = 3
#: Of bundles, of what reads texts, of what generates: left out of every other manifest.
_OPTIONAL: dict[str, Any] = dict.fromkeys(
    ("opens_with", "text", "generation", "without_generation")
)
#: Fields that came with schema 3, and what they are in a manifest of an earlier one.
_SINCE_THIRD: dict[str, Any] = {
    **dict.fromkeys(("device", "general", "reader", "routed")),
    "follows_device": False,
    **_OPTIONAL,
}
#: The same of the gate's verdict, and of the accuracy in it.
_VALIDATION_SINCE_THIRD: dict[str, Any] = dict.fromkeys(("samples", "without_samples"))
_VALIDATION_SINCE_THIRD["left_padding"] = UNTRIED
_ACCURACY_SINCE_THIRD: dict[str, Any] = {"inputs": None, "rank_correlation": None}
#: Oldest version of tracefleet that reads what this one writes.
READER = "0.2.0"
SCHEMAS = (_FIRST_SCHEMA, _SECOND_SCHEMA, SCHEMA)
BUNDLE_MEDIA_TYPE = "application/vnd.torchscript"
#: Name of a manifest, and of one that no device has validated yet.
MANIFEST, CANDIDATE = "manifest.json", "candidate.json"
#: Path of a bundle in its conversion's folder. Triton expects exactly this one, so that the folder
#: is a Triton model repository.
BUNDLE_PATH = "model/1/model.pt"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9][0-9a-z.]{0,19}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The complete description of a conversion. See the module's docstring for its laws.

    Attributes:
        schema: version of this format.
        reader: oldest version of tracefleet that reads it; None: the first one does.
        key: the conversion key: sha256 over what identifies the conversion.
        source: source of the checkpoint, such as ``hf://org/name``.
        commit: commit that the requested revision resolved to.
        license: license that the checkpoint's card declares; None: it declares none.
        variant: Task, backend, dtype and batch.
        lengths: the standard lengths, ascending, in tokens.
        options: other options of the request that shape the conversion.
        inputs: positional arguments of ``forward``, in order.
        outputs: elements of the returned tuple, in order.
        tied_groups: names of parameters that shared one storage before untying. The copies are
            independent: a model from this conversion must never be trained.
        same_program: whether the graphs of all lengths differ in literal lengths only.
        general: where one graph was proved for every shape; None: calls are routed to a standard
            length and padded.
        routed: why they are; None: they are not, or an earlier recipe did not try.
        device: device on which the gate ran, such as ``cpu``; None: an earlier schema does not say.
        follows_device: whether the bundle runs where its inputs and weights are, and not on that
            kind of device alone.
        opens_with: torch, or libtorch, that the bundle needs, ``torch>=X.Y``; None: a Neuron
            conversion, or an earlier version wrote it.
        text: how texts become ids, and outputs answers; None, which is not written: nothing says.
        generation: what ``generate`` does; None: the bundle has no such method.
        without_generation: why a model that generates has none.
        files: every file of the conversion except the manifest.
        toolchain: versions of the software that made the files.
        recipe: version of tracefleet's conversion semantics.
        validation: verdict of the gate.
    """

    schema: int = SCHEMA
    reader: str | None = READER
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
    general: General | None
    routed: str | None
    device: str | None
    follows_device: bool
    opens_with: str | None = None
    text: TextSpec | None = None
    generation: Generation | None = None
    without_generation: str | None = None
    files: tuple[FileEntry, ...]
    toolchain: Toolchain
    recipe: int
    validation: Validation

    def __post_init__(self) -> None:
        """Refuse a manifest of another schema or with contradictory contents."""
        if self.schema not in SCHEMAS:
            raise ManifestError(f"manifest: schema expected one of {SCHEMAS}, got {self.schema}")
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
        check_form(self.opens_with)

    @property
    def published(self) -> tuple[FileEntry, ...]:
        """Every file beside the manifest: those of the artifact, then the golden samples."""
        samples = self.validation.samples
        return self.files if samples is None else (*self.files, samples)

    @property
    def archives(self) -> tuple[FileEntry, ...]:
        """The TorchScript archives among the files: one bundle, or a program for each length."""
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
    def file_name(self) -> str:
        """Name of the manifest in its conversion's folder.

        Only a validated conversion has a ``manifest.json``. Its folder may also hold the
        ``candidate.json`` from before its validation.
        """
        return MANIFEST if self.validation.verdict == VALIDATED else CANDIDATE

    @property
    def digest(self) -> str:
        """Sha256 of the canonical bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def in_schema(self, schema: int) -> Manifest:
        """Return the manifest as an earlier schema can say it."""
        if schema >= GENERAL_SCHEMA:
            return self
        validation = dataclasses.replace(self.validation, **_VALIDATION_SINCE_THIRD)
        if validation.accuracy is not None:
            accuracy = dataclasses.replace(validation.accuracy, **_ACCURACY_SINCE_THIRD)
            validation = dataclasses.replace(validation, accuracy=accuracy)
        return dataclasses.replace(self, schema=schema, validation=validation, **_SINCE_THIRD)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON, in the schema that the manifest was read in."""
        raw = dataclasses.asdict(self)
        _drop(raw, [name for name in _OPTIONAL if raw[name] is None])
        if self.schema < SCHEMA:
            _drop(raw, _SINCE_THIRD)
            _drop(raw["validation"], _VALIDATION_SINCE_THIRD)
            _drop(raw["validation"]["accuracy"] or {}, _ACCURACY_SINCE_THIRD)
        if self.schema == _FIRST_SCHEMA:
            del raw["validation"]["accuracy"]
            for verdict in raw["validation"]["lengths"]:
                for name in GENERALITY_FIELDS:
                    del verdict[name]
        return canonical_json(raw)


def _drop(raw: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        raw.pop(name, None)


def parse(data: bytes) -> Manifest:
    """Read a manifest back from its bytes.

    Raises:
        ManifestError: not JSON, not of this schema, an unknown or missing field, an unsafe path.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"manifest: expected JSON, got {data[:40]!r}…: {error}") from error
    _refuse_later_schema(raw)
    return decode(Manifest, _upgrade(raw), where="manifest")


def _refuse_later_schema(raw: Any) -> None:
    """Say which version reads a manifest of a later schema, whose fields mean nothing here."""
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if type(schema) is int and schema > SCHEMA:
        known = _VERSION.fullmatch(str(raw.get("reader")))
        version = f" to {known[0]} or later" if known else ""
        raise ManifestError(
            f"manifest: schema expected at most {SCHEMA}, got {schema}. "
            f"Upgrade tracefleet{version} to read it."
        )


def _upgrade(raw: Any) -> Any:
    """Add to a manifest of an earlier schema the fields that came later."""
    if not isinstance(raw, dict):
        return raw
    if raw.get("schema") not in (_FIRST_SCHEMA, _SECOND_SCHEMA):
        return {**_OPTIONAL, **raw}
    _refuse_later_fields(raw["schema"], raw, _SINCE_THIRD)
    try:
        validation = _upgrade_validation(raw["schema"], raw["validation"])
    except (KeyError, TypeError):
        return {**raw, **_SINCE_THIRD}  # malformed: decode reports the field
    return {**raw, **_SINCE_THIRD, "validation": validation}


def _upgrade_validation(schema: int, raw: dict[str, Any]) -> dict[str, Any]:
    """Add what a verdict of an earlier schema lacks."""
    _refuse_later_fields(schema, raw, _VALIDATION_SINCE_THIRD)
    raw = {**raw, **_VALIDATION_SINCE_THIRD}
    if schema == _FIRST_SCHEMA:
        untried = dict.fromkeys(GENERALITY_FIELDS, UNTRIED)
        lengths = [{**verdict, **untried} for verdict in raw["lengths"]]
        return {**raw, "lengths": lengths, "accuracy": None}
    if raw["accuracy"] is not None:
        _refuse_later_fields(schema, raw["accuracy"], _ACCURACY_SINCE_THIRD)
        raw["accuracy"] = {**raw["accuracy"], **_ACCURACY_SINCE_THIRD}
    return raw


def _refuse_later_fields(schema: int, raw: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name in raw:
            raise ManifestError(f"manifest: schema {schema} has no field {name}; got one")
