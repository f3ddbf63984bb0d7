"""Collect and describe the files of a conversion, and make Triton's config."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tasks.fetch.needed import CONFIG, PROCESSOR, TOKENIZER
from tasks.samples.make import NO_SAMPLES, Samples
from tasks.trace.bundle import TracedFile
from tasks.trace.record import TraceResult
from tracefleet.manifest import BUNDLE_MEDIA_TYPE, BUNDLE_PATH
from tracefleet.manifest_types import FileEntry, InputSpec
from tracefleet.text.tokenize import TOKENIZER as TOKENIZER_PATH
from tracefleet.triton.config import LABELS, find_obstacle, format_labels, make_config

_MEDIA_TYPES = {".json": "application/json", ".txt": "text/plain", ".pbtxt": "text/plain"}


def collect_files(
    traced: TraceResult,
    inputs: tuple[InputSpec, ...],
    checkpoint: Path,
    work: Path,
    lengths: tuple[int, ...],
    samples: Samples = NO_SAMPLES,
) -> dict[str, Path]:
    """Map each published path to its local file: archives, Triton's config, the checkpoint's.

    Args:
        traced: Result of tracing.
        inputs: Inputs of the artifact.
        checkpoint: Folder of the checkpoint.
        work: Folder for files that are written here.
        lengths: Standard lengths, ascending.
        samples: What the manifest says about texts; ``tokenizer.json`` where it had to be made.
    """
    files = {archive.published: archive.path for archive in traced.files}
    if BUNDLE_PATH in files:  # Triton's PyTorch backend runs nothing of Neuron's
        labels = samples.text.labels if samples.text is not None else ()
        files |= _write_triton(traced, inputs, lengths, labels, work)
    for name in (CONFIG, *TOKENIZER, *PROCESSOR):
        path = checkpoint / name
        if path.is_file() and path.stat().st_size:
            files[f"model/{name}"] = path
    if samples.tokenizer is not None:
        files.setdefault(TOKENIZER_PATH, samples.tokenizer)
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


def _write_triton(
    traced: TraceResult,
    inputs: tuple[InputSpec, ...],
    lengths: tuple[int, ...],
    labels: tuple[str, ...],
    work: Path,
) -> dict[str, Path]:
    """Write what makes the folder a Triton model repository; nothing where it can't be one."""
    if find_obstacle(inputs, traced.outputs) is not None:
        return {}
    made = make_config(inputs, traced.outputs, lengths, labels)
    texts = {"config.pbtxt": made}
    if LABELS in made:
        texts[LABELS] = format_labels(labels)
    for name, text in texts.items():
        (work / name).write_text(text, "utf-8")
    return {f"model/{name}": work / name for name in texts}


def _find_media_type(path: str) -> str:
    return _MEDIA_TYPES.get(Path(path).suffix, "application/octet-stream")
