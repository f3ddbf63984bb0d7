"""Token ids that a probe may use, read from the checkpoint's own files.

Random ids avoid every special id: a padding, mask or end token in the middle of a row makes many
heads behave differently (BART's classification counts end tokens), which would test the sampler
and not the trace.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UnsafeCheckpointError

_SPECIAL_NAMES = ("bos", "eos", "pad", "cls", "sep", "mask", "unk", "decoder_start")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Token ids of one checkpoint.

    Attributes:
        size: Rows of the input embedding; ids are 0 … size-1.
        special: Ids that random draws leave out.
        pad: Id that fills up to a standard length.
        eos: Id at the last valid position of encoder-decoder rows; None elsewhere.
        decoder_start: First decoder id; None for models without a decoder input.
    """

    size: int
    special: frozenset[int]
    pad: int
    eos: int | None = None
    decoder_start: int | None = None


#: Vocabulary of models that read an image or a sound.
NO_TOKENS = Vocabulary(size=0, special=frozenset(), pad=0)


def read_vocabulary(folder: Path, config: Any, size: int) -> Vocabulary:
    """Collect special ids from the config and from ``tokenizer.json``.

    Args:
        folder: Folder of the checkpoint.
        config: Configuration of the model.
        size: Rows of the input embedding.
    """
    named = {name: _first(getattr(config, f"{name}_token_id", None)) for name in _SPECIAL_NAMES}
    pad = _find_pad(folder, named)
    ids = {pad, *named.values(), *_read_added_ids(folder)}
    special = frozenset(one for one in ids if one is not None and 0 <= one < size)
    eos = start = None
    if getattr(config, "is_encoder_decoder", False):
        eos, start = named["eos"], named["decoder_start"]
        start = pad if start is None else start
    # A padding id beyond the table would make every padded call fail.
    pad = pad if 0 <= pad < size else 0
    return Vocabulary(size=size, special=special, pad=pad, eos=eos, decoder_start=start)


def _find_pad(folder: Path, named: dict[str, int | None]) -> int:
    """Return the padding id of the config, of the tokenizer, or any: a mask hides it."""
    # GPT-2 and its like have no padding token.
    for one in (named["pad"], _read_tokenizer_pad(folder), named["eos"]):
        if one is not None:
            return one
    return 0


def _first(value: Any) -> int | None:
    if isinstance(value, list | tuple):
        return _first(value[0]) if value else None
    return value if isinstance(value, int) else None


def _read_added_ids(folder: Path) -> set[int]:
    added = read_json(folder / "tokenizer.json").get("added_tokens") or []
    return {token["id"] for token in added if token.get("special")}


def _read_tokenizer_pad(folder: Path) -> int | None:
    padding = read_json(folder / "tokenizer.json").get("padding") or {}
    return _first(padding.get("pad_id"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in one of the tokenizer's files; empty where there is no such file.

    Raises:
        UnsafeCheckpointError: The file is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsafeCheckpointError(
            f"{path.name}: expected JSON, got something else ({error}). It is damaged, or a "
            "git-lfs pointer that was never pulled; fetch the checkpoint again."
        ) from error
    return value if isinstance(value, dict) else {}
