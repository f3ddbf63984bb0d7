"""``python -m benchmarks.torch_versions STORE FILE``: whether other torches answer alike.

Run it with the torch that converted, which writes its answers into FILE, then with each other torch
(its environment needs ``tracefleet[run]`` alone), which is held against them. A row of the table is
a conversion: the largest difference of an output, as a share of the output's largest value, and the
lowest cosine of two answers to the same row. Python's warnings are errors: a bundle must open
without one. docs/serving.md has the table of what was measured.
"""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tracefleet
from tracefleet import Model
from tracefleet.channel import Published
from tracefleet.published import find, resolve
from tracefleet.reader.open import open_selected

_ROWS = 64
_SEED = 20261201


def main() -> int:
    """Write the answers, or print how far this torch's are from those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("file", type=Path, help="answers of the torch that converted (.npz)")
    options = parser.parse_args()
    warnings.simplefilter("error")
    print(f"torch {torch.__version__}, Python {platform.python_version()}")
    found: dict[str, Any] = dict(answer_all(options.store))
    if not options.file.exists():
        np.savez(options.file, **found)
        return 0
    with np.load(options.file) as expected:
        for name, answer in found.items():
            print(f"{name:<50} {compare(expected[name], answer)}")
    return 0


def answer_all(url: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the variant and the first output, a row for each drawn text, of each conversion."""
    store = tracefleet.open_store(url)
    for published in find(store, channel="latest"):
        model = open_selected(store, resolve(store, published))
        yield name(published), np.concatenate(list(answer(model)))


def name(published: Published) -> str:
    """Return the source and the variant, as a table names them."""
    return f"{published.slug[:24]} {published.variant}"


def answer(model: Model) -> Iterator[np.ndarray]:
    """Yield the first output of texts of one up to as many ids as the model takes."""
    drawn = np.random.default_rng(_SEED)
    for length in np.linspace(1, max(model.lengths), _ROWS, dtype=int):
        ids = drawn.integers(5, 250, (1, length))
        decoded = {one: ids for one in model.input_names if one == "decoder_input_ids"}
        yield flatten(next(iter(model(ids, **decoded).values())))


def flatten(output: np.ndarray) -> np.ndarray:
    """Return a vector for each token, or for each row, ``(n, width)``, in float64."""
    return np.asarray(output, dtype=np.float64).reshape(-1, output.shape[-1])


def compare(expected: np.ndarray, got: np.ndarray) -> str:
    """Return the largest difference and the lowest cosine as a row of the table."""
    error = np.abs(expected - got).max() / np.abs(expected).max()
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    cosine = ((expected * got).sum(axis=1) / norms).min()
    return f"largest difference {error:.1e}  lowest cosine {cosine:.6f}"


if __name__ == "__main__":
    sys.exit(main())
