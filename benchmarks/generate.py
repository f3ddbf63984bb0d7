"""``make bench-generate``: a bundle's ``generate`` against ``model.generate``, in turns.

Random weights of the shapes of Marian-base and T5-small, sources of 32 tokens, 64 new ones (ends
are taken out of all sides, so that every answer is as long). All run in one process on the same
threads, one after the other in each round: transformers, the conversion in float32 and int8, and
CTranslate2 in both where it is installed. Answers in float32 are compared with transformers'. The
median of the rounds is told, with bytes and the cost of the gate.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tracefleet
from benchmarks.generate_peers import COMPUTE_TYPES, Run, open_ctranslate2
from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tracefleet.generation_types import GenerationVerdict

SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "marian-base": (
        "MarianMTModel",
        "MarianConfig",
        {
            "vocab_size": 58_101,
            "pad_token_id": 58_100,
            "decoder_start_token_id": 58_100,
            "forced_eos_token_id": None,
            "d_model": 512,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "encoder_ffn_dim": 2048,
            "decoder_ffn_dim": 2048,
            "max_position_embeddings": 512,
            "scale_embedding": True,
        },
    ),
    "t5-small": ("T5ForConditionalGeneration", "T5Config", {"decoder_start_token_id": 0}),
}
SOURCE, ANSWER = 32, 64
EAGER, OURS = "transformers", "float32"
#: Runs one call on ids: number of beams, and new tokens of every answer.
Call = Callable[[Any, int, int], Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Attributes:
        shape: Name of the model's shape.
        rows: Rows in a call.
        beams: Number of beams.
        seconds: Of each peer's call, the median of the rounds.
        first: Seconds of the float32 bundle's to the first new token.
        equal: Whether its answers were ``model.generate``'s.
    """

    shape: str
    rows: int
    beams: int
    seconds: dict[str, float]
    first: float
    equal: bool


def main(arguments: list[str] | None = None) -> int:
    """Make the models, convert, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 8])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            for row in compare(shape, Path(folder), options.rows, options.rounds):
                print(_format(row), flush=True)
    return 0


def compare(shape: str, work: Path, counts: list[int], rounds: int) -> Iterator[Row]:
    """Yield the comparisons of one model's shape."""
    folder = make_checkpoint(shape, work / shape)
    model, told = _convert(folder, work / f"{shape}-store")
    print(told, flush=True)
    peers = {EAGER: _run_eager(_load(folder)), OURS: _run_bundle(model)}
    try:
        plain = make_checkpoint(shape, work / f"{shape}-plain", drawn=False)
        int8, told = _convert(plain, work / f"{shape}-store", dtype="int8")
        peers["int8"] = _run_bundle(int8)
    except RuntimeError as error:
        told = f"not measured: int8: {error}"
    print(told, flush=True)
    for kind in COMPUTE_TYPES:
        found = open_ctranslate2(folder, work, kind)
        if isinstance(found, str):
            print(f"not measured: ctranslate2 {kind}: {found}", flush=True)
        else:
            peers[f"ctranslate2 {kind}"] = _run_ids(found)
    for rows in counts:
        for beams in (1, 4):
            yield _compare(shape, peers, rows, beams, rounds)


def make_checkpoint(shape: str, folder: Path, *, drawn: bool = True) -> Path:
    """Save a model of a shape with random weights whose answers never end.

    Args:
        shape: One of ``SHAPES``.
        folder: Where to.
        drawn: Whether weights are drawn so that every probe of the gate sees much. Of int8 they
            leave too few choices clear; the library's own, whose choices are, take as long.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    model_class, config_class, fields = SHAPES[shape]
    config = getattr(transformers, config_class)(**fields)
    model = getattr(transformers, model_class)(config)
    if drawn and config.model_type != "t5":  # whose own weights are of a useful size
        _draw_weights(model)
    model.generation_config.suppress_tokens = [config.eos_token_id]
    model.save_pretrained(folder)
    return folder


def _draw_weights(model: Any) -> None:
    """Draw weights so that activations are of order one: the library's would make probes blind."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)


def _convert(folder: Path, store: Path, dtype: str = "float32") -> tuple[tracefleet.Model, str]:
    """Convert a checkpoint; return it opened, and a line with bytes and the cost of its gate."""
    request = make_request(
        {
            "source": f"file://{folder}",
            "task": "text2text-generation",
            "lengths": [32, 64],
            "store": str(store),
            "dtype": dtype,
        }
    )
    steps = Steps()
    started = time.monotonic()
    manifest = convert(request, steps).manifest
    whole = time.monotonic() - started
    if manifest.generation is None:
        raise RuntimeError(f"{folder.name}: no generation: {manifest.without_generation}")
    gate = steps.seconds["generation-reference"] + steps.seconds["generation"]
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    told = (
        f"{folder.name} {dtype}: bundle of {manifest.bundle.size / 1e6:.0f} MB (tied weights "
        f"{weights / 1e6:.0f} MB), converted in {whole:.0f} s, of them {gate:.0f} s for the gate "
        f"of generation; {_describe(manifest.generation.verdict)}"
    )
    return tracefleet.open(store, manifest.source, dtype=dtype), told


def _describe(verdict: GenerationVerdict | None) -> str:
    assert verdict is not None
    return f"{verdict.rows} answers equal, {verdict.near_ties} near ties"


def _load(folder: Path) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def _run_eager(model: Any) -> Call:
    def run(ids: Any, beams: int, tokens: int) -> Any:
        mask = ids.new_ones(ids.shape)
        options = {"max_new_tokens": tokens, "num_beams": beams}
        return model.generate(input_ids=ids, attention_mask=mask, **options)

    return run


def _run_bundle(model: tracefleet.Model) -> Call:
    def run(ids: Any, beams: int, tokens: int) -> Any:
        mask = ids.new_ones(ids.shape)
        return model.generate(ids, mask, max_new_tokens=tokens, num_beams=beams)

    return run


def _run_ids(run: Run) -> Call:
    return lambda ids, beams, tokens: run(ids.tolist(), beams, tokens)


def _compare(shape: str, peers: dict[str, Call], rows: int, beams: int, rounds: int) -> Row:
    import torch

    ids = torch.randint(10, 30_000, (rows, SOURCE), generator=torch.Generator().manual_seed(1))
    answers = {name: run(ids, beams, ANSWER) for name, run in peers.items()}
    taken: dict[str, list[float]] = {name: [] for name in (*peers, "first")}
    for _ in range(rounds):
        for name, run in peers.items():
            taken[name].append(_time(functools.partial(run, ids, beams, ANSWER)))
        taken["first"].append(_time(functools.partial(peers[OURS], ids, beams, 1)))
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    return Row(
        shape=shape,
        rows=rows,
        beams=beams,
        seconds={name: seconds[name] for name in peers},
        first=seconds["first"],
        equal=torch.equal(answers[EAGER], answers[OURS]),
    )


def _time(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _format(row: Row) -> str:
    """Return tokens a second of each peer, and how many times transformers' they are."""
    tokens, eager = row.rows * ANSWER, row.seconds[EAGER]
    told = [f"{row.shape}, {row.rows} row(s), {row.beams} beam(s):"]
    for name, seconds in row.seconds.items():
        told.append(f"{name} {tokens / seconds:.0f}/s ({eager / seconds:.2f})")
    same = "equal ids" if row.equal else "OTHER IDS"
    return f"{'  '.join(told)}  first token {row.first * 1e3:.0f} ms, {same}"


if __name__ == "__main__":
    sys.exit(main())
