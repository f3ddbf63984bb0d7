"""The peer: the script that the libraries' documentation recommends, one process per length.

``from_pretrained``, ``torch.jit.trace`` with its default check, ``torch.jit.save``, sha256, copy.
Run as ``python -m benchmarks.script CHECKPOINT LENGTH STORE``.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import AutoModel


def main() -> None:
    """Convert one checkpoint at one length."""
    warnings.simplefilter("ignore")
    checkpoint, length, store = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    model = AutoModel.from_pretrained(checkpoint, return_dict=False).eval()
    example = (
        torch.randint(0, model.config.vocab_size, (1, length)),
        torch.ones(1, length, dtype=torch.long),
    )
    with torch.no_grad():
        traced = torch.jit.trace(model, example)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / f"model_{length}.pt"
        torch.jit.save(traced, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        store.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, store / f"{digest[:12]}_{length}.pt")


if __name__ == "__main__":
    main()
