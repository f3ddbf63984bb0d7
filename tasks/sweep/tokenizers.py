"""Give a tiny checkpoint a tokenizer of its family's kind, so that texts are probed as well.

The kind is the one that transformers' own class for the model type has. Pieces come from a small
corpus; special tokens have the ids that the config says, and single texts and pairs get them where
the family puts them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tasks.sweep.configs import ROLES
from tasks.sweep.pieces import (
    FIRST_PIECE,
    Kind,
    make_parts,
    train_bytes,
    train_unigram,
    train_wordpiece,
)

#: Names by role; of the roles that share an id the first one names the token.
_NAMES = {
    "eos": "</s>",
    "bos": "<s>",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "unk": "[UNK]",
    "pad": "[PAD]",
    "decoder_start": "<start>",
}
#: Model types whose entry in transformers' mapping does not tell -> the class that they are like.
_LIKE = {
    "bigbird_pegasus": "PegasusTokenizer",
    "camembert": "XLMRobertaTokenizer",
    "esm": "RobertaTokenizer",
    "nystromformer": "AlbertTokenizer",
    "pegasus_x": "PegasusTokenizer",
    "prophetnet": "BertTokenizer",
    "roc_bert": "BertTokenizer",
    "splinter": "BertTokenizer",
    "tapas": "BertTokenizer",
    "umt5": "T5Tokenizer",
    "xlm-roberta-xl": "XLMRobertaTokenizer",
}
#: They read characters or bytes, and need no files.
_OWN = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
#: Byte pairs in their classes, and pieces of SentencePiece with a mark for spaces in their files.
_MARKED = ("GemmaTokenizer", "LlamaTokenizer", "NllbTokenizer", "SeamlessM4TTokenizer")
#: Where the special tokens are around a text and around a pair, by role and token type.
_PATTERNS = {
    "single": ("cls $A sep", "cls $A sep $B:1 sep:1"),
    "double": ("bos $A eos", "bos $A eos eos $B eos"),
    "start": ("bos $A", "bos $A bos $B"),
    "end": ("$A eos", "$A eos $B eos"),
    "bare": ("$A", "$A $B"),
    "funnel": ("cls:2 $A sep", "cls:2 $A sep $B:1 sep:1"),
    "xlnet": ("$A sep cls:2", "$A sep $B:1 sep:1 cls:2"),
}
_FAMILIES = {
    "single": "Albert BigBird Deberta DebertaV2 FNet RemBert",
    "double": """Bart Barthez CLIP LED LayoutLMv3 Longformer Luke MPNet MarkupLM Mvp Roberta
        XLMRoberta""",
    "start": "Cohere Gemma Llama",
    "bare": "CodeGen GPT2 GPTNeoX Qwen2 Qwen3_5",
    "funnel": "Funnel",
    "xlnet": "XLNet",
}
_PATTERN_OF = {
    f"{name}Tokenizer": pattern for pattern, names in _FAMILIES.items() for name in names.split()
}
#: Number of token types of models that compare types and have no table of them.
_COMPARED_TYPES = {"funnel": 3, "xlnet": 3}


def save_tokenizer(model_type: str, config: Any, folder: Path, inputs: Collection[str]) -> None:
    """Save a tokenizer that ``AutoTokenizer`` loads; the same config makes the same bytes.

    Model types that transformers' mapping doesn't name, or names no kind for, get byte pairs: most
    language models of today have these.

    Args:
        model_type: Model type, such as ``bert``.
        config: Config of the tiny model, of ``VOCABULARY`` ids.
        folder: Folder of its checkpoint.
        inputs: Names of the arguments of the model's ``forward``.
    """
    name = _find_class(model_type)
    if name in _OWN:
        import transformers

        getattr(transformers, name)().save_pretrained(folder)
        return
    kind = _choose_kind(name)
    pattern = _choose_pattern(name, kind, config)
    ids = _choose_ids(config, _list_roles(pattern))
    tokenizer = _assemble(kind, ids, pattern)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = _describe(ids, _list_inputs(model_type, config, inputs))
    text = json.dumps(written, indent=2, sort_keys=True)
    (folder / "tokenizer_config.json").write_text(f"{text}\n", encoding="utf-8")


def _find_class(model_type: str) -> str:
    """Return the name of the tokenizer's class; of one that lacks SentencePiece, T5's."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    if model_type in _LIKE:
        return _LIKE[model_type]
    named = TOKENIZER_MAPPING_NAMES.get(model_type, "TokenizersBackend")
    return "T5Tokenizer" if named is None else named.removesuffix("Fast")


def _choose_kind(name: str) -> Kind:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if name in _MARKED:
        return "unigram"
    try:
        known = tokenizer_class_from_name(name)
        model = getattr(known, "model", None)
    except ImportError:  # what needs SentencePiece has no attributes without it
        return "unigram"
    module = vars(sys.modules[known.__module__]) if known is not None else {}
    if "sentencepiece" in module or "SentencePieceBackend" in module:
        return "unigram"
    kinds: dict[str, Kind] = {"WordPiece": "wordpiece", "Unigram": "unigram"}
    return kinds.get(getattr(model, "__name__", ""), "bytes")


def _choose_pattern(name: str, kind: Kind, config: Any) -> str:
    if name in _PATTERN_OF:
        return _PATTERN_OF[name]
    if kind == "wordpiece" or None not in (_read_id(config, "cls"), _read_id(config, "sep")):
        return "single"
    if kind == "unigram" or getattr(config, "is_encoder_decoder", False):
        return "end"
    return "bare" if _read_id(config, "bos") is None else "start"


def _read_id(config: Any, role: str) -> int | None:
    """Return a special id of a config or of its language model's."""
    for one in (config, config.get_text_config()):
        value = getattr(one, f"{role}_token_id", None)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if type(value) is int and 0 <= value < FIRST_PIECE:
            return value
    return None


def _list_roles(pattern: str) -> list[str]:
    """Return the roles that a tokenizer can't do without."""
    words = _PATTERNS[pattern][1].replace(":", " ").split()
    roles = [role for role in ROLES if role in words]
    # Byte pairs know every byte. Qwen's own class, though, puts tokens behind the vocabulary for
    # roles that have none.
    roles += ["unk", "eos" if pattern in ("bare", "start") else "mask"]
    return ["pad", *roles]


def _choose_ids(config: Any, needed: Iterable[str]) -> dict[str, int]:
    """Return the id of each role: the config's, or else the smallest that is free."""
    ids = {}
    for role in ROLES:
        said = _read_id(config, role)
        if said is not None:
            ids[role] = said
    for role in needed:
        if role not in ids:
            ids[role] = next(i for i in range(FIRST_PIECE) if i not in ids.values())
    return ids


def _name_tokens(ids: dict[str, int]) -> list[str]:
    """Return the special tokens by id; ids without a role are unused."""
    names = [f"[unused{place}]" for place in range(FIRST_PIECE)]
    for role in reversed(_NAMES):
        if role in ids:
            names[ids[role]] = _NAMES[role]
    return names


def _assemble(kind: Kind, ids: dict[str, int], pattern: str) -> Any:
    from tokenizers import AddedToken, Tokenizer

    names = _name_tokens(ids)
    tokenizer = Tokenizer(_make_model(kind, names, ids))
    normalizer, splitter, decoder = make_parts(kind)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoder
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.post_processor = _make_template(ids, names, pattern)
    return tokenizer


def _make_model(kind: Kind, names: list[str], ids: dict[str, int]) -> Any:
    from tokenizers import models

    if kind == "unigram":
        scored = [(name, 0.0) for name in names]
        return models.Unigram([*scored, *train_unigram()], unk_id=ids["unk"])
    pieces, merges = train_bytes() if kind == "bytes" else (train_wordpiece(), [])
    vocabulary = {piece: place for place, piece in enumerate([*names, *pieces])}
    if kind == "bytes":
        return models.BPE(vocabulary, merges)
    return models.WordPiece(vocabulary, unk_token=names[ids["unk"]])


def _make_template(ids: dict[str, int], names: list[str], pattern: str) -> Any:
    from tokenizers.processors import TemplateProcessing

    templates = []
    for words in _PATTERNS[pattern]:
        placed = [word.partition(":") for word in words.split()]
        templates.append([_fill(role, ids, names, kind or "0") for role, _, kind in placed])
    single, pair = templates
    specials = [(name, place) for place, name in enumerate(names)]
    return TemplateProcessing(single=single, pair=pair, special_tokens=specials)


def _fill(role: str, ids: dict[str, int], names: list[str], token_type: str) -> str:
    word = role if role.startswith("$") else names[ids[role]]
    return f"{word}:{token_type}"


def _list_inputs(model_type: str, config: Any, inputs: Collection[str]) -> list[str]:
    """Return what the tokenizer gives: token types only where the model tells them apart."""
    default = _COMPARED_TYPES.get(model_type, 0)
    types = getattr(config, "type_vocab_size", default) or 0
    given = ["input_ids", "attention_mask"]
    if types > 1:
        given.insert(1, "token_type_ids")
    return [name for name in given if name in inputs]


def _describe(ids: dict[str, int], inputs: list[str]) -> dict[str, Any]:
    names = _name_tokens(ids)
    tokens = {f"{role}_token": names[place] for role, place in ids.items()}
    tokens.pop("decoder_start_token", None)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": inputs,
        **tokens,
    }
