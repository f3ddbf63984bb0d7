"""SentencePiece tokenizers with a vocabulary of their own, as Marian's and M2M100's.

The model cuts a text into pieces, and their ids come from ``vocab.json``. No ``tokenizer.json``
does the same: a run of characters that the model does not know is one piece, which the vocabulary
may know as the other language's. So the model itself is run here, by the library ``sentencepiece``.
Source of the rules: ``MarianTokenizer`` and ``M2M100Tokenizer`` of transformers 5.23.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tracefleet.text.spec import PieceSpec
from tracefleet.text.tokenize import Row, clean_up_spaces

_SPACE = "▁"
_CODE = re.compile(r">>.*?<<", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Ids of one text, with the attributes of the other library's encodings that are used.

    Attributes:
        ids: token ids, special ones included.
        type_ids: all 0.
    """

    ids: list[int]
    type_ids: list[int]


class PieceTokenizer:
    """A tokenizer of single texts; many threads may use it."""

    def __init__(self, model: bytes, vocabulary: bytes, spec: PieceSpec) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_proto=model)
        if self._model.get_piece_size() == 0:
            raise ValueError("a model without pieces")
        known: dict[str, int] = json.loads(vocabulary)
        _check_ids(known)
        self._ids = {**known, **spec.added, **spec.special}
        self._unknown = self._ids[spec.unknown]
        self._pieces = {place: piece for piece, place in self._ids.items()}
        self._special, self._spec = spec.special, spec
        ordered = sorted(spec.special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, ordered)) + ")")

    def encode_all(
        self, rows: Sequence[Row], *, most: int | None = None, side: str = "right"
    ) -> list[Encoded]:
        """Return the ids of each text, special tokens included; see `TextTokenizer.encode_all`.

        Raises:
            ValueError: a row is a pair of texts, or a text holds half of a surrogate pair.
        """
        return [self._encode(place, row, most, side) for place, row in enumerate(rows)]

    def decode(self, ids: Sequence[int], *, skip_special: bool, clean_up: bool) -> str:
        """Return the text of ids; special tokens are always left out."""
        special = set(self._special.values())
        unknown = self._spec.unknown
        pieces = [self._pieces.get(one, unknown) for one in ids if one not in special]
        text = str(self._model.decode_pieces(pieces)).replace(_SPACE, " ").strip()
        return clean_up_spaces(text) if clean_up else text

    def find_id(self, token: str | None) -> int | None:
        """Return the id of a token; None: the vocabulary has none."""
        return None if token is None else self._ids.get(token)

    def _encode(self, place: int, row: Row, most: int | None, side: str) -> Encoded:
        if not isinstance(row, str):
            raise ValueError(f"text {place}: expected one text, got a pair of texts")
        spec = self._spec
        ids = [self._find(piece) for piece in self._cut(place, row)]
        room = None if most is None else max(0, most - len(spec.begin) - len(spec.end))
        if room is not None and len(ids) > room:
            ids = ids[len(ids) - room :] if side == "left" else ids[:room]
        whole = [*map(self._find, spec.begin), *ids, *map(self._find, spec.end)][:most]
        return Encoded(ids=whole, type_ids=[0] * len(whole))

    def _cut(self, place: int, text: str) -> list[str]:
        """Return the pieces of a text; special tokens that are written in it are pieces."""
        pieces: list[str] = []
        for part in self._split.split(text):
            if part in self._special:
                pieces.append(part)
            elif part:
                pieces += self._cut_part(place, part)
        return pieces

    def _cut_part(self, place: int, text: str) -> list[str]:
        code = _CODE.match(text) if self._spec.codes else None
        before = [] if code is None else [code[0]]
        try:
            found: list[str] = self._model.encode(text[len("".join(before)) :], out_type=str)
        except (UnicodeError, RuntimeError) as error:
            raise ValueError(
                f"text {place}: expected text that UTF-8 can hold, got {error}. Read it with "
                "errors='replace'."
            ) from error
        return before + found

    def _find(self, piece: str) -> int:
        return self._ids.get(piece, self._unknown)


def _check_ids(known: object) -> None:
    """Refuse what is no table of ids by their pieces."""
    if not isinstance(known, dict):
        raise ValueError(f"expected ids by their pieces, got {type(known).__name__}")
    for piece, place in known.items():
        if type(place) is not int or place < 0:
            raise ValueError(f"expected an id for {piece!r}, got {place!r}")
        piece.encode()
