"""Tiny encoder-decoders that were trained to overfit: answers that end, with clear choices."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support import tiny

_ROWS, _TOKENS, _STEPS = 6, 7, 150


def save_trained(name: str, folder: Path) -> Path:
    """Train the tiny model of a name on a few rows of ids, and save it; some seconds."""
    model = tiny.build(name)
    generator = torch.Generator().manual_seed(3)
    eos = model.config.eos_token_id
    ids = torch.randint(5, 200, (_ROWS, _TOKENS), generator=generator)
    labels = torch.randint(5, 200, (_ROWS, _TOKENS), generator=generator)
    ids[:, -1] = eos
    for row in range(_ROWS):
        end = 2 + row % (_TOKENS - 2)
        labels[row, end] = eos
        labels[row, end + 1 :] = -100
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        model(ids, torch.ones_like(ids), labels=labels).loss.backward()
        optimiser.step()
    target = folder / f"{name}-trained"
    model.save_pretrained(target)
    return target
