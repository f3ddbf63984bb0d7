"""What a consumer makes ids of texts with: it has a tokenizer's files and no transformers.

Most checkpoints have ``tokenizer.json``. Older ones have a vocabulary alone, from which
transformers makes its fast tokenizer: that one is written down. Marian's and M2M100's have no fast
one, and are described for ``tracefleet.text.pieces``. Whether the ids are the tokenizer's own is
compared afterwards, whichever way it is.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tracefleet.text.files import ReadFile, reading
from tracefleet.text.spec import PieceSpec

logger = logging.getLogger(__name__)
FILE = "tokenizer.json"
_VOCABULARY = "vocab.json"
#: Class of a tokenizer of pieces -> its model.
_MODELS = {"MarianTokenizer": "source.spm", "M2M100Tokenizer": "sentencepiece.bpe.model"}


def read_from(folder: Path, made: Path) -> ReadFile:
    """Return a function that reads a checkpoint's files, and ``tokenizer.json`` that was made."""
    own, beside = reading(folder), reading(made.parent)

    def read(name: str) -> bytes | None:
        found = own(name)
        return beside(made.name) if found is None and name == FILE else found

    return read


def describe_pieces(folder: Path, own: Any) -> PieceSpec | None:
    """Return what a tokenizer of pieces does; None: it is another one, or does more than pieces.

    Args:
        folder: Folder of the checkpoint.
        own: Tokenizer that transformers loaded from it.
    """
    model = _MODELS.get(type(own).__name__)
    # The answers of a Marian with two vocabularies are written in the other one.
    if model is None or getattr(own, "separate_vocabs", False):
        return None
    if not all((folder / name).is_file() for name in (model, _VOCABULARY)):
        return None
    added = dict(getattr(own, "lang_token_to_id", {}))
    if own.get_added_vocab().keys() - {*own.all_special_tokens, *added}:
        return None
    special = zip(own.all_special_tokens, own.all_special_ids, strict=True)
    begin = getattr(own, "prefix_tokens", ())
    return PieceSpec(
        model=f"model/{model}",
        vocabulary=f"model/{_VOCABULARY}",
        begin=tuple(own.convert_ids_to_tokens(list(begin))),
        end=(str(own.eos_token),),
        unknown=str(own.unk_token),
        special={str(token): place for token, place in special},
        added=added,
        codes=model == _MODELS["MarianTokenizer"],
    )


def make_tokenizer_file(folder: Path, own: Any, target: Path) -> bool:
    """Write ``tokenizer.json`` to ``target`` if the checkpoint lacks it; False: there is none.

    Args:
        folder: Folder of the checkpoint.
        own: Tokenizer that transformers loaded from it.
        target: File to write.
    """
    if (folder / FILE).is_file():
        return True
    made = getattr(own, "backend_tokenizer", None)
    if made is None:
        return False
    try:
        made.no_truncation()
        made.no_padding()
        made.save(str(target))
    except Exception:  # RoFormer's is partly written in Python; the library has no error of its own
        logger.warning("no tokenizer.json can be made of the checkpoint's tokenizer", exc_info=True)
        return False
    return True
