"""``make bench-serve``: sentences a second of an artifact against what it replaces.

The sample checkpoint and a random BERT-base, 512 real sentences, two threads; the peers take turns,
and the result is the ratios. Texts are tokenized before, but for sentence-transformers, whose
``encode`` takes texts: there ours tokenizes too. C++ runs in a process of its own, which measures
itself. Callers in threads have one torch thread each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.conversion import WORK, build
from benchmarks.peers import (
    Peer,
    Rows,
    load_eager,
    make_eager,
    make_quantised,
    make_reader,
    make_whole,
    serving_in_cpp,
    share,
)
from examples.sample import ensure_sample
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tracefleet import Model
from tracefleet import open as open_model
from tracefleet.bench.texts import collect_sentences

_STORE = WORK / "serve-store"
_LENGTHS = {"minilm": (32, 128, 256), "bert-base": (32, 128, 512)}
_BATCHES = (1, 8, 32)
_THREADS = 2
#: A row at a time takes long; so many of the sentences say enough.
_SINGLES = 64
_CALLERS = (1, 2, 8)

Results = dict[str, dict[str, float]]


def main() -> int:
    """Measure, print the tables, write ``.bench/serve.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: 3)")
    parser.add_argument("--sentences", type=int, default=512, help="how many (default: 512)")
    parser.add_argument("--model", choices=sorted(_LENGTHS), action="append")
    parser.add_argument("--dtype", choices=("float32", "int8"), action="append")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(_THREADS)
    results: Results = {}
    for name in options.model or sorted(_LENGTHS):
        checkpoint = ensure_sample() if name == "minilm" else build(name)
        texts = collect_sentences(options.sentences)
        rows = tokenize(ensure_sample(), texts, _LENGTHS[name][-1])
        print_lengths(name, rows)
        models = {
            dtype: convert(checkpoint, name, dtype)
            for dtype in options.dtype or ("float32", "int8")
        }
        measured = measure(checkpoint, models, rows, options.rounds)
        if name == "minilm" and importlib.util.find_spec("sentence_transformers"):
            measured |= measure_texts(checkpoint, models["float32"], texts, options.rounds)
        results |= {f"{name} {case}": found for case, found in measured.items()}
    WORK.mkdir(exist_ok=True)
    (WORK / "serve.json").write_text(json.dumps(results, indent=2))
    return 0


def print_lengths(name: str, rows: Rows) -> None:
    """Print how long the sentences are."""
    lengths = sorted(map(len, rows))
    median = statistics.median(lengths)
    print(f"{name}: {len(rows)} sentences, median {median:g} tokens, longest {lengths[-1]}")


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


def find_bundle(model: Model) -> Path:
    """Return the file of an opened conversion's bundle."""
    return next(_STORE.rglob(f"{model.manifest.key}/{model.manifest.bundle.path}"))


def measure(checkpoint: Path, models: dict[str, Model], rows: Rows, rounds: int) -> Results:
    """Return rows a second of each peer, by case; print them."""
    eager = load_eager(checkpoint)
    theirs = Peer("transformers", make_eager(eager))
    ours = [Peer(f"tracefleet {dtype}", make_reader(model)) for dtype, model in models.items()]
    results: Results = {}
    with ExitStack() as stack:
        peers = [theirs, *ours]
        if "int8" in models:
            peers.append(Peer("torch int8", make_quantised(eager)))
        for dtype, model in models.items():
            run = stack.enter_context(serving_in_cpp(find_bundle(model), _THREADS))
            peers.append(Peer(f"C++ {dtype}", run))
        for case, batch, ordered in list_cases(rows):
            results[case] = compare(case, peers, ordered, batch, rounds)
    wholes = [Peer(f"tracefleet {dtype}", make_whole(model)) for dtype, model in models.items()]
    case = f"one call of ours, mixed batches of {_BATCHES[-1]} of theirs"
    results[case] = compare(case, [theirs, *wholes], rows, _BATCHES[-1], rounds)
    return results | measure_callers(theirs, ours[0], rows, rounds)


def list_cases(rows: Rows) -> list[tuple[str, int, Rows]]:
    """Return name, batch and rows of each case."""
    cases = [("batches of 1", 1, rows[:_SINGLES])]
    for batch in _BATCHES[1:]:
        cases.append((f"batches of {batch} sorted", batch, sorted(rows, key=len)))
        cases.append((f"batches of {batch} mixed", batch, rows))
    return cases


def measure_callers(theirs: Peer, ours: Peer, rows: Rows, rounds: int) -> Results:
    """Compare callers in threads: does ours scale as torch itself does?"""
    import torch

    torch.set_num_threads(1)
    results: Results = {}
    for callers in _CALLERS:
        peers = [Peer(one.name, share(one.run, callers)) for one in (theirs, ours)]
        case = f"batches of 8 sorted, callers in threads: {callers}"
        results[case] = compare(case, peers, sorted(rows, key=len), 8, rounds)
    torch.set_num_threads(_THREADS)
    return results


def measure_texts(checkpoint: Path, model: Model, texts: Sequence[str], rounds: int) -> Results:
    """Compare with sentence-transformers, which sorts by length too."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(checkpoint), device="cpu")

    def encode(_rows: Rows, _batch: int) -> None:
        theirs.encode(list(texts))

    def ours(_rows: Rows, _batch: int) -> None:
        model(tokenize(checkpoint, texts, model.lengths[-1]))

    peers = [Peer("sentence-transformers", encode), Peer("tracefleet float32", ours)]
    none: Rows = [[]] * len(texts)
    return {"texts in, one call": compare("texts in, one call", peers, none, 0, rounds)}


def compare(
    case: str, peers: Sequence[Peer], rows: Rows, batch: int, rounds: int
) -> dict[str, float]:
    """Return the median of rows a second of each peer; they take turns, after one warm round."""
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for number in range(rounds + 1):
        for peer in peers:
            started = time.perf_counter()
            own = peer.run(rows, batch)
            if number:
                took = time.perf_counter() - started
                seconds[peer.name].append(took if own is None else own)
    found = {name: len(rows) / statistics.median(times) for name, times in seconds.items()}
    report(case, found)
    return found


def report(case: str, found: dict[str, float]) -> None:
    """Print one case: rows a second, and the ratio to the first peer."""
    first = next(iter(found.values()))
    parts = [f"{name} {rate:.1f}/s ({rate / first:.2f})" for name, rate in found.items()]
    print(f"  {case:<50} {'   '.join(parts)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
