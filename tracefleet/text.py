"""Texts as token ids, by the tokenizer that is published with a conversion."""

from __future__ import annotations

from typing import Any

#: Path of the tokenizer in a conversion's folder.
TOKENIZER = "model/tokenizer.json"


def load_tokenizer(data: bytes) -> Any:
    """Return a tokenizer that neither pads nor cuts, from the bytes of ``tokenizer.json``.

    Raises:
        ValueError: they are no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"tokenizer.json: expected a tokenizer, got: {error}") from error
    # The checkpoint's own limits would cut the text silently.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(tokenizer: Any, text: str, pair: str | None, most: int | None = None) -> list[int]:
    """Return the ids of a text or a pair.

    Args:
        tokenizer: what ``load_tokenizer`` returned.
        text: the text, or the first of a pair.
        pair: the second of a pair; None: a text by itself.
        most: number of ids to cut to, special ones included; None: all of them.
    """
    if most is not None:
        tokenizer.enable_truncation(max_length=most)
    try:
        ids: list[int] = tokenizer.encode(text, pair).ids
    finally:
        tokenizer.no_truncation()
    return ids
