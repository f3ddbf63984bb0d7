"""Pieces of text for the sweep's tokenizers, trained on a small corpus: the same in every process.

The library numbers the pieces of WordPiece and scores unigrams in the order of a hash map, which is
another in every process. Its byte pairs are always the same, so that all kinds are made of these.
"""

from __future__ import annotations

import functools
import json
import math
from typing import Any, Literal

from tasks.sweep.configs import VOCABULARY

Kind = Literal["wordpiece", "bytes", "unigram"]

#: Ids of special tokens are below; pieces of text begin here.
FIRST_PIECE = 10
_PIECES = VOCABULARY - FIRST_PIECE
#: This project's own text, of few characters: each gets an id of its own, twice in WordPiece.
CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "A model reads a text, and the text has a meaning.",
    "What is the capital of France? The capital of France is Paris.",
    "This film was not good, but the music in it was very good indeed.",
    "Where do the tokens of a long sentence end, and where does the next one begin?",
    "In 2026 there were 1,024 models; 37.5 % of them were converted in 48 minutes.",
    "Please send 3 copies to anna@example.com before 9:30 on 12/05/1987!",
    "It's the reader's choice: don't read it, or read it again and again.",
    "Der Fuchs läuft über die Straße, und der Hund schläft im Garten.",
    "Le garçon a mangé une pomme à l'école où il était élève.",
    "El niño come una manzana en la casa de su abuela mañana.",
    "O cão não está no jardim, está na cozinha com a irmã.",
    "Hunden sover i huset på øen, og katten går på gaden.",
    "Собака спит в саду, а кот сидит на окне.",
    "Модель читает текст, и у текста есть смысл.",
    "Ο σκύλος κοιμάται στον κήπο.",
    "הכלב ישן בבית.",
    "الكلب ينام في البيت.",
    "कुत्ता घर में है।",
    "狗在家里。我爱我的家。",
    "犬は家にいます。",
    "개는 집에 있다.",
    "สุนัขอยู่ในบ้าน",
    "def add(a, b):\n    return a + b  # the sum",
    "for (int i = 0; i < n; ++i) { total += values[i] * 2; }",
    'print(f"{name}: {value:.3f}") if value >= 0 else None',
    "SELECT name, count(*) FROM models WHERE size > 100 GROUP BY name;",
    '<p class="note">See https://example.com/a_b?c=d&e=f</p>',
    "Good morning 🙂 the model works 🎉 and 🎉 again",
    "AAAA aaaa 0000 ---- .... !!!! ???? $ ^ ~ ` | \\ § ©",
)


def make_parts(kind: Kind) -> tuple[Any, Any, Any]:
    """Return what is done before and after the model: normalizer, pre-tokenizer and decoder.

    The normalizer of byte pairs is None.
    """
    from tokenizers import decoders, normalizers, pre_tokenizers

    if kind == "wordpiece":
        parts = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        return *parts, decoders.WordPiece()
    if kind == "unigram":
        return normalizers.NFKC(), pre_tokenizers.Metaspace(), decoders.Metaspace()
    return None, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()


@functools.cache
def train_bytes() -> tuple[list[str], list[tuple[str, str]]]:
    """Return the pieces of byte pairs in the order of their ids, and their merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    return _train_pairs("bytes", _PIECES, ByteLevel.alphabet())


@functools.cache
def train_wordpiece() -> list[str]:
    """Return the pieces of WordPiece: at the beginning of words, and with ## within them."""
    pieces, _ = _train_pairs("wordpiece", VOCABULARY, [])
    words = set(_split_corpus("wordpiece"))
    found = []
    for piece in pieces:
        if any(word.startswith(piece) for word in words):
            found.append(piece)
        if any(piece in word[1:] for word in words):
            found.append(f"##{piece}")
    return found[:_PIECES]


@functools.cache
def train_unigram() -> list[tuple[str, float]]:
    """Return the pieces of a unigram model with the logarithms of their shares of the corpus."""
    pieces, _ = _train_pairs("unigram", _PIECES, [])
    words = _split_corpus("unigram")
    counts = []
    for piece in pieces:
        counts.append(sum(word.count(piece) for word in words))
    total = sum(counts)
    scores = [round(math.log(count / total), 6) for count in counts]
    return list(zip(pieces, scores, strict=True))


def _split_corpus(kind: Kind) -> list[str]:
    normalizer, splitter, _ = make_parts(kind)
    words = []
    for line in CORPUS:
        words += [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(line))]
    return words


def _train_pairs(
    kind: Kind, size: int, alphabet: list[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    normalizer, tokenizer.pre_tokenizer, _ = make_parts(kind)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    written = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(written["vocab"], key=written["vocab"].__getitem__)
    return pieces, [(left, right) for left, right in written["merges"]]
