"""Open the tokenizer of a conversion's texts, whichever library runs it."""

from __future__ import annotations

from tracefleet.text.files import ReadFile
from tracefleet.text.pieces import PieceTokenizer
from tracefleet.text.spec import TextSpec
from tracefleet.text.tokenize import TOKENIZER, TextTokenizer, load_tokenizer

_FOLDER = "model/"
Tokenizer = TextTokenizer | PieceTokenizer


def open_tokenizer(spec: TextSpec, read: ReadFile) -> Tokenizer | None:
    """Return the tokenizer that a section ``text`` describes; None: its files are not there.

    Args:
        spec: the section.
        read: returns a file's bytes by its name in the conversion's folder ``model``.

    Raises:
        ValueError: the files are no tokenizer.
    """
    if spec.pieces is None:
        data = read(TOKENIZER.removeprefix(_FOLDER))
        return None if data is None else load_tokenizer(data, lower_case=spec.lower_case)
    model = read(spec.pieces.model.removeprefix(_FOLDER))
    vocabulary = read(spec.pieces.vocabulary.removeprefix(_FOLDER))
    if model is None or vocabulary is None:
        return None
    try:
        return PieceTokenizer(model, vocabulary, spec.pieces)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{spec.pieces.model}, {spec.pieces.vocabulary}: expected a SentencePiece model and "
            f"the ids of its pieces, got: {error}"
        ) from error
