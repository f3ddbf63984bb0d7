"""Rows with padding on their left, or a hole: never padded on the right too if that differs.

Right padding alone never changes a result, and neither do such rows at exactly a standard length.
Both together change what some architectures compute, and the manifest says which: ``left_padding``.
Their rows run with others of the same length alone, and are refused where the bundle pads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tracefleet.lengths import smallest_fit
from tracefleet.manifest import Manifest
from tracefleet.verdict_types import DIFFERS, HOLDS, UNTRIED, Validation

if TYPE_CHECKING:
    import torch

MASK = "attention_mask"
#: Rows of each input.
Table = Mapping[str, Sequence[Sequence[int]]]
_WORDS = {
    HOLDS: "may be padded on the right as well",
    DIFFERS: "give another result if they are padded on the right as well",
    UNTRIED: "not tried with padding on the right as well",
}


def describe_left_padding(validation: Validation) -> str:
    """Say what becomes of such rows."""
    return _WORDS[validation.left_padding]


def has_differing(manifest: Manifest, table: Table) -> bool:
    """Tell whether a table has rows that must not be padded on the right."""
    differs = manifest.validation.left_padding == DIFFERS
    return differs and any(map(_is_left_padded, table.get(MASK, ())))


def _is_left_padded(mask: Sequence[int]) -> bool:
    """Tell whether a row's mask has a zero before a one."""
    return 0 in mask and any(mask[mask.index(0) :])


def refuse_left_padded(manifest: Manifest, tensors: Sequence[torch.Tensor]) -> None:
    """Refuse the rows of a call; tensors as the bundle takes them.

    Raises:
        ValueError: a row's result would not be eager's.
    """
    named = dict(zip((spec.name for spec in manifest.inputs), tensors, strict=True))
    mask = named.get(MASK)
    if manifest.validation.left_padding != DIFFERS or mask is None:
        return
    axes = [spec.length_axis for spec in manifest.inputs]
    sizes = [one.shape[axis] for one, axis in zip(tensors, axes, strict=True) if axis is not None]
    if not _pads(manifest, mask.shape[-1], max(sizes)):
        return
    shown = mask != 0
    bad = (shown[..., 1:] & ~shown[..., :-1]).flatten(1).any(1)
    if bool(bad.any()):
        raise _refusal(manifest, int(bad.int().argmax()), mask.shape[-1])


def refuse_left_padded_rows(
    manifest: Manifest,
    table: Table,
    longest: Sequence[int],
    first: int,
) -> None:
    """Refuse the rows of a table, each of which runs at its own length.

    Args:
        manifest: of the conversion.
        table: rows of each input.
        longest: tokens of each row's longest input.
        first: number of the first row, for messages.

    Raises:
        ValueError: a row's result would not be eager's.
    """
    if manifest.validation.left_padding != DIFFERS:
        return
    for place, mask in enumerate(table.get(MASK, ())):
        if _is_left_padded(mask) and _pads(manifest, len(mask), longest[place]):
            raise _refusal(manifest, first + place, len(mask))


def _pads(manifest: Manifest, size: int, longest: int) -> bool:
    """Tell whether the bundle pads a row with so many tokens, and so many in its longest input."""
    general = manifest.general
    if general is not None and longest >= general.shortest:
        return False
    return size != smallest_fit(manifest.lengths, longest)


def _refusal(manifest: Manifest, row: int, size: int) -> ValueError:
    lengths = ", ".join(map(str, manifest.lengths))
    return ValueError(
        f"{MASK}: row {row}: expected ones, then zeros, got a zero before a one in a row of {size} "
        "tokens, which are padded on the right as well: both together change the result of this "
        f"model. Pad on the right alone, or on the left to exactly {lengths} tokens."
    )
