"""Collect and describe the files of a conversion, and make Triton's config."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tasks.fetch.needed import CONFIG, PROCESSOR, TOKENIZER
from tasks.trace.bundle import TracedFile
from tasks.trace.record import TraceResult
from tracefleet.manifest import BUNDLE_MEDIA_TYPE, BUNDLE_PATH
from tracefleet.manifest_types import FileEntry, InputSpec, OutputSpec
from tracefleet.text.tokenize import TOKENIZER as TOKENIZER_PATH

_TRITON_TYPES = {
    "int64": "TYPE_INT64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "bool": "TYPE_BOOL",
}
_MEDIA_TYPES = {".json": "application/json", ".txt": "text/plain", ".pbtxt": "text/plain"}


def collect_files(
    traced: TraceResult,
    inputs: tuple[InputSpec, ...],
    checkpoint: Path,
    work: Path,
    tokenizer: Path | None = None,
) -> dict[str, Path]:
    """Map each published path to its local file: archives, Triton's config, the checkpoint's.

    Args:
        traced: Result of tracing.
        inputs: Inputs of the artifact.
        checkpoint: Folder of the checkpoint.
        work: Folder for files that are written here.
        tokenizer: ``tokenizer.json`` that was made for a checkpoint without one.
    """
    files = {archive.published: archive.path for archive in traced.files}
    if BUNDLE_PATH in files:  # Triton's PyTorch backend runs nothing of Neuron's
        files["model/config.pbtxt"] = work / "config.pbtxt"
        files["model/config.pbtxt"].write_bytes(make_triton_config(inputs, traced.outputs))
    for name in (CONFIG, *TOKENIZER, *PROCESSOR):
        path = checkpoint / name
        if path.is_file() and path.stat().st_size:
            files[f"model/{name}"] = path
    if tokenizer is not None:
        files.setdefault(TOKENIZER_PATH, tokenizer)
    return files


def describe_files(files: dict[str, Path], archives: Sequence[TracedFile]) -> tuple[FileEntry, ...]:
    """Return the manifest's entries, sorted by path.

    Args:
        files: Local files by their published paths.
        archives: Archives among them, hashed while they were written.
    """
    known = {archive.published: archive for archive in archives}
    entries = []
    for path, local in sorted(files.items()):
        archive = known.get(path)
        if archive is not None:
            # A digest read back from the disk would hide damage that happened in between.
            size, sha256, media_type = archive.size, archive.sha256, BUNDLE_MEDIA_TYPE
        else:
            data = local.read_bytes()
            size, sha256 = len(data), hashlib.sha256(data).hexdigest()
            media_type = _find_media_type(path)
        entries.append(FileEntry(path=path, size=size, sha256=sha256, media_type=media_type))
    return tuple(entries)


def make_triton_config(inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]) -> bytes:
    """Return ``config.pbtxt``, which makes the conversion's folder a Triton model repository."""
    # The PyTorch backend completes no config. The dispatcher accepts any batch and length: every
    # axis that is not fixed is dynamic, and `max_batch_size` is 0.
    lines = ['platform: "pytorch_libtorch"', 'backend: "pytorch"', "max_batch_size: 0"]
    for spec in inputs:
        lines.append(_format_tensor("input", spec.name, spec.dtype, spec.axes))
    for index, output in enumerate(outputs):
        lines.append(_format_tensor("output", f"OUTPUT__{index}", output.dtype, output.axes))
    # The profiling executor takes seconds for the first two calls, and again for new shapes.
    lines.append('parameters { key: "DISABLE_OPTIMIZED_EXECUTION" value { string_value: "true" } }')
    return ("\n".join(lines) + "\n").encode()


def _format_tensor(kind: str, name: str, dtype: str, axes: tuple[str, ...]) -> str:
    dims = []
    for axis in axes:
        dims.append(axis if axis.isdigit() else "-1")
    listed = ", ".join(dims)
    return f'{kind} [ {{ name: "{name}" data_type: {_TRITON_TYPES[dtype]} dims: [ {listed} ] }} ]'


def _find_media_type(path: str) -> str:
    return _MEDIA_TYPES.get(Path(path).suffix, "application/octet-stream")
