"""Generation in the artifact: the search, what is refused, its gate, and the way to a reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from flows.convert import convert
from tasks.request.conversion import make_request

TASK, LENGTHS = "text2text-generation", [8, 16]


def _convert(folder: Path, store: Path, **more: Any) -> Any:
    fields = {"source": f"file://{folder}", "task": TASK, "lengths": LENGTHS, "store": str(store)}
    return convert(make_request({**fields, **more})).manifest


def _bundle(store: Path) -> Any:
    (path,) = store.rglob("model.pt")
    return torch.jit.load(path).eval()


def _set_generation(folder: Path, **options: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def _rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 200, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    mask[2, 1:] = 0
    return ids, mask


def _expect_equal(folder: Path, bundle: Any, limit: int = 16) -> None:
    eager = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids, mask = _rows()
    for beams in (1, 3):
        expected = eager.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, num_beams=beams
        )
        with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            got = bundle.generate(ids, mask, limit, beams)
        assert torch.equal(got, expected)


def test_marian_generates_in_its_archive_what_transformers_generates(own_checkpoint, tmp_path):
    folder = own_checkpoint("marian")
    _set_generation(folder, bad_words_ids=[[0], [9, 3]], renormalize_logits=True, num_beams=2)
    manifest = _convert(folder, tmp_path / "store")
    made = manifest.generation
    assert manifest.without_generation is None
    assert (made.num_beams, made.start, made.eos, made.layers) == (2, 0, (1,), 2)
    assert made.options["bad_words"] == "[[0], [9, 3]]"
    assert made.verdict.beams == (1, 2, 4)
    assert made.verdict.max_rel_error < 1e-5
    assert made.verdict.rows >= 3 * 2 * 8
    assert len(made.verdict.faults) == 5
    _expect_equal(folder, _bundle(tmp_path / "store"))
