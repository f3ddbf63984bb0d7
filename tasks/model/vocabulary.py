"""Which token ids a probe may use, read from the checkpoint's own files.

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
        size: rows of the input embedding; ids are 0 … size-1.
        special: ids that random draws leave out.
        pad: fills up to a standard length.
        eos: stands at the last valid position of encoder-decoder rows; None elsewhere.
        decoder_start: the first decoder id; None for models without a decoder input.
    """

    size: int
    special: frozenset[int]
    pad: int
    eos: int | None = None
    decoder_start: int | None = None


#: Of models that read an image or a sound.
NO_TOKENS = Vocabulary(size=0, special=frozenset(), pad=0)


def read_vocabulary(folder: Path, config: Any, size: int) -> Vocabulary:
    """Collect special ids from the config and from ``tokenizer.json``.

    Args:
        folder: the checkpoint's folder.
        config: the model's configuration.
        size: rows of the input embedding.
    """
    named = {name: _first(getattr(config, f"{name}_token_id", None)) for name in _SPECIAL_NAMES}
    ids = {i for i in named.values() if i is not None} | _added_special_ids(folder)
    pad = named["pad"] if named["pad"] is not None else _tokenizer_pad(folder)
    if pad is None:  # GPT-2 and friends have no padding token; the mask hides whatever stands there
        pad = named["eos"] if named["eos"] is not None else 0
    is_pair = bool(getattr(config, "is_encoder_decoder", False))
    start = named["decoder_start"] if named["decoder_start"] is not None else pad
    return Vocabulary(
        size=size,
        special=frozenset(i for i in ids | {pad} if 0 <= i < size),
        pad=pad if 0 <= pad < size else 0,
        eos=named["eos"] if is_pair else None,
        decoder_start=start if is_pair else None,
    )


def _first(value: Any) -> int | None:
    if isinstance(value, list | tuple):
        return _first(value[0]) if value else None
    return value if isinstance(value, int) else None


def _added_special_ids(folder: Path) -> set[int]:
    added = read_json(folder / "tokenizer.json").get("added_tokens") or []
    return {token["id"] for token in added if token.get("special")}


def _tokenizer_pad(folder: Path) -> int | None:
    padding = read_json(folder / "tokenizer.json").get("padding") or {}
    return _first(padding.get("pad_id"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in one of the tokenizer's files; empty where there is no such file.

    Raises:
        UnsafeCheckpointError: the file is no JSON.
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
