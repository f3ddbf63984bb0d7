"""Are fetched files whole? Headers only, without torch; every tensor is compared later, on load."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tasks.errors import UnsafeCheckpointError
from tasks.fetch.needed import SAFETENSORS_INDEX, parse_index
from tasks.fetch.source import CheckpointFile

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
        UnsafeCheckpointError: the header is none, or its tensors do not fill the file exactly.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return frozenset(file.keys())
    except SafetensorError as error:
        got = f"{path.stat().st_size} bytes that are none: {error}"
        raise _make_damage_error(path, "a whole safetensors file", got) from error


def _check_size(path: Path, size: int) -> None:
    got = path.stat().st_size if path.is_file() else None
    if got != size:
        told = "no such file" if got is None else f"{got} bytes"
        # A folder is hashed as it is: only a download is of another size than was listed.
        raise _make_damage_error(path, f"{size} bytes", told, lasting=False)


def _check_no_pointer(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise UnsafeCheckpointError(
            f"{path}: expected the file itself, got a git-lfs pointer to it. The repository was "
            "cloned without its large files: run `git lfs pull` there, then run again."
        )


def _check_index(index: Path, tensors: dict[str, frozenset[str]]) -> None:
    weight_map = parse_index(index.read_bytes(), origin=str(index))
    for name, shard in weight_map.items():
        if name not in tensors.get(shard, ()):
            raise _make_damage_error(
                index, f"{name} in {shard}, as the index says", "a shard without it"
            )


def _make_damage_error(
    path: Path, expected: str, got: str, *, lasting: bool = True
) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{path}: expected {expected}, got {got}. It is truncated, damaged or not what its name "
        "says; remove it and fetch or copy it again.",
        lasting=lasting,
    )
