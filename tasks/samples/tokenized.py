"""Texts through a checkpoint's own tokenizer, as its users call it: ``tokenize_texts``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.fetch.needed import TOKENIZER
from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.feeds import length_axis, pad_right, random_feed
from tasks.model.heads import count_choices
from tasks.samples.errors import NoSamples, describe
from tasks.samples.texts import CHOICES, PASSAGE, Text, list_texts, write_passage
from tracefleet.text import encode
from tracefleet.text.opening import open_tokenizer

if TYPE_CHECKING:
    import torch

    from tasks.model.arguments import Argument
    from tasks.model.feeds import Feed
    from tracefleet.text.files import ReadFile
    from tracefleet.text.spec import TextSpec

logger = logging.getLogger(__name__)
#: Arguments that other files of a checkpoint than its tokenizer's make, or none of them.
_DRAWN = ("boxes", "other-ids")
#: A tokenizer without its vocabulary makes the unknown token of everything.
_FEWEST_IDS = 8


def tokenize_texts(
    folder: Path, options: LoadOptions, facts: ModelFacts, lengths: tuple[int, ...]
) -> Iterator[tuple[Text, Feed]]:
    """Yield each short text, and the passage cut to each standard length and to one token less.

    Rows have the tokens that the tokenizer gives them, special ones included, and at most the
    largest standard length: the tokenizer's own truncation cuts them.

    Args:
        folder: Folder of the checkpoint.
        options: Task, and whether the checkpoint's code may run.
        facts: Facts of the model.
        lengths: Standard lengths, ascending.

    Yields:
        A text with its feed: one row, int64, shape ``(1, tokens)``, or ``(1, choices, tokens)``.

    Raises:
        NoSamples: There is no tokenizer, it can't be loaded, or its ids are not the model's.
    """
    tokenizer = load_own_tokenizer(folder, options)
    rows = _encode_all(tokenizer, facts, options.task, lengths)
    known = [(text, feed) for text, feed in rows if _fits(facts, feed)]
    _check_ids(facts, [feed for _, feed in rows], known)
    yield from known


def _encode_all(
    tokenizer: Any, facts: ModelFacts, task: str, lengths: tuple[int, ...]
) -> list[tuple[Text, Feed]]:
    """Return each text that the tokenizer takes; some want tables or boxes, or more room."""
    rows: list[tuple[Text, Feed]] = []
    reason = "no text at all"
    texts = [(text, lengths[-1]) for text in list_texts(task)]
    for text, most in [*texts, *_cut_passage(tokenizer, task, lengths)]:
        try:
            rows.append((text, _encode(tokenizer, facts, task, text, most)))
        except Exception as error:  # every tokenizer has its own
            reason = describe(error)
    if not rows:
        raise NoSamples(f"its tokenizer takes no text: {reason}")
    return rows


def find_tokenized(
    spec: TextSpec, read: ReadFile, made: Iterable[tuple[Text, Feed]]
) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the texts whose ids the published tokenizer makes without transformers.

    Some tokenizer classes do more than its files say.

    Args:
        spec: What the manifest says about texts.
        read: Returns a published file's bytes by its name.
        made: Texts with their feeds.

    Returns:
        Names of the texts whose ids it makes, and of those among them that had to be cut.
    """
    same: set[str] = set()
    cut: set[str] = set()
    try:
        tokenizer = open_tokenizer(replace(spec, lower_case=False), read)
        if tokenizer is None:
            return frozenset(), frozenset()
        for text, feed in made:
            ids = feed["input_ids"][0].tolist()
            whole = encode(tokenizer, text.text, text.pair)
            if len(whole) > len(ids):
                cut.add(text.name)
                whole = encode(tokenizer, text.text, text.pair, most=len(ids))
            if whole == ids:
                same.add(text.name)
    except Exception:  # the libraries have no error of their own; what was made before stays
        logger.warning("the tokenizer's files can't be used by themselves", exc_info=True)
    return frozenset(same), frozenset(cut & same)


def load_own_tokenizer(folder: Path, options: LoadOptions) -> Any:
    """Return the tokenizer that transformers finds in a folder.

    Raises:
        NoSamples: There is none, or it can't be loaded.
    """
    if not any((folder / name).is_file() for name in TOKENIZER):
        raise NoSamples("the checkpoint has no tokenizer")
    from transformers import AutoTokenizer

    trusted = options.trust_remote_code
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Marian's recommends a package that it works without
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trusted
            )
    except Exception as error:  # every tokenizer has its own
        raise NoSamples(f"its tokenizer can't be loaded: {describe(error)}") from error


def _cut_passage(tokenizer: Any, task: str, lengths: Sequence[int]) -> list[tuple[Text, int]]:
    """Return the passage once for each length that a row is to have, with that length."""
    try:
        once = len(tokenizer(write_passage(task, times=1).text)["input_ids"])
    except Exception:  # it takes no text, as each of them will show
        return []
    times = 2 + lengths[-1] // max(1, once)
    passage = write_passage(task, times=times)
    wanted = sorted({size for length in lengths for size in (length - 1, length)} - {0})
    return [(replace(passage, name=f"{PASSAGE}{size}"), size) for size in wanted]


def _encode(tokenizer: Any, facts: ModelFacts, task: str, text: Text, most: int) -> Feed:
    """Return the feed of one text with at most so many tokens."""
    if count_choices(task) is None:
        return _encode_row(tokenizer, facts, text.text, text.pair, most)
    pairs = [(text.text, choice) for choice in CHOICES]
    rows = [_encode_row(tokenizer, facts, *pair, most) for pair in pairs]
    return _stack_choices(facts, rows)


def _encode_row(tokenizer: Any, facts: ModelFacts, text: str, pair: str | None, most: int) -> Feed:
    encoded = tokenizer(text, pair, truncation=True, max_length=most)
    ids = encoded["input_ids"]
    # Boxes and the like are drawn; what the tokenizer makes takes the place of the rest.
    feed = random_feed(_without_choices(facts), batch=1, length=len(ids), seed=len(ids))
    for one in facts.arguments:
        if one.name in encoded:
            row = _make_row(encoded[one.name])
        elif one.kind in _DRAWN:
            continue
        else:
            row = _make_default(facts, one, _make_row(ids))
        # TAPAS has seven types for each token, which only its own tables tell.
        if row.dim() == feed[one.name].dim():
            feed[one.name] = row
    return feed


def _make_row(values: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.tensor([list(values)], dtype=torch.int64)


def _make_default(facts: ModelFacts, argument: Argument, ids: torch.Tensor) -> torch.Tensor:
    """Return an argument that the tokenizer leaves out: all shown, the first type, the decoder's.

    The decoder gets the encoder's ids behind its first one, as it does in training.
    """
    import torch

    if argument.kind == "mask":
        return torch.ones_like(ids)
    if argument.kind == "segments":
        return torch.zeros_like(ids)
    shifted = ids.roll(1, -1)
    shifted[:, 0] = facts.vocabulary.decoder_start or 0
    return shifted


def _without_choices(facts: ModelFacts) -> ModelFacts:
    """Return the facts of one of several choices."""
    arguments = []
    for one in facts.arguments:
        axes = (one.axes[0], *one.axes[2:]) if _has_choices(one) else one.axes
        arguments.append(replace(one, axes=axes))
    return replace(facts, arguments=tuple(arguments))


def _has_choices(argument: Argument) -> bool:
    return length_axis(argument) == 2


def _stack_choices(facts: ModelFacts, rows: list[Feed]) -> Feed:
    """Return the choices as one row, padded to the longest; cut to the shortest without padding."""
    import torch

    sizes = [row["input_ids"].shape[1] for row in rows]
    longest, shortest = max(sizes), min(sizes)
    if "attention_mask" in facts.inputs:
        single = _without_choices(facts)
        rows = [pad_right(single, row, longest) for row in rows]
    else:
        rows = [_cut(row, shortest) for row in rows]
    stacked = {}
    for name in rows[0]:
        stacked[name] = torch.stack([row[name] for row in rows], 1)
    return stacked


def _cut(row: Feed, tokens: int) -> Feed:
    return {name: tensor[:, :tokens] for name, tensor in row.items()}


def _fits(facts: ModelFacts, feed: Feed) -> bool:
    """Tell whether a row has tokens, and the model knows all of them."""
    ids = feed["input_ids"]
    if ids.numel() == 0:
        return False
    return int(ids.min()) >= 0 and int(ids.max()) < facts.vocabulary.size


def _check_ids(facts: ModelFacts, feeds: list[Feed], known: list[tuple[Text, Feed]]) -> None:
    whole = [feed["input_ids"] for feed in feeds if feed["input_ids"].numel()]
    largest = max((int(ids.max()) for ids in whole), default=-1)
    if not known:
        raise NoSamples(
            f"its tokenizer makes ids up to {largest}, the model has {facts.vocabulary.size}"
        )
    distinct = set()
    for _, feed in known:
        distinct |= set(feed["input_ids"].flatten().tolist())
    if len(distinct) < _FEWEST_IDS:
        raise NoSamples(f"its tokenizer makes {len(distinct)} different ids of all texts")
