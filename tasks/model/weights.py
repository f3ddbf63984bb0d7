"""Compare weights with the checkpoint's files, element by element.

Two links make the chain from the checkpoint's files to the artifact: ``compare_with_files`` proves
that the eager reference has the files' values (transformers issues #48154, #43880 and #47620 are
cases where it did not), and ``digests`` that the reloaded bundle has the reference's under every
name, untied copies and fused tensors included. Probes can't see a wrong value in a row that no
probe reads, and a comparison of traced with eager can't see a model that was loaded wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UnsafeCheckpointError
from tasks.model import versions
from tasks.model.quantise import unpack_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

_MAPPED_BYTES = 64 << 20


def list_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter, buffer and packed int8 weight under every one of its names."""
    return {**versions.list_tensors(model), **unpack_weights(model)}


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters, each counted once."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


def digests(named: dict[str, torch.Tensor]) -> dict[str, str]:
    """Return the sha256 of each tensor's dtype, shape and elements."""
    return {name: _digest(tensor) for name, tensor in named.items()}


def _digest(tensor: torch.Tensor) -> str:
    import torch

    held = tensor.detach().contiguous()
    digest = hashlib.sha256(f"{held.dtype} {tuple(held.shape)}".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compare_with_files(model: nn.Module, folder: Path) -> int:
    """Require the values of the safetensors files; return how many weights were found in them.

    A name matches with or without the base model's prefix. Weights that transformers renames or
    fuses while loading match nothing: its own report of missing and unused keys covers them.

    Raises:
        UnsafeCheckpointError: A weight differs from the file's value, cast to the model's dtype.
    """
    import torch

    files = _weight_files(folder)
    named = list_tensors(model)
    matched = 0
    for name, stored in _read_tensors(files):
        held = _find_held(named, name)
        if held is None or held.shape != stored.shape:
            continue
        matched += 1
        if not torch.equal(held, stored.to(held.dtype)):
            raise UnsafeCheckpointError(
                f"{name}: expected the value that the checkpoint's file holds, got another one "
                "after loading. It is NaN in the file, or transformers tied or initialised it "
                "wrongly; nothing that is computed from it can be trusted. Check the file, then "
                "try another version of transformers."
            )
    # Renamed weights match nothing: then none of the comparisons above proved anything.
    if files and matched == 0:
        raise UnsafeCheckpointError(
            f"{folder.name}: expected the model's weights under their names in the files, got no "
            "match at all. The weights are not of this architecture: correct architectures in "
            "config.json, or name the checkpoint that was meant."
        )
    return matched


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads, without others (``model.fp16.safetensors``)."""
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return []  # pickled weights, which the request allowed
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return [folder / name for name in sorted(shards)]


def _find_held(named: dict[str, Any], stored: str) -> Any:
    """Find a stored name among the model's; either may have the base model's prefix."""
    if stored in named:
        return named[stored]
    _, _, shorter = stored.partition(".")
    if shorter in named:
        return named[shorter]
    longer = [name for name in named if name.partition(".")[2] == stored]
    return named[longer[0]] if len(longer) == 1 else None


def _read_tensors(files: list[Path]) -> Iterator[tuple[str, Any]]:
    """Yield every stored tensor."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        while names:
            # The file is mapped again every 64 MiB: that gives the pages of what was read back.
            read = 0
            with safe_open(path, framework="pt") as file:
                while names and read < _MAPPED_BYTES:
                    tensor = file.get_tensor(names[0])
                    read += tensor.numel() * tensor.element_size()
                    yield names.pop(0), tensor
