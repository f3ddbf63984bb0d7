"""``make demo``: convert a real checkpoint with the Prefect flow, then use the conversion."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tracefleet
from examples.sample import ensure_sample
from flows.__main__ import main as flows

STORE, NAME = "./store", "minilm"
SENTENCES = ("A cat sits on the mat.", "A kitten rests on a rug.")


def main() -> int:
    """Convert, open, embed, compare; return the exit code."""
    started = time.monotonic()
    checkpoint = ensure_sample()
    print(f"checkpoint  {checkpoint}", flush=True)
    options = ["--engine", "prefect", "--name", NAME, "--store", STORE]
    code = flows(["convert", str(checkpoint), *options])
    if code:
        return code
    traced = tracefleet.open(STORE, NAME).predict(list(SENTENCES))
    eager = embed_eager(checkpoint, SENTENCES)
    print(f"\ncosine of {SENTENCES[0]!r} and {SENTENCES[1]!r}")
    print(f"  traced  {traced[0] @ traced[1]:.6f}\n  eager   {eager[0] @ eager[1]:.6f}")
    print(f"\ndone in {time.monotonic() - started:.0f} s; try: {_next_command()}")
    return 0 if float(np.abs(traced - eager).max()) < 1e-5 else 1


def embed_eager(checkpoint: Path, sentences: Sequence[str]) -> np.ndarray:
    """Embed with transformers, as the checkpoint's ``modules.json`` says: mean, then unit length.

    Returns:
        Vectors of shape ``(sentences, 384)``.
    """
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    eager = AutoModel.from_pretrained(checkpoint).eval()
    inputs = AutoTokenizer.from_pretrained(checkpoint)(
        list(sentences), padding=True, return_tensors="pt"
    )
    shown = inputs["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        hidden = eager(**inputs).last_hidden_state
    mean = (hidden * shown).sum(1) / shown.sum(1)
    return np.asarray(torch.nn.functional.normalize(mean).numpy())


def _next_command() -> str:
    return f".venv/bin/tracefleet run {STORE} {NAME} --text 'any sentence'"


if __name__ == "__main__":
    sys.exit(main())
