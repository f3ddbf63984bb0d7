"""The files of a conversion: which there are, what they are, and Triton's config."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tasks.fetch.needed import CONFIG, PROCESSOR, TOKENIZER
from tasks.trace.bundle import TracedFile
from tasks.trace.record import TraceResult
from tracefleet.manifest import BUNDLE_MEDIA_TYPE, BUNDLE_PATH
from tracefleet.manifest_types import FileEntry, InputSpec, OutputSpec

_TRITON_TYPES = {
    "int64": "TYPE_INT64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "bool": "TYPE_BOOL",
}


def collect_files(
    traced: TraceResult, inputs: tuple[InputSpec, ...], checkpoint: Path, work: Path
) -> dict[str, Path]:
    """Map each published path to its local file: archives, Triton's config, the checkpoint's.

    Args:
        traced: What tracing made.
        inputs: Inputs of the artifact.
        checkpoint: Folder of the checkpoint.
        work: Folder for what is written here.
    """
    files = {archive.published: archive.path for archive in traced.files}
    if BUNDLE_PATH in files:  # Triton's PyTorch backend runs nothing of Neuron's
        files["model/config.pbtxt"] = work / "config.pbtxt"
        files["model/config.pbtxt"].write_bytes(triton_config(inputs, traced.outputs))
    for name in (CONFIG, *TOKENIZER, *PROCESSOR):
        path = checkpoint / name
        if path.is_file() and path.stat().st_size:
            files[f"model/{name}"] = path
    return files


def describe_files(files: dict[str, Path], archives: Sequence[TracedFile]) -> tuple[FileEntry, ...]:
    """Return the manifest's entries, sorted by path; an archive's digest is the one written."""
    known = {archive.published: archive for archive in archives}
    entries = []
    for path, local in sorted(files.items()):
        if (archive := known.get(path)) is not None:
            size, sha256, media_type = archive.size, archive.sha256, BUNDLE_MEDIA_TYPE
        else:
            data = local.read_bytes()
            size, sha256 = len(data), hashlib.sha256(data).hexdigest()
            media_type = _media_type(path)
        entries.append(FileEntry(path=path, size=size, sha256=sha256, media_type=media_type))
    return tuple(entries)


def triton_config(inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]) -> bytes:
    """Return ``config.pbtxt``, which makes the conversion's folder a Triton model repository.

    The PyTorch backend needs it (no autocomplete); the dispatcher takes any batch and length, so
    every axis but fixed ones is dynamic and ``max_batch_size`` is 0.
    """
    lines = ['platform: "pytorch_libtorch"', 'backend: "pytorch"', "max_batch_size: 0"]
    for spec in inputs:
        lines.append(_triton_tensor("input", spec.name, spec.dtype, spec.axes))
    for index, output in enumerate(outputs):
        lines.append(_triton_tensor("output", f"OUTPUT__{index}", output.dtype, output.axes))
    return ("\n".join(lines) + "\n").encode()


def _triton_tensor(kind: str, name: str, dtype: str, axes: tuple[str, ...]) -> str:
    dims = ", ".join(axis if axis.isdigit() else "-1" for axis in axes)
    return f'{kind} [ {{ name: "{name}" data_type: {_TRITON_TYPES[dtype]} dims: [ {dims} ] }} ]'


def _media_type(path: str) -> str:
    suffix = Path(path).suffix
    return {".json": "application/json", ".txt": "text/plain", ".pbtxt": "text/plain"}.get(
        suffix, "application/octet-stream"
    )
