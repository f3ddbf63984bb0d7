"""Constants of a checkpoint's search, from its generation config or from a manifest.

A bundle holds its search already. Neuron's programs get theirs when they are opened, written of
what the manifest says: whatever is no constant of a search is refused.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any

from tracefleet.decode import decode
from tracefleet.errors import ManifestError
from tracefleet.generation_types import Generation

_STOPS = ("true", "false", "never")
_MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Constants of a checkpoint's search, under transformers' names where they mean the same.

    Attributes:
        start: first id of the decoder.
        pad: id that fills up a row that has ended.
        eos: ids that end a row.
        fill: id that fills up a beam's row; transformers takes the end's where the padding's is 0.
        bad_words: sequences that never come out.
        max_length: most ids of an answer, the first one included, of a call that says nothing.
        early_stopping: ``true``: beams stop at as many ends as beams; ``false``: where the best
            open beam can't win, by its present length; ``never``: by the largest length.
    """

    start: int
    pad: int
    eos: tuple[int, ...]
    fill: int
    bad_words: tuple[tuple[int, ...], ...] = ()
    max_length: int = 20
    num_beams: int = 1
    early_stopping: str = "false"
    length_penalty: float = 1.0
    min_length: int = 0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    renormalize_logits: bool = False

    def describe(self) -> dict[str, str]:
        """Return every constant that is not its default, in JSON, for the manifest."""
        described = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                described[field.name] = json.dumps(value)
        return described


def read_constants(generation: Generation) -> Decoding:
    """Return the constants that a manifest describes.

    Raises:
        ManifestError: one is unknown, missing or of another kind, or contradicts the manifest.
    """
    raw: dict[str, Any] = {}
    for field in fields(Decoding):
        if field.default is not MISSING:
            raw[field.name] = _as_json(field.default)
    for name, text in generation.options.items():
        raw[name] = _parse(name, text)
    found = decode(Decoding, raw, where="generation.options")
    if found.early_stopping not in _STOPS:
        raise ManifestError(f"early_stopping: expected one of {_STOPS}, got {found.early_stopping}")
    _check_numbers(found)
    for name in ("start", "pad", "eos", "num_beams"):
        told, constant = getattr(generation, name), getattr(found, name)
        if told != constant:
            raise ManifestError(f"generation: {name} expected {constant} of options, got {told}")
    return found


def _check_numbers(found: Decoding) -> None:
    """Refuse numbers that no search has: TorchScript's are of 64 bits, ids and sizes of 31."""
    if not all(found.bad_words):
        raise ManifestError("generation.options.bad_words: expected words of ids, got an empty one")
    numbers: list[float] = []
    for field in fields(found):
        numbers += _list_numbers(getattr(found, field.name))
    wrong = [number for number in numbers if not -_MOST <= number <= _MOST]
    if wrong:
        raise ManifestError(f"generation.options: expected numbers up to {_MOST}, got {wrong[0]}")
    sizes = (found.no_repeat_ngram_size, found.encoder_no_repeat_ngram_size)
    if min(sizes) < 0 or found.repetition_penalty <= 0:
        raise ManifestError(
            f"generation.options: expected sizes of at least 0 and a penalty over 0, got {sizes} "
            f"and {found.repetition_penalty}"
        )


def _list_numbers(value: object) -> list[float]:
    if isinstance(value, tuple):
        return [number for one in value for number in _list_numbers(one)]
    return [value] if isinstance(value, int | float) else []


def _as_json(value: object) -> Any:
    return json.loads(json.dumps(value))


def _parse(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"generation.options.{name}: expected JSON, got {text!r}") from error
