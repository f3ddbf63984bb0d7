"""What each peer is asked to compute: inputs of one length and batch, or texts as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracefleet.bench.conversions import Conversion
from tracefleet.bench.rows import Rows, TextRows, read_rows
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import LENGTH_AXES, InputSpec, OutputSpec
from tracefleet.published import open_verified
from tracefleet.store import ReadableStore

if TYPE_CHECKING:
    import torch

_CONFIG = "model/config.json"
_IDS = ("input_ids", "decoder_input_ids")
#: Of an unknown vocabulary only the first few ids are drawn.
_FEW_IDS = 100
_MIXED_ROWS = 128
#: Rows of a call of the peers that take no ragged rows.
PADDED_ROWS = 32
#: Most values in the results of one call of mixed rows: one gigabyte of float32.
_MOST_VALUES = 1 << 28
_SEED = 13

Feed = dict[str, "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that every peer computes.

    Attributes:
        length: tokens of each row; None: texts as they come.
        rows: how many rows.
        feed: tensors of each input, in the conversion's order; empty for texts as they come.
        texts: ids of each row, of unequal lengths; empty otherwise.
    """

    length: int | None
    rows: int
    feed: Feed
    texts: Rows


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How inputs of a conversion are made.

    Attributes:
        manifest: of the conversion.
        texts: real texts, or why there are none.
        draw: returns random ids of a shape, if there are none.
    """

    manifest: Manifest
    texts: TextRows | str
    draw: Callable[[tuple[int, ...]], torch.Tensor]

    @property
    def described(self) -> str:
        """What the inputs are, in words."""
        if isinstance(self.texts, TextRows):
            return f"real texts ({self.texts.described}), cut or joined to each length"
        if self.manifest.inputs[0].name in _IDS:
            return f"random ids ({self.texts})"
        return "random values"


def prepare_inputs(store: ReadableStore, conversion: Conversion, texts: Path | None) -> Inputs:
    """Return how inputs are made.

    Args:
        store: store of the conversion.
        conversion: whose tokenizer and config are used.
        texts: file of texts, one a line; None: built-in ones.

    Raises:
        BenchError: ``texts`` are given, and can't be read or tokenized.
        DigestMismatchError: a file was changed since publishing.
    """
    selection, manifest = conversion.selection, conversion.manifest
    rows = read_rows(store, selection, manifest, texts)
    file = next((file for file in manifest.files if file.path == _CONFIG), None)
    config: dict[str, Any] = {}
    if file is not None:
        with open_verified(store, selection, file) as handle:
            config = json.load(handle)
    return Inputs(manifest=manifest, texts=rows, draw=_make_draw(config))


def _make_draw(config: dict[str, Any]) -> Callable[[tuple[int, ...]], torch.Tensor]:
    import torch

    texts = config.get("text_config") or {}
    size = config.get("vocab_size") or texts.get("vocab_size") or _FEW_IDS
    generator = torch.Generator().manual_seed(_SEED)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        # The middle half: special ids, which many heads treat otherwise, lie at the ends.
        ids = torch.randint(size // 4, size * 3 // 4, shape, generator=generator)
        if config.get("is_encoder_decoder") and isinstance(config.get("eos_token_id"), int):
            ids[..., -1] = config["eos_token_id"]  # BART's classification reads it there
        return ids

    return draw


def make_cases(inputs: Inputs, lengths: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Return a case for each length and batch, and one of mixed lengths where it makes sense."""
    cases = []
    for length in lengths:
        for rows in batches:
            feed = make_feed(inputs, length, rows)
            cases.append(Case(length=length, rows=rows, feed=feed, texts=[]))
    if explain_unmixed(inputs) is None:
        texts = _mix(inputs)
        cases.append(Case(length=None, rows=len(texts), feed={}, texts=texts))
    return cases


def make_feed(inputs: Inputs, length: int, rows: int) -> Feed:
    """Return the tensors of one call."""
    return {spec.name: _make_input(inputs, spec, length, rows) for spec in inputs.manifest.inputs}


def _make_input(inputs: Inputs, spec: InputSpec, length: int, rows: int) -> torch.Tensor:
    import torch

    shape = spec.shape(batch=rows, length=length)
    if not spec.dtype.startswith("int"):
        generator = torch.Generator().manual_seed(_SEED)
        # Eager's own type; a conversion in half precision takes it and converts it.
        return torch.randn(shape, generator=generator)
    if spec.name in _IDS:
        if isinstance(inputs.texts, TextRows):
            return torch.tensor(inputs.texts.cut(length, rows))
        return inputs.draw(shape)
    return torch.full(shape, spec.fill_value or 0)


def explain_unmixed(inputs: Inputs) -> str | None:
    """Return why rows of unequal lengths are not measured; None: they are."""
    if not isinstance(inputs.texts, TextRows):
        return "no real texts"
    specs = {spec.name: spec for spec in inputs.manifest.inputs}
    if specs["input_ids"].pad_value is None or "attention_mask" not in specs:
        return "the model's rows are never padded"
    needed = [name for name, spec in specs.items() if spec.fill_value is None]
    if needed != ["input_ids"]:
        return f"the model needs {' and '.join(needed)}"
    return None


def _mix(inputs: Inputs) -> Rows:
    """Return texts as they come, as many as fit into memory with their results."""
    assert isinstance(inputs.texts, TextRows)
    manifest = inputs.manifest
    rows = inputs.texts.keep(manifest.lengths[-1], _MIXED_ROWS)
    longest = max(map(len, rows))
    values = sum(_count_values(spec, longest) for spec in manifest.outputs)
    return rows[: max(PADDED_ROWS, _MOST_VALUES // values)]


def _count_values(spec: OutputSpec, length: int) -> int:
    """Return how many numbers one row of an output has."""
    sizes = dict.fromkeys(LENGTH_AXES, length)
    return math.prod(sizes.get(axis) or int(axis) for axis in spec.axes[1:])


def pad_rows(manifest: Manifest, rows: Rows) -> Feed:
    """Return the tensors of rows that are padded to the longest of them."""
    import torch

    longest = max(map(len, rows))
    feed = {}
    for spec in manifest.inputs:
        fill = spec.fill_value or 0
        if spec.name == "input_ids":
            pad = spec.pad_value or 0
            values = [row + [pad] * (longest - len(row)) for row in rows]
        elif spec.name == "attention_mask":
            values = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        else:
            values = [[fill] * longest for _ in rows]
        feed[spec.name] = torch.tensor(values)
    return feed
