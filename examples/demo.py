"""``make demo``: convert a real checkpoint with the Prefect flow, then use the conversion."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

import tracefleet
from examples.sample import ensure_sample
from flows.__main__ import main as flows

LENGTHS = "32,64,128,256"
STORE = "./store"
SENTENCES = ("A cat sits on the mat.", "A kitten rests on a rug.")


def main() -> int:
    """Convert, open, embed, compare; return the exit code."""
    started = time.monotonic()
    checkpoint = ensure_sample()
    source = f"file://{checkpoint}"
    print(f"checkpoint  {checkpoint}", flush=True)
    code = flows(
        ["convert", "--engine", "prefect", "--source", source, "--task", "feature-extraction",
         "--lengths", LENGTHS, "--store", STORE]
    )  # fmt: skip
    if code:
        return code
    model = tracefleet.open(STORE, source, task="feature-extraction")
    traced = [embed_traced(model, checkpoint, sentence) for sentence in SENTENCES]
    eager = [embed_eager(checkpoint, sentence) for sentence in SENTENCES]
    print(f"\ncosine of {SENTENCES[0]!r} and {SENTENCES[1]!r}")
    print(f"  traced  {cosine(*traced):.6f}\n  eager   {cosine(*eager):.6f}")
    print(f"\ndone in {time.monotonic() - started:.0f} s; try: {_next_command(source)}")
    return 0 if abs(cosine(*traced) - cosine(*eager)) < 1e-5 else 1


def token_ids(checkpoint: Path, sentence: str) -> list[int]:
    """Return a sentence's token ids, unpadded."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    return list(tokenizer.encode(sentence).ids)


def embed_traced(model: tracefleet.Model, checkpoint: Path, sentence: str) -> np.ndarray:
    """Embed a sentence with the conversion: mean over the tokens, shape ``(384,)``."""
    ids = np.array([token_ids(checkpoint, sentence)])
    tokens: np.ndarray = model(ids)["last_hidden_state"][0]
    return np.asarray(tokens.mean(axis=0))


def embed_eager(checkpoint: Path, sentence: str) -> np.ndarray:
    """Embed a sentence with transformers, shape ``(384,)``."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    eager = AutoModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        hidden = eager(torch.tensor([token_ids(checkpoint, sentence)])).last_hidden_state
    return np.asarray(hidden[0].mean(0).numpy())


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    """Return the cosine similarity of two vectors."""
    return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))


def _next_command(source: str) -> str:
    return f".venv/bin/tracefleet run {STORE} {source} --text 'any sentence'"


if __name__ == "__main__":
    sys.exit(main())
