"""``make bench-serve``: sentences a second of an artifact against what it replaces.

The sample checkpoint and a random BERT-base, 512 real sentences, two threads; the peers take turns
in one process, and the result is the ratios. Texts are tokenized before, but for
sentence-transformers, whose ``encode`` takes texts: there ours tokenizes too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conversion import WORK, build
from benchmarks.sentences import collect_sentences
from examples.sample import ensure_sample
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tracefleet import Model
from tracefleet import open as open_model

_STORE = WORK / "serve-store"
_LENGTHS = {"minilm": (32, 128, 256), "bert-base": (32, 128, 512)}
_BATCHES = (1, 8, 32)
#: A row at a time takes long; so many of the sentences say enough.
_SINGLES = 64

Rows = list[list[int]]


@dataclass(frozen=True)
class Peer:
    """One way to serve rows.

    Attributes:
        name: of the way.
        run: runs all rows that it is given, in batches of so many.
    """

    name: str
    run: Callable[[Rows, int], None]


def main() -> int:
    """Measure, print the tables, write ``.bench/serve.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: 3)")
    parser.add_argument("--sentences", type=int, default=512, help="how many (default: 512)")
    parser.add_argument("--model", choices=sorted(_LENGTHS), action="append")
    parser.add_argument("--dtype", choices=("float32", "int8"), action="append")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(2)
    results: dict[str, dict[str, float]] = {}
    for name in options.model or sorted(_LENGTHS):
        checkpoint = ensure_sample() if name == "minilm" else build(name)
        texts = collect_sentences(options.sentences)
        rows = tokenize(ensure_sample(), texts, _LENGTHS[name][-1])
        lengths = sorted(map(len, rows))
        median = statistics.median(lengths)
        print(f"{name}: {len(rows)} sentences, median {median:g} tokens, longest {lengths[-1]}")
        models = {}
        for dtype in options.dtype or ("float32", "int8"):
            models[dtype] = convert(checkpoint, name, dtype)
        measured = measure(checkpoint, models, rows, options.rounds)
        results |= {f"{name} {case}": found for case, found in measured.items()}
        if name == "minilm" and importlib.util.find_spec("sentence_transformers"):
            found = measure_texts(checkpoint, models["float32"], texts, options.rounds)
            results[f"{name} texts"] = found
            report("texts in, one call", found)
    WORK.mkdir(exist_ok=True)
    (WORK / "serve.json").write_text(json.dumps(results, indent=2))
    return 0


def tokenize(checkpoint: Path, texts: Sequence[str], longest: int) -> Rows:
    """Return each text's ids, cut to the largest standard length."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(longest)
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def convert(checkpoint: Path, name: str, dtype: str) -> Model:
    """Convert a checkpoint once, and open it."""
    from flows.convert import convert as convert_request

    request = {
        "source": str(checkpoint),
        "task": "feature-extraction",
        "lengths": _LENGTHS[name],
        "dtype": dtype,
        "store": str(_STORE),
    }
    convert_request(make_request(request), Steps())
    return open_model(_STORE, checkpoint, task="feature-extraction", dtype=dtype)


def measure(
    checkpoint: Path, models: dict[str, Model], rows: Rows, rounds: int
) -> dict[str, dict[str, float]]:
    """Return rows a second of each peer, by case; print them."""
    peers = [Peer("transformers", make_eager(checkpoint))]
    for dtype, model in models.items():
        peers.append(Peer(f"tracefleet {dtype}", make_reader(model)))
    results = {}
    for batch in _BATCHES:
        some = rows[:_SINGLES] if batch == 1 else rows
        orders = {"": some} if batch == 1 else {" sorted": sorted(some, key=len), " mixed": some}
        for order, ordered in orders.items():
            found = interleave([(p.name, p.run, ordered, batch) for p in peers], rounds)
            results[f"batches of {batch}{order}"] = found
            report(f"batches of {batch}{order}", found)
    eager, *ours = peers
    calls = [(eager.name, eager.run, rows, _BATCHES[-1])]
    calls += [
        (p.name, make_whole(model), rows, 0) for p, model in zip(ours, models.values(), strict=True)
    ]
    found = interleave(calls, rounds)
    results["one call of ours, mixed batches of 32 of theirs"] = found
    report("one call of ours, mixed batches of 32 of theirs", found)
    return results


def make_eager(checkpoint: Path) -> Callable[[Rows, int], None]:
    """Return what runs rows through transformers, each batch padded to its longest row."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(checkpoint).eval()

    def run(rows: Rows, batch: int) -> None:
        with torch.inference_mode():
            for ids, mask in _pad_batches(rows, batch):
                model(input_ids=ids, attention_mask=mask)

    return run


def make_reader(model: Model) -> Callable[[Rows, int], None]:
    """Return what runs the same padded batches through an artifact."""

    def run(rows: Rows, batch: int) -> None:
        for ids, mask in _pad_batches(rows, batch):
            model(ids, mask)

    return run


def make_whole(model: Model) -> Callable[[Rows, int], None]:
    """Return what runs all rows in one call."""

    def run(rows: Rows, _batch: int) -> None:
        model(rows)

    return run


def measure_texts(
    checkpoint: Path, model: Model, texts: Sequence[str], rounds: int
) -> dict[str, float]:
    """Compare with sentence-transformers, which sorts by length too."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(checkpoint), device="cpu")

    def encode(_rows: Rows, _batch: int) -> None:
        theirs.encode(list(texts))

    def ours(_rows: Rows, _batch: int) -> None:
        model(tokenize(checkpoint, texts, model.lengths[-1]))

    none: Rows = [[]] * len(texts)
    calls = [("sentence-transformers", encode, none, 0), ("tracefleet float32", ours, none, 0)]
    return interleave(calls, rounds)


def interleave(
    calls: Sequence[tuple[str, Callable[[Rows, int], None], Rows, int]], rounds: int
) -> dict[str, float]:
    """Return the median of rows a second of each call; they take turns, after one warm round."""
    seconds: dict[str, list[float]] = {name: [] for name, *_ in calls}
    for number in range(rounds + 1):
        for name, run, rows, batch in calls:
            started = time.perf_counter()
            run(rows, batch)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: len(rows) / statistics.median(seconds[name]) for name, _, rows, _ in calls}


def report(case: str, found: dict[str, float]) -> None:
    """Print one case: rows a second, and the ratio to the first peer."""
    first = next(iter(found.values()))
    parts = [f"{name} {rate:7.1f}/s ({rate / first:.2f})" for name, rate in found.items()]
    shown = "   ".join(parts)
    print(f"  {case:<50} {shown}", flush=True)


def _pad_batches(rows: Rows, batch: int) -> Iterator[tuple[Any, Any]]:
    import torch

    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        longest = max(map(len, part))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in part])
        yield ids, mask


if __name__ == "__main__":
    raise SystemExit(main())
