"""Answers to texts, as people know them from transformers' pipelines and sentence-transformers.

``Model.predict`` calls ``predict``, which chooses by the conversion's task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Protocol

from tracefleet.errors import TextRefusedError
from tracefleet.manifest import Manifest
from tracefleet.reader.outputs import Outputs
from tracefleet.reader.texts import Texts
from tracefleet.text import entities, fill, labels, spans
from tracefleet.text.rows import is_single, read_rows
from tracefleet.text.tokenize import Row

#: Rows that are sorted by length together; fewer where each token has scores for a vocabulary.
_WINDOW, _VOCABULARY_WINDOW = 1024, 64
#: The task that answers by generating, where the conversion has a search.
_WRITING = "text2text-generation"


class Runnable(Protocol):
    """What of a `Model` is needed here."""

    manifest: Manifest

    def __call__(self, **named: Any) -> Outputs:
        """Run all rows and return their outputs together."""

    def stream(self, rows: Iterable[Any], *, window: int) -> Iterator[Outputs]:
        """Run rows and yield each one's outputs, without batch axis and padding."""

    def _write(self, rows: list[Row], *, truncate: bool) -> list[str]:
        """Return the text that an encoder-decoder writes for each text."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a caller asked for beside the texts; see ``Model.predict``."""

    truncate: bool = False
    prompt: str | None = None
    prompt_name: str | None = None
    top_k: int | EllipsisType | None = ...
    aggregation: str = "none"
    choices: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Refuse what no task can answer."""
        if isinstance(self.top_k, int) and (isinstance(self.top_k, bool) or self.top_k < 1):
            raise ValueError(f"top_k: expected at least 1, or None for all, got {self.top_k!r}")
        if self.aggregation not in entities.AGGREGATIONS:
            raise ValueError(
                f"aggregation: expected one of {entities.AGGREGATIONS}, got {self.aggregation!r}"
            )


def predict(model: Runnable, texts: Texts, given: Any, asked: Asked) -> Any:
    """Return one answer for each row; a single text or pair gets the answer itself."""
    answer = _ANSWERS.get(model.manifest.variant.task)
    if answer is None:
        raise _explain_task(model.manifest)
    rows = texts.prompted(read_rows(given), asked.prompt, asked.prompt_name)
    if not rows:
        return answer(model, texts, rows, asked) if answer is _embed else []
    answers = answer(model, texts, rows, asked)
    return answers[0] if is_single(given) else answers


def answers_texts(manifest: Manifest) -> bool:
    """Tell whether ``predict`` has answers to texts for a conversion."""
    task = manifest.variant.task
    if task == _WRITING:
        return manifest.generation is not None
    return task in _ANSWERS


def classify_media(model: Runnable, texts: Texts, named: dict[str, Any], asked: Asked) -> Any:
    """Return a list of the best classes for each image or sound, five unless told otherwise."""
    outputs = model(**named)
    if model.manifest.variant.task not in ("image-classification", "audio-classification"):
        raise ValueError("predict: expected texts, got other inputs; call the model with those")
    most = 5 if asked.top_k is ... else asked.top_k
    return [labels.score_labels(one, texts.spec)[:most] for one in _to_numpy(outputs["logits"])]


def _explain_task(manifest: Manifest) -> TextRefusedError:
    task = manifest.variant.task
    reason = "it is asked in images or sounds. Give predict their inputs by name"
    if task == "text-generation":
        reason = "it writes no text yet: one call is one step. Call the model for its logits"
    return TextRefusedError(
        f"{manifest.source}: predict expected a task with answers to texts, got {task}: {reason}."
    )


def _embed(model: Runnable, texts: Texts, rows: list[Row], asked: Asked) -> Any:
    """Return an array of shape ``(rows, width)``, what ``encode`` gives.

    ``encode`` cuts long texts at ``max_seq_length`` without a word. So is it here, where the
    conversion is as long: a conversion with shorter lengths would cut more than the checkpoint
    does, and that is an error unless the caller asks for it.
    """
    import numpy as np

    spec, largest = texts.spec, model.manifest.lengths[-1]
    [output] = [one for one in model.manifest.outputs if one.name == "sentence_embedding"]
    if not rows:
        return np.zeros((0, int(output.axes[-1])), dtype=np.float32)
    fits = spec.max_tokens is not None and spec.max_tokens <= largest
    encodings = texts.encode(rows, truncate=asked.truncate or fits)
    return model(**texts.feed(encodings))[output.name]


def _extract(model: Runnable, texts: Texts, rows: list[Row], asked: Asked) -> list[Any]:
    """Return an array of shape ``(tokens, width)`` for each text: the model's first output."""
    return [found[0] for _, found in _run(model, texts, rows, asked)]


def _classify(model: Runnable, texts: Texts, rows: list[Row], asked: Asked) -> list[Any]:
    found = []
    for _, outputs in _run(model, texts, rows, asked):
        scored = labels.score_labels(outputs["logits"], texts.spec)
        found.append(scored[0] if asked.top_k is ... else scored[: asked.top_k])
    return found


def _fill(model: Runnable, texts: Texts, rows: list[Row], asked: Asked) -> list[Any]:
    spec, tokenizer = texts.spec, texts.positions
    encodings = texts.encode(rows, truncate=asked.truncate)
    mask = tokenizer.find_id(spec.special.get("mask"))
    for encoding in encodings:
        fill.find_masks(encoding.ids, mask, spec)
    top_k = asked.top_k if isinstance(asked.top_k, int) else 5
    found = []
    for encoding, outputs in _run_encoded(model, texts, encodings, _VOCABULARY_WINDOW):
        logits = outputs["logits"]
        found.append(fill.fill_masks(logits, encoding.ids, top_k, tokenizer, spec))
    return found


def _tag(model: Runnable, texts: Texts, rows: list[Row], asked: Asked) -> list[Any]:
    spec, tokenizer = texts.spec, texts.positions
    if any(not isinstance(row, str) for row in rows):
        raise ValueError("token-classification: expected texts, got pairs of texts")
    found = []
    results = _run(model, texts, rows, asked)
    for row, (encoding, outputs) in zip(rows, results, strict=True):
        logits, text = outputs["logits"], str(row)
        found.append(
            entities.find_entities(logits, encoding, text, tokenizer, spec, asked.aggregation)
        )
    return found


def _answer(model: Runnable, texts: Texts, rows: list[Row], asked: Asked) -> list[Any]:
    """Return the answer's span of each pair of question and context."""
    spec, tokenizer = texts.spec, texts.positions
    largest = model.manifest.lengths[-1]
    most = min(largest, spec.max_tokens or largest)
    top_k = asked.top_k if isinstance(asked.top_k, int) else 1
    found = []
    for place, row in enumerate(rows):
        if isinstance(row, str):
            raise ValueError(f"text {place}: expected a pair (question, context), got one text")
        windows = spans.make_windows(*row, most, tokenizer, spec)
        results = _run_encoded(model, texts, [window.encoding for window in windows])
        scored = []
        for window, (_, outputs) in zip(windows, results, strict=True):
            scored.append((window, outputs["start_logits"], outputs["end_logits"]))
        answers = spans.find_answers(scored, row[1], top_k, tokenizer, spec)
        found.append(answers[0] if asked.top_k is ... else answers)
    return found


def _choose(model: Runnable, texts: Texts, rows: list[Row], asked: Asked) -> list[Any]:
    """Return for each text the choice with the best score."""
    if not asked.choices or any(not isinstance(row, str) for row in rows):
        raise ValueError(
            "multiple-choice: expected predict(text, choices=[…]), got pairs or no choices"
        )
    found = []
    for row in rows:
        pairs: list[Row] = [(str(row), choice) for choice in asked.choices]
        feed = texts.feed(texts.encode(pairs, truncate=asked.truncate))
        outputs = model(**_stack(model, feed))
        scores = labels.softmax(outputs["logits"][0])
        best = int(scores.argmax())
        found.append({"choice": asked.choices[best], "index": best, "score": float(scores[best])})
    return found


def _write(model: Runnable, texts: Texts, rows: list[Row], asked: Asked) -> list[Any]:
    return list(model._write(rows, truncate=asked.truncate))


def _stack(model: Runnable, feed: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Return one row of choices, shape ``(1, choices, tokens)``, padded to the longest."""
    import numpy as np

    pads = {spec.name: spec.pad_value or 0 for spec in model.manifest.inputs}
    shape = len(feed["input_ids"]), max(map(len, feed["input_ids"]))
    stacked = {name: np.full(shape, pads[name], dtype=np.int64) for name in feed}
    shown = np.zeros(shape, dtype=np.int64)
    for place, ids in enumerate(feed["input_ids"]):
        shown[place, : len(ids)] = 1
        for name, rows in feed.items():
            stacked[name][place, : len(ids)] = rows[place]
    if "attention_mask" in pads:
        stacked["attention_mask"] = shown
    return {name: values[None] for name, values in stacked.items()}


def _run(
    model: Runnable, texts: Texts, rows: list[Row], asked: Asked
) -> Iterator[tuple[Any, Outputs]]:
    return _run_encoded(model, texts, texts.encode(rows, truncate=asked.truncate))


def _run_encoded(
    model: Runnable, texts: Texts, encodings: Sequence[Any], window: int = _WINDOW
) -> Iterator[tuple[Any, Outputs]]:
    """Yield each encoding with its own outputs, without batch axis and padding."""
    feed = texts.feed(encodings)
    inputs = [dict(zip(feed, row, strict=True)) for row in zip(*feed.values(), strict=True)]
    yield from zip(encodings, model.stream(inputs, window=window), strict=True)


def _to_numpy(values: Any) -> Any:
    return values.cpu().float().numpy() if hasattr(values, "cpu") else values


_ANSWERS: dict[str, Callable[[Runnable, Texts, list[Row], Asked], Any]] = {
    "sentence-similarity": _embed,
    "feature-extraction": _extract,
    "text-classification": _classify,
    "fill-mask": _fill,
    "token-classification": _tag,
    "question-answering": _answer,
    "multiple-choice": _choose,
    _WRITING: _write,
}
