"""Texts as token ids, by the tokenizer that is published with a conversion."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from tracefleet.errors import InputTooLongError

#: Path of the tokenizer in a conversion's folder.
TOKENIZER = "model/tokenizer.json"
#: A text, or a pair of texts.
Row = str | tuple[str, str]


class TextTokenizer:
    """A tokenizer that many threads may use, and that cuts only where it is asked to.

    The library keeps the limit in the tokenizer itself, so that a thread that cuts would cut the
    texts of another one: calls take turns.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def encode_all(
        self, rows: Sequence[Row], *, most: int | None = None, side: str = "right"
    ) -> list[Any]:
        """Return the library's encoding of each row, special tokens included.

        Args:
            rows: texts or pairs.
            most: number of ids to cut to, special ones included; of a pair the longer text is cut
                first; None: all of them.
            side: side from which tokens are lost.

        Raises:
            ValueError: a text can't be encoded: it holds half of a surrogate pair.
        """
        with self._lock:
            encoded = self._encode(rows)
            long = [place for place, one in enumerate(encoded) if most and len(one.ids) > most]
            if long:
                limit = {"max_length": most, "direction": side}
                cut = self._encode_limited([rows[place] for place in long], limit)
                for place, one in zip(long, cut, strict=True):
                    encoded[place] = one
        return encoded

    def encode_windows(self, row: Row, *, most: int, stride: int, strategy: str) -> list[Any]:
        """Return overlapping parts of a long pair, each with the whole of its other text.

        Args:
            row: the pair.
            most: tokens of one part, special ones included.
            stride: tokens that two parts share.
            strategy: ``only_first`` or ``only_second``: which text is taken in parts.

        Raises:
            InputTooLongError: the text that stays whole leaves no room for the other one.
        """
        limit = {"max_length": most, "stride": stride, "strategy": strategy}
        with self._lock:
            [whole] = self._encode([row])
            if len(whole.ids) <= most:
                return [whole]
            try:
                [first] = self._encode_limited([row], limit)
            except Exception as error:  # the library raises Exception itself
                raise InputTooLongError(
                    f"expected a question that leaves room for its context in {most} tokens, got "
                    f"one that leaves none: {error}. Shorten the question."
                ) from error
        return [first, *first.overflowing]

    def decode(self, ids: Sequence[int], *, skip_special: bool, clean_up: bool) -> str:
        """Return the text of ids, as ``transformers``' tokenizers decode it."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return clean_up_spaces(text) if clean_up else text

    def join_tokens(self, tokens: Sequence[str]) -> str:
        """Return the text of tokens as the vocabulary spells them."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    def find_id(self, token: str | None) -> int | None:
        """Return the id of a token; None: the vocabulary has none."""
        return None if token is None else self._tokenizer.token_to_id(token)

    def _encode_limited(self, rows: Sequence[Row], limit: dict[str, Any]) -> list[Any]:
        self._tokenizer.enable_truncation(**limit)
        try:
            return list(self._tokenizer.encode_batch(rows))
        finally:
            self._tokenizer.no_truncation()

    def _encode(self, rows: Sequence[Row]) -> list[Any]:
        try:
            return list(self._tokenizer.encode_batch(list(rows)))
        except (UnicodeError, TypeError):
            for place, row in enumerate(rows):
                _refuse_surrogates(place, row)
            raise


def load_tokenizer(data: bytes, *, lower_case: bool = False) -> TextTokenizer:
    """Return a tokenizer that neither pads nor cuts, from the bytes of ``tokenizer.json``.

    Args:
        data: the bytes.
        lower_case: whether texts are lower-cased before anything else; special tokens in them stay.

    Raises:
        ValueError: they are no tokenizer.
    """
    from tokenizers import Tokenizer, normalizers

    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"tokenizer.json: expected a tokenizer, got: {error}") from error
    # The checkpoint's own limits would cut the text silently.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if lower_case:
        own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return TextTokenizer(tokenizer)


class Encodes(Protocol):
    """A tokenizer of either library."""

    def encode_all(
        self, rows: Sequence[Row], *, most: int | None = None, side: str = "right"
    ) -> Sequence[Any]:
        """Return an encoding with ``ids`` for each row."""


def encode(tokenizer: Encodes, text: str, pair: str | None, most: int | None = None) -> list[int]:
    """Return the ids of a text or a pair.

    Args:
        tokenizer: what ``load_tokenizer`` or ``open_tokenizer`` returned.
        text: the text, or the first of a pair.
        pair: the second of a pair; None: a text by itself.
        most: number of ids to cut to, special ones included; None: all of them.
    """
    row = text if pair is None else (text, pair)
    [encoded] = tokenizer.encode_all([row], most=most)
    ids: list[int] = encoded.ids
    return ids


def _refuse_surrogates(place: int, row: Row) -> None:
    for text in [row] if isinstance(row, str) else row:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {place}: expected text that UTF-8 can hold, got half of a surrogate pair at "
                f"position {error.start}. Read it with errors='replace'."
            ) from error


#: What ``clean_up_tokenization`` of transformers takes out of decoded text.
_SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def clean_up_spaces(text: str) -> str:
    """Return decoded text without the spaces before punctuation, as transformers removes them."""
    for spaced in _SPACED:
        text = text.replace(spaced, spaced.strip())
    return text
