"""Rows of token ids for measurements: real texts through a conversion's own tokenizer."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from tracefleet.bench.optional import first_line, import_optional
from tracefleet.bench.texts import collect_sentences, read_texts
from tracefleet.errors import BenchError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, open_verified
from tracefleet.store import ReadableStore
from tracefleet.text import TOKENIZER

_SENTENCES = 512

Rows = list[list[int]]


class TextRows:
    """Texts as rows of ids, as they are or at any length.

    Attributes:
        described: where the texts come from.
    """

    def __init__(self, tokenizer: Any, texts: list[str], described: str) -> None:
        # The checkpoint's own limits would pad and cut as they like.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.described = described
        self._tokenizer = tokenizer
        self._texts = texts
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        self._encodings = [one for one in encodings if len(one)]
        if not self._encodings:
            raise BenchError(
                f"texts: expected some that the tokenizer makes tokens of, got none in {described}."
                " Give others, or leave --texts out."
            )

    def cut(self, length: int, count: int) -> Rows:
        """Return rows of exactly this length: texts in turn, joined where one is too short."""
        special = self._tokenizer.num_special_tokens_to_add(False)
        room = max(length - special, 1)
        texts = itertools.cycle(self._encodings)
        rows = []
        for _ in range(count):
            parts = [next(texts)]
            while sum(map(len, parts)) < room:
                parts.append(next(texts))
            joined = type(parts[0]).merge(parts)
            joined.truncate(room)
            rows.append(self._tokenizer.post_process(joined).ids[:length])
        return rows

    def keep(self, longest: int, count: int) -> Rows:
        """Return the first texts, each at its own length; one that is too long is cut."""
        self._tokenizer.enable_truncation(longest)
        encodings = self._tokenizer.encode_batch(self._texts[:count])
        self._tokenizer.no_truncation()
        return [one.ids for one in encodings if len(one)]


def read_rows(
    store: ReadableStore, selection: Selection, manifest: Manifest, texts: Path | None
) -> TextRows | str:
    """Return real texts as rows of ids, or why there are none.

    Raises:
        BenchError: ``texts`` are given, and can't be read or tokenized.
        DigestMismatchError: the tokenizer's file was changed since publishing.
    """
    given = None if texts is None else read_texts(texts)
    try:
        tokenizer = _load_tokenizer(store, selection, manifest)
    except BenchError as error:
        if given is None:
            return str(error)
        raise BenchError(
            f"texts: expected a conversion that takes texts: {error}. Leave --texts out."
        ) from error
    if given is not None:
        return TextRows(tokenizer, given, str(texts))
    described = "docstrings of Python's standard library"
    return TextRows(tokenizer, collect_sentences(_SENTENCES), described)


def _load_tokenizer(store: ReadableStore, selection: Selection, manifest: Manifest) -> Any:
    lead = manifest.inputs[0]
    if (lead.name, lead.axes) != ("input_ids", ("batch", "length")):
        raise BenchError(f"its first input is {lead.name} ({', '.join(lead.axes)})")
    file = next((file for file in manifest.files if file.path == TOKENIZER), None)
    if file is None:
        raise BenchError(f"{manifest.source} was published without {TOKENIZER}")
    tokenizers = import_optional("tokenizers")
    with open_verified(store, selection, file) as handle:
        text = handle.read().decode()
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library has no error of its own
        raise BenchError(f"{TOKENIZER} can't be read: {first_line(error)}") from error
