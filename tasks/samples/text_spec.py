"""What a conversion's manifest says about texts, checked against the checkpoint's own tokenizer.

Consumers have its files and no transformers. Some tokenizer classes do more than that file
says: then texts are refused with the reason, and ids still work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.model.facts import LoadOptions
from tasks.model.generation import GENERATING_TASK
from tasks.samples.errors import NoSamples
from tasks.samples.texts import PAIRS, list_texts, write_passage
from tasks.samples.tokenized import load_own_tokenizer
from tasks.samples.tokenizer_file import FILE, describe_pieces, make_tokenizer_file, read_from
from tracefleet.text.files import SENTENCE_SIMILARITY, ReadFile, read_spec
from tracefleet.text.opening import Tokenizer, open_tokenizer
from tracefleet.text.spec import ROLES, TextSpec
from tracefleet.text.tokenize import TOKENIZER, Row

_NONE = "the checkpoint has no tokenizer"
_UNLOADABLE = "transformers can't load the checkpoint's tokenizer"
_OTHER = "its tokenizer's files make other ids than its tokenizer in transformers"
#: What `clean_up_tokenization_spaces` of transformers changes.
_SPACED = "Is it ? Yes , it 's here ! We do n't ."
_OTHER_TEXT = "its tokenizer's files make another text of ids than its tokenizer in transformers"
_UNREADABLE = "its tokenizer.json can't be read"
#: transformers writes a number like this where a tokenizer has no limit.
_NO_LIMIT = 10**9


def describe_text(
    folder: Path, options: LoadOptions, lengths: tuple[int, ...], made: Path
) -> TextSpec:
    """Return the section ``text`` of a manifest.

    Reasons name no error's own words, which differ between machines.

    Args:
        folder: Folder of the checkpoint.
        options: Task, and whether the checkpoint's code may run.
        lengths: Standard lengths, ascending.
        made: File for a ``tokenizer.json`` where the checkpoint has none.
    """
    read = read_from(folder, made)
    spec = read_spec(read, options.task)
    try:
        own = load_own_tokenizer(folder, options)
    except NoSamples:
        refused = _UNLOADABLE if (folder / FILE).is_file() else _NONE
        return dataclasses.replace(spec, refused=refused)
    spec = _correct(spec, own, options.task)
    pieces = describe_pieces(folder, own)
    if pieces is not None:
        spec = dataclasses.replace(spec, pieces=pieces)
    elif make_tokenizer_file(folder, own, made):
        spec = dataclasses.replace(spec, tokenizer=TOKENIZER)
    else:
        return dataclasses.replace(spec, refused=f"the checkpoint has no {FILE}")
    different = _compare(spec, own, read, options.task, lengths)
    return dataclasses.replace(spec, refused=different)


def _correct(spec: TextSpec, own: Any, task: str) -> TextSpec:
    """Return the section with what the loaded tokenizer knows better than its files."""
    special = {}
    for role in ROLES:
        token = getattr(own, f"{role}_token", None)
        if token is not None:
            special[role] = str(token)
    known: dict[str, Any] = {
        "special": special,
        "truncation_side": own.truncation_side,
        "padding_side": own.padding_side,
        "clean_up_spaces": _cleans_up(own),
    }
    limit = own.model_max_length
    if task != SENTENCE_SIMILARITY:
        known["max_tokens"] = int(limit) if 0 < limit < _NO_LIMIT else None
    return dataclasses.replace(spec, **known)


def _cleans_up(own: Any) -> bool:
    """Tell whether decoding takes the spaces before punctuation away: some only say so."""
    if own.clean_up_tokenization_spaces is not True:
        return False
    try:
        ids = own(_SPACED, add_special_tokens=False)["input_ids"]
        return " ?" not in own.decode(ids, skip_special_tokens=True)
    except Exception:  # it takes no text, as the comparison will show
        return True


def _compare(
    spec: TextSpec, own: Any, read: ReadFile, task: str, lengths: tuple[int, ...]
) -> str | None:
    """Say why texts can't be taken; None: ids, types and decoded texts are the tokenizer's own."""
    try:
        tokenizer = open_tokenizer(dataclasses.replace(spec, lower_case=False), read)
    except ValueError:
        return _UNREADABLE
    if tokenizer is None:
        return _UNREADABLE
    for row, most in _list_rows(task, lengths[-1]):
        if spec.pieces is not None and not isinstance(row, str):
            continue
        expected = _encode_own(own, row, most)
        if expected is None:
            continue
        ids, types = _encode(tokenizer, row, most, spec)
        if expected not in ((ids, types), (ids, None)):
            return _OTHER
        if task == GENERATING_TASK and _decodes_otherwise(tokenizer, own, ids, spec):
            return _OTHER_TEXT
    return None


def _decodes_otherwise(tokenizer: Tokenizer, own: Any, ids: list[int], spec: TextSpec) -> bool:
    expected = own.decode(ids, skip_special_tokens=True)
    got = tokenizer.decode(ids, skip_special=True, clean_up=spec.clean_up_spaces)
    return bool(got != expected)


def _list_rows(task: str, largest: int) -> Iterator[tuple[Row, int]]:
    """Yield the gate's short texts, pairs and a passage that has to be cut."""
    for text in (*list_texts(task), *PAIRS, write_passage(task, times=1 + largest // 100)):
        yield (text.text if text.pair is None else (text.text, text.pair)), largest
    yield _SPACED, largest


def _encode_own(own: Any, row: Row, most: int) -> tuple[list[int], list[int] | None] | None:
    """Return the tokenizer's own ids and types; None: it refuses the text itself."""
    texts = (row,) if isinstance(row, str) else row
    try:
        encoded = own(*texts, truncation=True, max_length=most)
    except Exception:  # every tokenizer has its own
        return None
    types = encoded.get("token_type_ids")
    return list(encoded["input_ids"]), list(types) if types is not None else None


def _encode(
    tokenizer: Tokenizer, row: Row, most: int, spec: TextSpec
) -> tuple[list[int], list[int]]:
    [encoded] = tokenizer.encode_all([row], most=most, side=spec.truncation_side)
    return list(encoded.ids), list(encoded.type_ids)
