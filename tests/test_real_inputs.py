"""Real texts as probes: they see what only trained activations show, and random ids do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from examples.sample import ensure_sample
from tasks.errors import NumericsMismatchError
from tasks.model.load import load_eager
from tasks.samples.make import read_feeds
from tasks.samples.texts import QUESTION, TEXTS
from tasks.sweep.tiny import Case, build
from tasks.validate.plan import plan_probes
from tests.support.gate_support import Bench
from tests.support.tiny import BERT
from tracefleet.manifest_types import General

#: Ids of all-MiniLM-L6-v2's tokenizer that every English text has, and random ids hardly ever.
_FULL_STOP, _THE = 1012, 1996
_OUTLIER, _CHANNEL, _NEURON = 400.0, 3, 0
_LENGTHS = (8, 16)


def _outlying(folder: Path, strength: float) -> Path:
    """Save a tiny BERT in which two common tokens drive one channel far above all others."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 30522}
    config = transformers.BertConfig(**{**BERT, **sizes})
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for token in (_FULL_STOP, _THE):
            model.embeddings.word_embeddings.weight[token, _CHANNEL] = _OUTLIER
        dense = model.encoder.layer[0].intermediate.dense
        # sqrt(64) is what LayerNorm makes of a lone channel, and 5 what it makes of no other.
        dense.weight[_NEURON] = 0.0
        dense.weight[_NEURON, _CHANNEL] = strength
        dense.bias[_NEURON] = -5.0 * strength
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(ensure_sample() / name, folder / name)
    return folder


class _Clamped(torch.nn.Module):
    """An activation that clamps what is above 20 standard deviations of random ids' activations."""

    def __init__(self, inner: Callable[[torch.Tensor], torch.Tensor], most: float) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.inner(values).clamp(max=self.most)


class _Overflowing(torch.nn.Module):
    """An activation that is NaN where half precision overflows, and exact everywhere else."""

    def __init__(self, inner: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        activated = self.inner(values)
        return activated + activated.half().float() * 0.0


def _clamp(model: Any) -> None:
    layer = model.encoder.layer[0].intermediate
    layer.intermediate_act_fn = _Clamped(layer.intermediate_act_fn, most=20.0)


def _overflow(model: Any) -> None:
    layer = model.encoder.layer[0].intermediate
    layer.intermediate_act_fn = _Overflowing(layer.intermediate_act_fn)


@pytest.mark.parametrize(
    ("fault", "strength"), [(_clamp, 100.0), (_overflow, 1e5)], ids=["clamp", "half-overflow"]
)
@pytest.mark.parametrize("general", [None, General(shortest=1, rows=64, tokens=1024)])
def test_a_fault_of_trained_activations_alone_is_caught_by_real_texts_alone(
    fault, strength, general, tmp_path
):
    folder = _outlying(tmp_path / "checkpoint", strength)
    whole = None if general is None else _LENGTHS[:1]
    fields: dict[str, Any] = {
        "folder": folder,
        "task": "feature-extraction",
        "batch": 1,
        "general": general,
        "whole": whole,
    }
    blind = Bench(work=tmp_path / "blind", **fields)
    assert blind.validate(blind.trace(fault)).passed, "random ids see it: it proves nothing"
    bench = Bench(work=tmp_path / "work", real=True, **fields)
    assert bench.validate(bench.trace()).passed, "the texts refuse what is right"
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bench.trace(fault))
    report = caught.value.report
    assert report is not None
    real = {p.key for p in plan_probes(bench.plan()) if p.sample or p.name.startswith("real-")}
    failed = {f"{p.length}/{p.name}" for p in report.probes if not p.difference.passed}
    assert failed
    assert failed <= real


# -- what the tokenizer makes --


def _case(tmp_path: Path, model_type: str, task: str, **more: Any) -> Bench:
    folder = build(Case(model_type=model_type, task=task), tmp_path / "checkpoint")
    return Bench(folder=folder, work=tmp_path / "work", task=task, batch=1, real=True, **more)


def _feeds(bench: Bench) -> dict[str, Any]:
    assert bench.samples is not None
    return read_feeds(bench.samples, bench.facts.inputs)


def test_texts_have_their_own_lengths_and_the_passage_every_standard_one(tmp_path):
    bench = _case(tmp_path, "bert", "feature-extraction", lengths=(8, 64))
    feeds = _feeds(bench)
    assert len(feeds) >= 12 + 4
    sizes = {name: feed["input_ids"].shape[1] for name, feed in feeds.items()}
    assert {sizes[f"passage-{size}"] for size in (7, 8, 63, 64)} == {7, 8, 63, 64}
    short = {size for name, size in sizes.items() if not name.startswith("passage-")}
    assert len(short) >= 8
    assert max(short) <= 64
    for feed in feeds.values():
        assert list(feed) == list(bench.facts.inputs)
        assert len({tensor.shape for tensor in feed.values()}) == 1
        assert int(feed["input_ids"].max()) < bench.facts.vocabulary.size


def test_a_text_that_is_too_long_is_cut_by_the_tokenizer_with_its_special_tokens(tmp_path):
    bench = _case(tmp_path, "bert", "feature-extraction", lengths=(8, 16))
    tokenizer = transformers.AutoTokenizer.from_pretrained(bench.folder)
    ids = _feeds(bench)["passage-16"]["input_ids"][0].tolist()
    assert len(ids) == 16
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_questions_come_with_their_text_and_its_segments(tmp_path):
    bench = _case(tmp_path, "bert", "question-answering", lengths=(16, 64))
    feeds = _feeds(bench)
    segments = feeds["english"]["token_type_ids"][0].tolist()
    assert segments == sorted(segments)
    assert set(segments) == {0, 1}
    assert bench.samples is not None
    assert {text.text for text in bench.samples.texts} == {QUESTION}


def test_choices_share_a_row_and_a_length(tmp_path):
    bench = _case(tmp_path, "bert", "multiple-choice", lengths=(16, 64))
    feed = _feeds(bench)["english"]
    batch, choices, tokens = feed["input_ids"].shape
    assert (batch, choices) == (1, 4)
    shown = feed["attention_mask"][0].sum(-1)
    assert int(shown.max()) == tokens
    assert len(set(shown.tolist())) > 1


def test_a_decoder_gets_the_text_behind_its_first_token(tmp_path):
    bench = _case(tmp_path, "bart", "text2text-generation", lengths=(8, 64))
    feed = _feeds(bench)["english"]
    ids, decoder = feed["input_ids"][0], feed["decoder_input_ids"][0]
    assert int(decoder[0]) == bench.facts.vocabulary.decoder_start
    assert torch.equal(decoder[1:], ids[:-1])


def test_boxes_are_drawn_as_no_tokenizer_makes_them(tmp_path):
    bench = _case(tmp_path, "layoutlm", "feature-extraction", lengths=(8, 64))
    boxes = _feeds(bench)["english"]["bbox"]
    assert boxes.shape == (*_feeds(bench)["english"]["input_ids"].shape, 4)
    assert bool((boxes[..., 2] >= boxes[..., 0]).all())


def test_a_tokenizer_of_sentencepiece_models_alone_is_used_as_marians_users_have_it(tmp_path):
    folder = tmp_path / "checkpoint"
    build(Case(model_type="marian", task="text2text-generation"), folder)
    for path in folder.glob("*token*"):
        path.unlink()
    _save_marian_tokenizer(folder)
    task = "text2text-generation"
    bench = Bench(folder=folder, work=tmp_path / "work", task=task, batch=1, real=True)
    assert bench.samples is not None
    assert bench.samples.missing is None
    assert len(bench.samples.tokenized) == len(bench.samples.texts)  # without transformers
    assert bench.validate(bench.trace()).passed


def _save_marian_tokenizer(folder: Path) -> None:
    import io

    import sentencepiece

    lines = [text.text for text in TEXTS]
    for name in ("source.spm", "target.spm"):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 20),
            model_writer=model,
            vocab_size=300,
            hard_vocab_limit=False,
            character_coverage=1.0,
            minloglevel=2,
        )
        (folder / name).write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    special = {"</s>": config["eos_token_id"], "<pad>": config["pad_token_id"], "<unk>": 5}
    vocabulary = dict(special)
    for piece in pieces:
        vocabulary.setdefault(piece, 10 + len(vocabulary))
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer", "source_lang": "en"}), "utf-8"
    )


# -- why there are none --


def _missing(bench: Bench) -> str:
    assert bench.samples is not None
    assert bench.samples.path is None
    assert bench.samples.missing is not None
    assert str(bench.folder) not in bench.samples.missing
    return bench.samples.missing


def _remade(folder: Path, tmp_path: Path, task: str = "fill-mask") -> Bench:
    return Bench(folder=folder, work=tmp_path / "w", task=task, batch=1, real=True)


def test_a_checkpoint_without_a_tokenizer_says_so_and_is_published_with_random_ids(
    checkpoint, tmp_path
):
    bench = _remade(checkpoint("bert"), tmp_path, "feature-extraction")
    assert _missing(bench) == "the checkpoint has no tokenizer"
    report = bench.validate(bench.trace())
    assert report.passed
    assert report.golden.missing == "the checkpoint has no tokenizer"
    assert report.golden.entry is None


def test_a_tokenizer_that_is_damaged_says_so(tmp_path):
    folder = build(Case(model_type="bert", task="fill-mask"), tmp_path / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}", "utf-8")
    assert "tokenizer" in _missing(_remade(folder, tmp_path))


def test_a_tokenizer_of_another_model_says_so(tmp_path):
    folder = build(Case(model_type="bert", task="fill-mask"), tmp_path / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(ensure_sample() / name, folder / name)
    bench = _remade(folder, tmp_path)
    assert bench.samples is not None
    # What is left of its texts are those of special tokens alone.
    assert "ids" in _missing(bench)


@pytest.mark.parametrize("wanted", [set(), {"Hello"}])
def test_a_tokenizer_that_refuses_texts_costs_no_conversion(
    wanted, checkpoint, tmp_path, monkeypatch
):
    """TAPAS wants a table, LayoutLM's kin boxes: an error of the tokenizer is a finding."""

    def refusing(text: str, pair: str | None = None, **_: Any) -> dict[str, list[int]]:
        if text not in wanted:
            raise ValueError("expected a table")
        return {"input_ids": list(range(20, 30))}

    monkeypatch.setattr("tasks.samples.tokenized.load_own_tokenizer", lambda *_: refusing)
    bench = _remade(checkpoint("bert"), tmp_path, "feature-extraction")
    assert bench.samples is not None
    if wanted:
        assert [text.name for text in bench.samples.texts] == ["word"]
    else:
        assert "expected a table" in _missing(bench)


def test_a_tokenizer_that_makes_nothing_of_a_text_costs_no_conversion(
    checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "tasks.samples.tokenized.load_own_tokenizer", lambda *_: lambda *_, **__: {"input_ids": []}
    )
    _missing(_remade(checkpoint("bert"), tmp_path, "feature-extraction"))


def test_seven_types_for_each_token_are_drawn_as_no_tokenizer_makes_them(tmp_path):
    """TAPAS's own tokenizer makes them of a table; of a text it makes one type for each token."""
    bench = _case(tmp_path, "tapas", "feature-extraction", lengths=(8, 64))
    feed = _feeds(bench)["english"]
    assert feed["token_type_ids"].shape == (*feed["input_ids"].shape, 7)
    assert bench.validate(bench.trace()).passed


def test_a_text_that_eager_refuses_proves_no_general_graph_and_is_nobodys_reference(
    tmp_path, monkeypatch
):
    """A head may want other inputs than its tokenizer makes: a crash once, and a finding now."""
    general = General(shortest=1, rows=64, tokens=1024)
    bench = _case(tmp_path, "bert", "feature-extraction", general=general)
    bundle = bench.trace()
    start = int(_feeds(bench)["english"]["input_ids"][0, 0])  # random ids never have it

    def load_refusing(*given: Any) -> Any:
        model = load_eager(*given)
        model.register_forward_pre_hook(_refuse(start, tokens=7), with_kwargs=True)
        return model

    monkeypatch.setattr("tasks.validate.compute.load_eager", load_refusing)
    with pytest.raises(NumericsMismatchError, match="general-1x7: eager refuses it"):
        bench.validate(bundle)


def _refuse(token: int, *, tokens: int) -> Callable[..., None]:
    def refuse(_: Any, __: Any, named: dict[str, torch.Tensor]) -> None:
        ids = named["input_ids"]
        if ids.shape[1] == tokens and bool((ids == token).any()):
            raise ValueError("expected no text")

    return refuse
