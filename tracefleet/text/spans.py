"""The answer to a question in its context, as transformers' pipeline gave it up to version 4.

Version 5 has no such pipeline any more. A long context is read in overlapping windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tracefleet.text.labels import softmax
from tracefleet.text.spec import TextSpec
from tracefleet.text.tokenize import TextTokenizer

#: The pipeline's own defaults, in tokens.
MOST_TOKENS, STRIDE, LONGEST_ANSWER = 384, 128, 15
_HIDDEN = -10000.0

Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Window:
    """One part of a context together with its question.

    Attributes:
        encoding: encoding of both.
        context: which of its two sequences is the context: 0 or 1.
    """

    encoding: Any
    context: int


def make_windows(
    question: str, context: str, most: int, tokenizer: TextTokenizer, spec: TextSpec
) -> list[Window]:
    """Return the windows of one context, at most ``min(most, 384)`` tokens each.

    Raises:
        ValueError: question or context is empty.
        InputTooLongError: the question leaves no room for the context.
    """
    if not question.strip() or not context.strip():
        raise ValueError("question-answering: expected a question and a context, got an empty text")
    most = min(most, MOST_TOKENS)
    stride = min(most // 2, STRIDE)
    # As the pipeline does: tokenizers that pad on the left have the context first.
    place = 1 if spec.padding_side == "right" else 0
    row = (question, context) if place else (context, question)
    strategy = "only_second" if place else "only_first"
    windows = tokenizer.encode_windows(row, most=most, stride=stride, strategy=strategy)
    return [Window(encoding=one, context=place) for one in windows]


def find_answers(
    windows: Sequence[tuple[Window, Any, Any]],
    context: str,
    top_k: int,
    tokenizer: TextTokenizer,
    spec: TextSpec,
) -> list[Answer]:
    """Return the best spans of a context: ``score``, ``start``, ``end`` and ``answer``.

    A span that two windows hold has the better of its two scores, and so have spans of tokens in
    the same words: there may be fewer than ``top_k``.

    Args:
        windows: each with its start and end logits, of shape ``(tokens,)``.
        context: the context.
        top_k: how many spans.
        tokenizer: knows the id of the first token.
        spec: its spelling.
    """
    cls = tokenizer.find_id(spec.special.get("cls"))
    best: dict[tuple[int, int], float] = {}
    for window, starts, ends in windows:
        for score, first, last in _score_spans(window, starts, ends, cls, top_k):
            span = _align(window, first, last)
            best[span] = max(score, best.get(span, 0.0))
    ranked = sorted(best.items(), key=lambda item: -item[1])[:top_k]
    answers = []
    for (start, end), score in ranked:
        answer = context[start:end]
        answers.append({"score": score, "start": start, "end": end, "answer": answer})
    return answers


def _score_spans(
    window: Window, starts: Any, ends: Any, cls: int | None, top_k: int
) -> list[tuple[float, int, int]]:
    """Return the best spans of one window: score, first and last token."""
    import numpy as np

    ids, parts = np.array(window.encoding.ids), window.encoding.sequence_ids
    # The first token is compared with the others, as training does for "no answer".
    inside = np.array([part == window.context for part in parts])
    compared = inside | (ids == cls) if cls is not None else inside
    first = softmax(np.where(compared, np.asarray(starts, np.float32), _HIDDEN))
    last = softmax(np.where(compared, np.asarray(ends, np.float32), _HIDDEN))
    spans = np.outer(np.where(inside, first, 0.0), np.where(inside, last, 0.0))
    spans = np.tril(np.triu(spans), LONGEST_ANSWER - 1)
    found = []
    for place in np.argsort(-spans.flatten(), kind="stable")[:top_k]:
        start, end = divmod(int(place), len(ids))
        if inside[start] and inside[end]:
            found.append((float(spans[start, end]), start, end))
    return found


def _align(window: Window, first: int, last: int) -> tuple[int, int]:
    """Return the characters of a span, widened to whole words where the tokenizer knows words."""
    encoding = window.encoding
    start_word, end_word = encoding.token_to_word(first), encoding.token_to_word(last)
    if start_word is None or end_word is None:
        return encoding.offsets[first][0], encoding.offsets[last][1]
    start = encoding.word_to_chars(start_word, window.context)
    end = encoding.word_to_chars(end_word, window.context)
    if start is None or end is None:
        return encoding.offsets[first][0], encoding.offsets[last][1]
    return start[0], end[1]
