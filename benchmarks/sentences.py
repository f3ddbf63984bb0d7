"""Real sentences for measurements: from the docstrings of Python's standard library.

They are English, technical, of very different lengths, on every machine, and nobody's data.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

_SEED = 13
_SHORTEST, _LONGEST = 20, 1200
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def collect_sentences(count: int) -> list[str]:
    """Return so many different sentences in a seeded order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.py")):
        found.update(dict.fromkeys(_read_sentences(path)))
    sentences = sorted(found)
    random.Random(_SEED).shuffle(sentences)
    if len(sentences) < count:
        raise ValueError(f"expected {count} sentences in {folder}, got {len(sentences)}")
    return sentences[:count]


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
