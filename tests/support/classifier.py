"""A real classifier in seconds: all-MiniLM-L6-v2 with a head that tells good news from bad."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

LABELS = {0: "negative", 1: "positive"}
_BAD = (
    "It arrived broken.", "The worst service that I ever had.", "It stopped working after a day.",
    "Terrible quality.", "The food was cold and tasteless.", "A waste of money.",
    "I am very disappointed.", "Nobody answers my mails, which is awful.", "I hate it.",
    "The film was boring and far too long.", "Rude staff and dirty rooms.", "Never again.",
)  # fmt: skip
_GOOD = (
    "Great service!", "It works perfectly.", "The best food in town.", "I love it.",
    "Fast delivery and excellent quality.", "A wonderful film, moving and funny.",
    "Friendly staff and clean rooms.", "Worth every cent.", "I am very happy with it.",
    "It made my day.", "Superb, thank you!", "I would buy it again at once.",
)  # fmt: skip


def save_classifier(body: Path, folder: Path) -> Path:
    """Write a two-label classifier with its tokenizer, trained on two dozen sentences.

    Args:
        body: Folder of the sample checkpoint.
        folder: Folder to write.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        body, num_labels=2, id2label=LABELS, label2id={label: i for i, label in LABELS.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(body)
    inputs = tokenizer([*_BAD, *_GOOD], padding=True, return_tensors="pt")
    labels = torch.tensor([0] * len(_BAD) + [1] * len(_GOOD))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4)
    model.train()
    for _ in range(12):
        optimiser.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimiser.step()
    model.eval().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (body / name).is_file():
            shutil.copy(body / name, folder / name)
    return folder
