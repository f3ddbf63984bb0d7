"""Are fetched files whole? Headers only, without torch; every tensor is compared later, on load.

Laws of the format (safetensors): 8 bytes that hold the header's length, a JSON header, then the
tensors end to end, up to the last byte of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.errors import UnsafeCheckpointError
from tasks.fetch.needed import SAFETENSORS_INDEX, parse_index
from tasks.fetch.source import CheckpointFile

# The format's own limit.
_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_LFS_POINTER = b"version https://git-lfs"


def check_files(folder: Path, files: Iterable[CheckpointFile]) -> None:
    """Refuse a checkpoint whose files are truncated, garbage, pointers or incomplete.

    Raises:
        UnsafeCheckpointError: naming the file, what was expected and what was got.
    """
    tensors: dict[str, frozenset[str]] = {}
    for file in files:
        path = folder / file.path
        _check_size(path, file.size)
        _check_no_pointer(path)
        if file.path.endswith(".safetensors"):
            tensors[file.path] = check_safetensors(path)
    if SAFETENSORS_INDEX in {file.path for file in files}:
        _check_index(folder / SAFETENSORS_INDEX, tensors)


def check_safetensors(path: Path) -> frozenset[str]:
    """Return the names of the tensors in a safetensors file.

    Raises:
        UnsafeCheckpointError: the header is not one, or the file does not end where it says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        most = min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES)
        if length > most or size < _LENGTH_BYTES:
            raise _damaged(path, f"a header of at most {max(most, 0)} bytes", f"{length}")
        header = _parse_header(path, file.read(length))
    promised = _LENGTH_BYTES + length + _end_of_tensors(path, header)
    if promised != size:
        what = "truncated" if size < promised else "followed by bytes that belong to no tensor"
        raise _damaged(path, f"{promised} bytes", f"{size} bytes: it is {what}")
    return frozenset(header)


def _parse_header(path: Path, data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "a JSON header", f"{data[:40]!r}…") from error
    if not isinstance(header, dict):
        raise _damaged(path, "a JSON object as header", type(header).__name__)
    header.pop("__metadata__", None)
    return header


def _end_of_tensors(path: Path, header: dict[str, Any]) -> int:
    spans: list[tuple[int, int, str]] = []
    try:
        for name, info in header.items():
            start, stop = info["data_offsets"]
            spans.append((int(start), int(stop), name))
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise _damaged(path, "two data_offsets for each tensor", "a header without") from error
    end = 0
    for start, stop, name in sorted(spans):
        if start != end or stop < start:
            raise _damaged(path, f"{name} to start at byte {end}", f"{start} to {stop}")
        end = stop
    return end


def _check_size(path: Path, size: int) -> None:
    got = path.stat().st_size if path.is_file() else None
    if got != size:
        raise _damaged(path, f"{size} bytes", "no such file" if got is None else f"{got} bytes")


def _check_no_pointer(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise UnsafeCheckpointError(
            f"{path}: expected the file itself, got a git-lfs pointer to it. The repository was "
            "cloned without its large files: run `git lfs pull` there, then run again."
        )


def _check_index(index: Path, tensors: dict[str, frozenset[str]]) -> None:
    weight_map = parse_index(index.read_bytes(), told_by=str(index))
    for name, shard in weight_map.items():
        if name not in tensors.get(shard, ()):
            raise _damaged(index, f"{name} in {shard}, as the index says", "a shard without it")


def _damaged(path: Path, expected: str, got: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{path}: expected {expected}, got {got}. The file is damaged or not what its name says; "
        "remove it and fetch or copy it again."
    )
