"""Entities of a text, as transformers' pipeline for token-classification gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracefleet.text.labels import softmax
from tracefleet.text.spec import TextSpec
from tracefleet.text.tokenize import TextTokenizer

#: Class of tokens that belong to no entity.
OUTSIDE = "O"
AGGREGATIONS = ("none", "simple")

Entity = dict[str, Any]


def find_entities(
    logits: Any,
    encoding: Any,
    text: str,
    tokenizer: TextTokenizer,
    spec: TextSpec,
    aggregation: str,
) -> list[Entity]:
    """Return the entities of one text; tokens outside of any are left out.

    Args:
        logits: array of shape ``(tokens, classes)``.
        encoding: the text's encoding.
        text: the text that was encoded.
        tokenizer: joins the tokens of an entity.
        spec: names of the classes.
        aggregation: ``none``: each token by itself (``entity``, ``score``, ``index``, ``word``,
            ``start``, ``end``); ``simple``: tokens side by side of one class together
            (``entity_group``, ``score``, ``word``, ``start``, ``end``), where ``B-`` begins anew.
    """
    tokens = list(_read_tokens(logits, encoding, text, tokenizer, spec))
    if aggregation == "none":
        return [one for one in tokens if one["entity"] != OUTSIDE]
    groups = [_join(group, tokenizer) for group in _group(tokens)]
    return [one for one in groups if one["entity_group"] != OUTSIDE]


def _read_tokens(
    logits: Any, encoding: Any, text: str, tokenizer: TextTokenizer, spec: TextSpec
) -> Iterator[Entity]:
    import numpy as np

    scores = softmax(np.asarray(logits, dtype=np.float32))
    unknown = tokenizer.find_id(spec.special.get("unk"))
    for place, special in enumerate(encoding.special_tokens_mask):
        if special:
            continue
        best, (start, end) = int(scores[place].argmax()), encoding.offsets[place]
        word = encoding.tokens[place]
        if encoding.ids[place] == unknown:
            word = text[start:end]
        yield {
            "entity": spec.label(best),
            "score": float(scores[place, best]),
            "index": place,
            "word": word,
            "start": start,
            "end": end,
        }


def _group(tokens: list[Entity]) -> Iterator[list[Entity]]:
    group: list[Entity] = []
    for token in tokens:
        begins, tag = _read_tag(token["entity"])
        if group and (begins or tag != _read_tag(group[-1]["entity"])[1]):
            yield group
            group = []
        group.append(token)
    if group:
        yield group


def _read_tag(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity, and the entity's class."""
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label


def _join(group: list[Entity], tokenizer: TextTokenizer) -> Entity:
    words = [one["word"] for one in group]
    return {
        "entity_group": group[0]["entity"].split("-", 1)[-1],
        "score": sum(one["score"] for one in group) / len(group),
        "word": tokenizer.join_tokens(words),
        "start": group[0]["start"],
        "end": group[-1]["end"],
    }
