"""Tokens for the masked places of a text, as transformers' pipeline for fill-mask gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracefleet.text.labels import softmax
from tracefleet.text.spec import TextSpec
from tracefleet.text.tokenize import TextTokenizer


def find_masks(ids: Sequence[int], mask: int | None, spec: TextSpec) -> list[int]:
    """Return the positions of a text's masks.

    Raises:
        ValueError: there is none, or the tokenizer has no such token.
    """
    places = [place for place, one in enumerate(ids) if one == mask]
    if not places:
        token = spec.special.get("mask", "a mask token, which this tokenizer lacks")
        raise ValueError(f"fill-mask: expected at least one {token} in each text, got none")
    return places


def fill_masks(
    logits: Any, ids: Sequence[int], top_k: int, tokenizer: TextTokenizer, spec: TextSpec
) -> list[Any]:
    """Return the best tokens of one mask; of several masks a list for each.

    Args:
        logits: array of shape ``(tokens, vocabulary)``.
        ids: the text's ids.
        top_k: how many tokens for each mask.
        tokenizer: decodes them.
        spec: the mask's spelling.

    Returns:
        ``score``, ``token`` (its id), ``token_str`` and ``sequence`` (the whole text with it).
    """
    import numpy as np

    places = find_masks(ids, tokenizer.find_id(spec.special.get("mask")), spec)
    found = []
    for place in places:
        scores = softmax(np.asarray(logits[place], dtype=np.float32))
        best = np.argsort(-scores, kind="stable")[:top_k]
        row = [_fill(ids, place, int(one), tokenizer, spec, len(places) == 1) for one in best]
        for entry, one in zip(row, best, strict=True):
            entry["score"] = float(scores[one])
        found.append(row)
    return found[0] if len(found) == 1 else found


def _fill(
    ids: Sequence[int],
    place: int,
    token: int,
    tokenizer: TextTokenizer,
    spec: TextSpec,
    single: bool,
) -> dict[str, Any]:
    """Return one filled text; the other masks of several stay to be seen in it."""
    pad, clean = tokenizer.find_id(spec.special.get("pad")), spec.clean_up_spaces
    filled = [*ids[:place], token, *ids[place + 1 :]]
    shown = [one for one in filled if one != pad]
    return {
        "score": 0.0,
        "token": token,
        "token_str": tokenizer.decode([token], skip_special=False, clean_up=clean),
        "sequence": tokenizer.decode(shown, skip_special=single, clean_up=clean),
    }
