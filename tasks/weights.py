"""Named tensors against the checkpoint's safetensors files, bit for bit.

Used twice: on the eager reference (did transformers load what the file holds? Its issues #48154,
#43880 and #47620 are cases where it did not) and on the reloaded bundle (does the artifact hold
it too?). A comparison of traced with eager outputs can't see a model that was loaded wrong, and
probes can't see a wrong value in a row that no probe
reads; this comparison sees every element.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UnsafeCheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

_MAPPED_BYTES = 64 << 20


def compare_with_files(model: nn.Module, folder: Path) -> int:
    """Return how many weights were found in the files, all of them equal.

    A name matches with or without the base model's prefix. Weights that transformers renames or
    fuses while loading match nothing and are left to the numeric gate.

    Raises:
        UnsafeCheckpointError: a weight differs from the file's value, cast to the model's dtype.
    """
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return compare_tensors(named, folder)


def compare_tensors(named: dict[str, Any], folder: Path) -> int:
    """Compare tensors by name with the files in ``folder``; see ``compare_with_files``."""
    import torch

    matched = 0
    for name, stored in _stored_tensors(folder):
        held = _held(named, name)
        if held is None or held.shape != stored.shape:
            continue
        matched += 1
        if not torch.equal(held, stored.to(held.dtype)):
            raise UnsafeCheckpointError(
                f"{name}: expected the value that the checkpoint's file holds, got another one "
                "after loading. transformers tied or initialised it wrongly; nothing that is "
                "computed from it can be trusted. Try another version of transformers."
            )
    if matched == 0:
        raise UnsafeCheckpointError(
            f"{folder.name}: expected the model's weights under their names in the files, got no "
            "match at all. The weights are not of this architecture."
        )
    return matched


def _held(named: dict[str, Any], stored: str) -> Any:
    """Find a stored name among the model's, where one of them may carry the base model's prefix."""
    if stored in named:
        return named[stored]
    _, _, shorter = stored.partition(".")
    if shorter in named:
        return named[shorter]
    longer = [name for name in named if name.partition(".")[2] == stored]
    return named[longer[0]] if len(longer) == 1 else None


def _stored_tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield every stored tensor; the file is mapped anew every so often to give pages back."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        while names:
            read = 0
            with safe_open(path, framework="pt") as file:
                while names and read < _MAPPED_BYTES:
                    tensor = file.get_tensor(names[0])
                    read += tensor.nbytes
                    yield names.pop(0), tensor
