"""Real sentences for measurements: a file's, or the docstrings of Python's standard library.

Those are English, technical, of very different lengths, on every machine, and nobody's data.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from tracefleet.errors import BenchError

_SEED = 13
_SHORTEST, _LONGEST = 20, 1200
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def collect_sentences(count: int) -> list[str]:
    """Return so many different sentences in a seeded order.

    Raises:
        BenchError: Python was installed without its sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.py")):
        found.update(dict.fromkeys(_read_sentences(path)))
    sentences = sorted(found)
    random.Random(_SEED).shuffle(sentences)  # noqa: S311 - no secret
    if len(sentences) < count:
        raise BenchError(
            f"texts: expected {count} sentences in the docstrings of {folder}, got "
            f"{len(sentences)}. Give texts of your own: --texts FILE, one a line."
        )
    return sentences[:count]


def read_texts(path: Path) -> list[str]:
    """Return the lines of a file, without empty ones.

    Raises:
        BenchError: the file can't be read, is no UTF-8, or holds no text.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BenchError(
            f"texts: expected a file in UTF-8 with one text a line, got {path}: {error}. Correct "
            "the path, or leave --texts out."
        ) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise BenchError(
            f"texts: expected one text a line, got none in {path}. Fill the file, or leave --texts "
            "out for sentences of Python's own documentation."
        )
    return texts


def _read_sentences(path: Path) -> Iterator[str]:
    """Yield the sentences of a file's docstrings, paragraphs joined where they are short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_text("utf-8", errors="replace"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        for paragraph in (text or "").split("\n\n"):
            for sentence in _END.split(" ".join(paragraph.split())):
                if _SHORTEST <= len(sentence) <= _LONGEST:
                    yield sentence
