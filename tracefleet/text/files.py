"""Read `TextSpec` from a checkpoint's files.

The pipeline calls it at conversion and corrects it by the tokenizer that transformers loads; the
reader calls it for conversions whose manifest has no section ``text``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracefleet.text.spec import ROLES, SIDES, TextSpec

SENTENCE_SIMILARITY = "sentence-similarity"
_WRITING = "text2text-generation"
#: Where sentence-transformers looks for ``max_seq_length`` and ``do_lower_case``, in its order.
SENTENCE_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
PROMPTS = "config_sentence_transformers.json"
#: transformers writes a number like this where a tokenizer has no limit.
_NO_LIMIT = 10**9

#: Returns a file's bytes by its name; None: there is no such file.
ReadFile = Callable[[str], bytes | None]


def read_spec(read: ReadFile, task: str) -> TextSpec:
    """Return what the files of a checkpoint say about its texts.

    Prompts, lower-casing and ``max_seq_length`` of sentence-transformers are of its own task alone:
    a pipeline for another task applies none of them.
    """
    config, tokenizer = _read(read, "config.json"), _read(read, "tokenizer_config.json")
    mapped = _read(read, "special_tokens_map.json")
    known: dict[str, Any] = {"max_tokens": _limit(tokenizer.get("model_max_length"))}
    for name in ("truncation_side", "padding_side"):
        if tokenizer.get(name) in SIDES:
            known[name] = tokenizer[name]
    if task == SENTENCE_SIMILARITY:
        known |= _read_sentence(read, config, known["max_tokens"])
    if task == _WRITING:
        known["prompts"] = _read_prefixes(config)
    return TextSpec(
        **{"prompts": {}, **known},
        special=_read_special({**mapped, **tokenizer}),
        clean_up_spaces=tokenizer.get("clean_up_tokenization_spaces") is True,
        labels=_read_labels(config),
        problem_type=_text_or_none(config.get("problem_type")),
    )


def _read(read: ReadFile, name: str) -> dict[str, Any]:
    data = read(name)
    try:
        found = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def reading(folder: Path) -> ReadFile:
    """Return a function that reads a folder's files."""

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    return read


def read_sentence_limit(read: ReadFile) -> int | None:
    """Return sentence-transformers' ``max_seq_length``; None: no file says one."""
    return _limit(_read_sentence_config(read).get("max_seq_length"))


def _read_sentence_config(read: ReadFile) -> dict[str, Any]:
    configs = [_read(read, name) for name in SENTENCE_CONFIGS]
    return next(filter(None, configs), {})


def _read_sentence(
    read: ReadFile, config: dict[str, Any], tokenizer_limit: int | None
) -> dict[str, Any]:
    """Return what sentence-transformers 6.2 does to a text around its tokenizer."""
    found = _read_sentence_config(read)
    limit = _limit(found.get("max_seq_length")) or tokenizer_limit
    positions = _limit(config.get("max_position_embeddings"))
    limits = [one for one in (limit, positions) if one is not None]
    said = _read(read, PROMPTS)
    prompts = said.get("prompts")
    pairs = prompts.items() if isinstance(prompts, dict) else ()
    return {
        "max_tokens": min(limits, default=None),
        "lower_case": found.get("do_lower_case") is True,
        "prompts": {str(name): text for name, text in pairs if isinstance(text, str)},
        "default_prompt": _text_or_none(said.get("default_prompt_name")),
    }


def _read_prefixes(config: dict[str, Any]) -> dict[str, str]:
    """Return T5's prefixes by the names of what they ask for, such as ``translation_en_to_de``."""
    asked = config.get("task_specific_params")
    named = asked.items() if isinstance(asked, dict) else ()
    found = {}
    for name, settings in named:
        prefix = settings.get("prefix") if isinstance(settings, dict) else None
        if isinstance(prefix, str):
            found[str(name)] = prefix
    return found


def _read_special(said: dict[str, Any]) -> dict[str, str]:
    special = {}
    for role in ROLES:
        token = said.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[role] = token
    return special


def _read_labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the classes' names up to the last one that has a name."""
    named = config.get("id2label")
    if not isinstance(named, dict):
        return ()
    found = {}
    for key, label in named.items():
        if str(key).isdigit():
            found[int(key)] = str(label)
    if not found or max(found) > _NO_LIMIT // 1000:
        return ()
    return tuple(found.get(place, f"LABEL_{place}") for place in range(max(found) + 1))


def _limit(value: Any) -> int | None:
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return int(value) if whole and 0 < value < _NO_LIMIT else None


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
