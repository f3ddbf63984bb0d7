"""The standard lengths of a request that names none, from the checkpoint's JSON files alone.

Text: powers of two from 32 up to the least of what the model's positions, its tokenizer and, for
sentence vectors, its ``max_seq_length`` allow and 512, which is a standard length itself, so that
the whole range is served. Images: their size. Sounds: the processor's window, or one second and
ten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import RequestError
from tasks.model.heads import SAMPLE_TASKS
from tasks.model.named_task import read_config_json
from tasks.model.samples import default_sizes
from tasks.model.vocabulary import read_json
from tracefleet.text.files import SENTENCE_SIMILARITY, read_sentence_limit, reading

_SHORTEST = 32
_LONGEST = 512
#: Tokenizers without a limit have a huge one.
_UNLIMITED = 1 << 20
#: Keys of ``config.json`` for the number of positions, in the order in which they count.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
#: Model types whose positions start behind the padding index (RoBERTa's rule).
OFFSET_TYPES = (
    "camembert",
    "data2vec-text",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


@dataclass(frozen=True, kw_only=True)
class DefaultLengths:
    """Standard lengths, and what they reach up to.

    Attributes:
        lengths: Standard lengths, ascending.
        why: What set the largest, such as ``up to the model's 512``.
    """

    lengths: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.lengths))} (default: {self.why})"


def default_lengths(folder: Path, task: str) -> DefaultLengths:
    """Return the standard lengths for a checkpoint and a task.

    Raises:
        UnsupportedCheckpointError: ``config.json`` is missing or damaged, or the size of an image
            or a sound is not known.
    """
    config = read_config_json(folder)
    if task in SAMPLE_TASKS:
        lengths, why = default_sizes(folder, task, config)
        return DefaultLengths(lengths=lengths, why=why)
    found = [*_find_limits(folder, config), *_find_sentence_limit(folder, task)]
    limits = [(most, f"up to {what} {most}") for what, most in found]
    # Of equal limits the first one is told.
    most, why = min([*limits, (_LONGEST, f"up to {_LONGEST}")], key=lambda limit: limit[0])
    return DefaultLengths(lengths=_list_powers(most), why=why)


def _find_limits(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    positions = find_positions(config)
    if positions is not None:
        yield "the model's", positions
    most = read_json(folder / "tokenizer_config.json").get("model_max_length")
    if isinstance(most, int) and 0 < most < _UNLIMITED:
        yield "the tokenizer's", most


def _find_sentence_limit(folder: Path, task: str) -> Iterator[tuple[str, int]]:
    """Yield where sentence-transformers cuts a text: nothing longer is ever asked of it."""
    if task != SENTENCE_SIMILARITY:
        return
    most = read_sentence_limit(reading(folder))
    if most is not None:
        yield "max_seq_length", most


def find_positions(config: dict[str, Any]) -> int | None:
    """Return the most tokens that fit a model's positions, as its config says; None: unknown."""
    text = config.get("text_config")
    own = text if isinstance(text, dict) else config
    found = [own[name] for name in _POSITIONS if type(own.get(name)) is int and own[name] > 0]
    if not found:
        return None
    if own.get("model_type") not in OFFSET_TYPES:
        return int(found[0])
    padding = own.get("pad_token_id")
    return max(int(found[0]) - (padding if type(padding) is int else 1) - 1, 1)


def check_positions(folder: Path, task: str, lengths: tuple[int, ...]) -> None:
    """Refuse lengths over the model's positions as far as ``config.json`` tells them.

    Raises:
        RequestError: A length is too long.
        UnsupportedCheckpointError: ``config.json`` is missing or damaged.
    """
    config = read_config_json(folder)
    if task in SAMPLE_TASKS or type(config.get(_POSITIONS[0])) is not int:
        return
    most = find_positions(config)
    longer = [length for length in lengths if most is not None and length > most]
    if longer:
        raise RequestError(
            f"lengths: expected at most {most}, the positions of this {config.get('model_type')}; "
            f"got {', '.join(map(str, longer))}. Drop the longer lengths, or leave --lengths out.",
            lasting=True,
        )


def _list_powers(most: int) -> tuple[int, ...]:
    powers = [_SHORTEST << step for step in range(16) if _SHORTEST << step < most]
    return (*powers, most)
