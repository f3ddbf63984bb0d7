"""The names of tasks, dtypes and backends, however people write them.

Command lines and requests read names here: transformers' pipeline aliases and torch's short dtypes
are understood, and a misspelled name is answered with the one that is most like it.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import sys
from collections.abc import Callable, Iterable

from tracefleet.heads import AUTO_CLASSES

DTYPES = ("float32", "float16", "bfloat16", "int8")
BACKENDS = ("jit", "neuronx", "neuron")
#: Other names of tasks: transformers' pipelines (``TASK_ALIASES`` and the tasks that differ from
#: ours in name alone), the hub's, and what people say.
_TASKS = {
    "sentiment-analysis": "text-classification",
    "sequence-classification": "text-classification",
    "text-ranking": "text-classification",
    "reranking": "text-classification",
    "ner": "token-classification",
    "named-entity-recognition": "token-classification",
    "pos-tagging": "token-classification",
    "embedding": "sentence-similarity",
    "embeddings": "sentence-similarity",
    "sentence-embeddings": "sentence-similarity",
    "sentence-embedding": "sentence-similarity",
    "masked-lm": "fill-mask",
    "qa": "question-answering",
    "extractive-qa": "question-answering",
    "causal-lm": "text-generation",
    "summarization": "text2text-generation",
    "translation": "text2text-generation",
    "seq2seq-lm": "text2text-generation",
}
_DTYPES = {
    "fp32": "float32", "f32": "float32", "float": "float32", "torch.float32": "float32",
    "fp16": "float16", "f16": "float16", "half": "float16", "torch.float16": "float16",
    "bf16": "bfloat16", "torch.bfloat16": "bfloat16",
    "i8": "int8", "qint8": "int8", "torch.int8": "int8",
}  # fmt: skip
_BACKENDS = {"torchscript": "jit", "cpu": "jit", "inf2": "neuronx", "trn1": "neuronx",
             "trn2": "neuronx", "inf1": "neuron"}  # fmt: skip


def read_task(name: str) -> str:
    """Return the task that a name means.

    Raises:
        ValueError: there is none; says which one is most like it.
    """
    return _read(name, AUTO_CLASSES, _TASKS)


def read_dtype(name: str) -> str:
    """Return the dtype that a name means.

    Raises:
        ValueError: there is none.
    """
    return _read(name, DTYPES, _DTYPES)


def read_backend(name: str) -> str:
    """Return the backend that a name means.

    Raises:
        ValueError: there is none.
    """
    return _read(name, BACKENDS, _BACKENDS)


def option(read: Callable[[str], str], name: str) -> Callable[[str], str]:
    """Return the type of an option for argparse, which tells what it understood.

    Args:
        read: one of the functions above.
        name: of the option, such as ``--task``.
    """

    def parse(text: str) -> str:
        try:
            meant = read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if meant != text:
            tell(f"{name} {text}: read as {meant}")
        return meant

    return parse


@functools.cache
def tell(line: str) -> None:
    """Print a line on standard error, once in a process."""
    print(line, file=sys.stderr)


def _read(name: str, known: Iterable[str], aliases: dict[str, str]) -> str:
    names = list(known)
    plain = name.strip().lower().replace("_", "-")
    if plain in names:
        return plain
    if plain in aliases:
        return aliases[plain]
    close = difflib.get_close_matches(plain, [*names, *aliases], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"expected one of {', '.join(names)}; got {name!r}{hint}")
