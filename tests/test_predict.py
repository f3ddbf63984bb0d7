"""Texts in, answers out: against transformers' own pipelines, on tiny checkpoints of each task.

The sweep's checkpoints have tokenizers of their families' kinds: WordPiece, bytes, Unigram.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import tracefleet
from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.samples.tokenized import load_own_tokenizer
from tasks.sweep.tiny import Case, build
from tests.support.tiny import edit_config
from tracefleet.errors import InputTooLongError, TextRefusedError
from tracefleet.reader.model import Model
from tracefleet.text.labels import score_labels
from tracefleet.text.spec import TextSpec

TEXTS = ["The train left at noon.", "42!", "Done! 🎉", "雨 Как?"]
PAIR = ("Is it open?", "It was closed.")
Opened = Callable[..., tuple[Model, Path]]


def write_json(path: Path, **changes: Any) -> None:
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**old, **changes}), "utf-8")


def publish(folder: Path, task: str, store: Path, lengths: tuple[int, ...] = (16, 32)) -> Model:
    """Convert a checkpoint and open what was published."""
    request = {
        "source": f"file://{folder}",
        "task": task,
        "lengths": list(lengths),
        "store": f"file://{store}",
    }
    convert(make_request(request))
    return tracefleet.open(store, folder, task=task)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Return a conversion of the sweep's checkpoint of a model type and task, with its folder."""
    root, made = tmp_path_factory.mktemp("predict"), {}

    def get(model_type: str, task: str, **config: Any) -> tuple[Model, Path]:
        key = f"{model_type}-{task}-{len(config)}"
        if key not in made:
            folder = build(Case(model_type=model_type, task=task), root / key)
            edit_config(folder, **config)
            made[key] = publish(folder, task, root / "store"), folder
        return made[key]

    return get


def pipeline(folder: Path, task: str) -> Any:
    return transformers.pipeline(task, model=str(folder), tokenizer=str(folder), device="cpu")


def close(got: Any, expected: Any) -> None:
    """Require the same structure, words and positions, and scores up to rounding."""
    assert type(got) is type(expected) or np.isscalar(expected)
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            close(got[name], expected[name])
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            close(one, other)
    elif isinstance(expected, float | np.floating):
        assert got == pytest.approx(float(expected), abs=2e-5)
    else:
        assert got == expected


# --- as the pipeline ------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_labels_are_those_of_the_pipeline(opened: Opened, model_type: str):
    model, folder = opened(model_type, "text-classification")
    expected = pipeline(folder, "text-classification")
    close(model.predict(TEXTS), expected(TEXTS))
    close(model.predict(TEXTS, top_k=None), expected(TEXTS, top_k=None))
    close(model.predict(TEXTS, top_k=2), expected(TEXTS, top_k=2))
    close(model.predict(TEXTS[0]), expected(TEXTS[0])[0])
    pair = {"text": PAIR[0], "text_pair": PAIR[1]}
    close(model.predict(PAIR), expected(pair))
    close(model.predict([PAIR, list(PAIR)]), [expected(pair)] * 2)


@pytest.mark.parametrize(
    ("problem_type", "logits", "expected"),
    [
        ("multi_label_classification", [0.0, 1.0], [("good", 0.7310586), ("bad", 0.5)]),
        ("regression", [0.0, 1.5], [("good", 1.5), ("bad", 0.0)]),
        ("single_label_classification", [1.0, 1.0], [("bad", 0.5), ("good", 0.5)]),
        (None, [0.0, 1.0], [("good", 0.7310586), ("bad", 0.2689414)]),
        (None, [1.0], [("bad", 0.7310586)]),
        ("regression", [-2.5], [("bad", -2.5)]),
        ("multi_label_classification", [-200.0, 200.0], [("good", 1.0), ("bad", 0.0)]),
    ],
)
def test_the_problem_type_chooses_the_scores(
    problem_type: str | None, logits: list[float], expected: list[tuple[str, float]]
):
    spec = TextSpec(prompts={}, special={}, labels=("bad", "good"), problem_type=problem_type)
    got = [(one["label"], one["score"]) for one in score_labels(np.array(logits), spec)]
    assert [label for label, _ in got] == [label for label, _ in expected]
    assert [score for _, score in got] == pytest.approx([score for _, score in expected])


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_filled_masks_are_those_of_the_pipeline(opened: Opened, model_type: str):
    model, folder = opened(model_type, "fill-mask")
    expected = pipeline(folder, "fill-mask")
    mask = expected.tokenizer.mask_token
    one, two = f"The {mask} left at noon.", f"A {mask} and {mask}."
    close(model.predict(one), expected(one))
    close(model.predict([one, two], top_k=3), expected([one, two], top_k=3))
    with pytest.raises(ValueError, match=r"expected at least one .* in each text, got none"):
        model.predict([one, "no mask"])


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_entities_are_those_of_the_pipeline(opened: Opened, model_type: str):
    names = {"0": "O", "1": "B-X", "2": "I-X"}
    model, folder = opened(model_type, "token-classification", id2label=names, label2id={})
    expected = pipeline(folder, "token-classification")
    close(model.predict(TEXTS), expected(TEXTS))
    simple = expected(TEXTS, aggregation_strategy="simple")
    close(model.predict(TEXTS, aggregation="simple"), simple)
    close(model.predict(TEXTS[0]), expected(TEXTS[0]))
    with pytest.raises(ValueError, match="aggregation: expected one of"):
        model.predict(TEXTS, aggregation="max")
    with pytest.raises(ValueError, match="expected texts, got pairs"):
        model.predict(PAIR)


def test_features_are_those_of_the_pipeline_without_its_axis_of_one(opened: Opened):
    model, folder = opened("gpt2", "feature-extraction")
    expected = pipeline(folder, "feature-extraction")
    for got, wanted in zip(model.predict(TEXTS), expected(TEXTS), strict=True):
        assert np.allclose(got, wanted[0], atol=1e-4)
    assert np.allclose(model.predict(TEXTS[1]), expected(TEXTS[1])[0], atol=1e-4)


# --- questions, by hand: transformers 5 has no pipeline for them any more ------------------------


def answer_by_hand(folder: Path, question: str, context: str, most: int) -> dict[str, Any]:
    """Follow the pipeline of transformers 4, span by span."""
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=most,
        stride=most // 2,
        return_overflowing_tokens=True,
    )
    best: dict[str, Any] = {"score": -1.0}
    for window in range(len(encoded["input_ids"])):
        names = [name for name in tokenizer.model_input_names if name in encoded]
        feed = {name: torch.tensor([encoded[name][window]]) for name in names}
        with torch.no_grad():
            out = model(**feed)
        parts, own = encoded.sequence_ids(window), encoded[window]
        ids = encoded["input_ids"][window]
        shown = [p == 1 or i == tokenizer.cls_token_id for p, i in zip(parts, ids, strict=True)]
        hidden = ~torch.tensor(shown)
        starts = out.start_logits[0].masked_fill(hidden, -10000.0).softmax(0)
        ends = out.end_logits[0].masked_fill(hidden, -10000.0).softmax(0)
        for first in range(len(parts)):
            for last in range(first, min(first + 15, len(parts))):
                score = float(starts[first] * ends[last])
                if parts[first] == parts[last] == 1 and score > best["score"]:
                    words = own.word_ids[first], own.word_ids[last]
                    start = own.word_to_chars(words[0], 1)[0]
                    end = own.word_to_chars(words[1], 1)[1]
                    best = {"score": score, "start": start, "end": end}
    return {**best, "answer": context[best["start"] : best["end"]]}


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_answers_are_those_of_the_old_pipeline_in_long_contexts_too(
    opened: Opened, model_type: str
):
    model, folder = opened(model_type, "question-answering")
    short, long = "Ida walked.", "In the spring Ida Holm walked. " * 3
    for context in (short, long):
        expected = answer_by_hand(folder, "Who?", context, 32)
        close(model.predict(("Who?", context)), expected)
    both = model.predict([("Who?", short), ("Who?", long)], top_k=3)
    for answers in both:
        scores = [one["score"] for one in answers]
        assert scores == sorted(scores, reverse=True)
        assert len({(one["start"], one["end"]) for one in answers}) == len(answers) <= 3
    assert len(both[1]) == 3
    with pytest.raises(ValueError, match="text 0: expected a pair"):
        model.predict("Who?")
    with pytest.raises(ValueError, match="got an empty text"):
        model.predict(("Who?", " "))
    with pytest.raises(InputTooLongError, match="Shorten the question"):
        model.predict((long, long))


# --- other tasks ----------------------------------------------------------------------------------


def test_a_choice_is_made_by_the_models_own_scores(opened: Opened):
    import torch

    model, folder = opened("bert", "multiple-choice")
    choices = ["It was late.", "Nobody knew the way.", "42!", "so"]
    [spec] = [one for one in model.manifest.inputs if one.name == "input_ids"]
    choices = choices[: int(spec.axes[1])] if spec.axes[1].isdigit() else choices
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    eager = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    encoded = tokenizer(["It rains."] * len(choices), choices, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = eager(**{name: value[None] for name, value in encoded.items()}).logits[0]
    answer = model.predict("It rains.", choices=choices)
    best = int(logits.argmax())
    assert (answer["index"], answer["choice"]) == (best, choices[best])
    assert answer["score"] == pytest.approx(float(logits.softmax(0)[best]), abs=1e-5)
    with pytest.raises(ValueError, match="choices"):
        model.predict("It rains.")


def test_a_generating_task_says_that_it_writes_no_text_yet(opened: Opened):
    model, _ = opened("gpt2", "text-generation")
    with pytest.raises(TextRefusedError, match="writes no text yet"):
        model.predict("Once")
    ids = transformers.AutoTokenizer.from_pretrained(opened("gpt2", "text-generation")[1])("Once")
    assert np.allclose(model("Once").logits, model([ids["input_ids"]]).logits)


# --- texts in the place of ids --------------------------------------------------------------------


def test_texts_are_the_same_as_what_the_tokenizer_makes_of_them(opened: Opened):
    model, folder = opened("bert", "text-classification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(TEXTS, padding=True)
    expected = model(**encoded).logits
    assert np.allclose(model(TEXTS).logits, expected, atol=1e-5)
    assert np.allclose(model(encoded).logits, expected, atol=1e-5)
    assert np.allclose(model(np.array(TEXTS)).logits, expected, atol=1e-5)
    assert np.allclose(model(TEXTS[0]).logits, expected[:1], atol=1e-5)
    pair = model(**tokenizer(*PAIR, return_tensors="np")).logits
    assert np.allclose(model(PAIR).logits, pair, atol=1e-5)
    assert np.allclose(model([PAIR]).logits, pair, atol=1e-5)
    special = "[CLS] a [SEP] b [MASK]"
    assert np.allclose(model(special).logits, model(**tokenizer([special])).logits, atol=1e-5)
    assert np.isfinite(model("").logits).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([PAIR, "single"], "a mixture of both"),
        (["fine", float("nan")], "text 1: expected a text or a pair of texts, got nan"),
        (["fine", None], "text 1: expected"),
        (["fine", "half \ud83c"], "text 1: expected text that UTF-8 can hold"),
        (("fine", "half \ud83c"), "text 0: expected text that UTF-8 can hold"),
        (["fine", "x " * 99], "text 1: [0-9]+ tokens; expected at most 32.*truncate=True"),
        ([("a", "b", "c")], "text 0: expected"),
        (("a", "b", "c"), "Give several texts as a list"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(opened: Opened, given: Any, message: str):
    model, _ = opened("bert", "text-classification")
    for call in (model, model.predict):
        with pytest.raises(ValueError, match=message):
            call(given)


def test_no_texts_are_no_answers(opened: Opened):
    model, _ = opened("bert", "text-classification")
    assert model.predict([]) == []
    with pytest.raises(ValueError, match="expected a text, a pair of texts or a list"):
        model.predict(None)
    with pytest.raises(ValueError, match="truncate: expected texts"):
        model([[1, 2]], truncate=True)
    with pytest.raises(ValueError, match="expected none beside texts"):
        model("x", attention_mask=[[1]])
    with pytest.raises(ValueError, match="top_k: expected at least 1"):
        model.predict("x", top_k=0)


def test_a_text_without_tokens_is_refused(opened: Opened):
    model, _ = opened("gpt2", "feature-extraction")
    with pytest.raises(ValueError, match="text 1: expected at least one token"):
        model.predict(["fine", ""])


def test_truncation_is_the_tokenizers_own(opened: Opened):
    model, folder = opened("bert", "text-classification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    long = " ".join(map(str, range(60)))
    for row in (long, (long, "short"), ("short", long)):
        texts = (row,) if isinstance(row, str) else row
        cut = tokenizer(*texts, truncation=True, max_length=32, return_tensors="np")
        assert np.allclose(model(row, truncate=True).logits, model(**cut).logits, atol=1e-5)
    assert model.predict(long, truncate=True)["label"].startswith("LABEL_")


def test_threads_that_cut_do_not_cut_the_texts_of_others(opened: Opened):
    model, _ = opened("bert", "text-classification")
    long, short = " ".join(map(str, range(60))), TEXTS[0]
    expected = model(long, truncate=True).logits, model(short).logits

    def ask(number: int) -> bool:
        if number % 2:
            return np.allclose(model(long, truncate=True).logits, expected[0], atol=1e-5)
        with pytest.raises(InputTooLongError):
            model(long)
        return np.allclose(model(short).logits, expected[1], atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(64)))


def test_a_model_says_what_it_is(opened: Opened):
    model, folder = opened("bert", "text-classification")
    said = f"<Model file://{folder}: text-classification, lengths 16, 32, float32>"
    assert repr(model) == said


# --- what the checkpoint says about texts ---------------------------------------------------------


def test_a_tokenizer_that_cuts_on_the_left_does_so_here(tmp_path: Path):
    folder = build(Case(model_type="bert", task="text-classification"), tmp_path / "left")
    write_json(folder / "tokenizer_config.json", truncation_side="left", model_max_length=12)
    model = publish(folder, "text-classification", tmp_path / "store")
    assert model.manifest.text is not None
    assert model.manifest.text.truncation_side == "left"
    assert model.manifest.text.max_tokens == 12
    long = " ".join(map(str, range(60)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cut = tokenizer(long, truncation=True, return_tensors="np")
    assert cut["input_ids"].shape == (1, 12)
    assert np.allclose(model(long, truncate=True).logits, model(**cut).logits, atol=1e-5)


def test_a_tokenizer_that_does_more_than_its_file_is_refused_and_ids_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tasks.samples import text_spec

    folder = build(Case(model_type="bert", task="text-classification"), tmp_path / "other")
    own = load_own_tokenizer

    def load(*arguments: Any) -> Any:
        tokenizer = own(*arguments)
        tokenizer.backend_tokenizer.normalizer = None
        return tokenizer

    from tasks.model.facts import LoadOptions

    options = LoadOptions(task="text-classification")
    assert (
        text_spec.describe_text(folder, options, (16, 32), tmp_path / "made.json").refused is None
    )
    monkeypatch.setattr(text_spec, "load_own_tokenizer", load)
    spec = text_spec.describe_text(folder, options, (16, 32), tmp_path / "made.json")
    assert spec.refused == "its tokenizer's files make other ids than its tokenizer in transformers"


def test_a_conversion_without_a_tokenizer_refuses_texts_and_takes_ids(tmp_path: Path):
    folder = build(Case(model_type="bert", task="text-classification"), tmp_path / "none")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    model = publish(folder, "text-classification", tmp_path / "store")
    for call in (model, model.predict):
        with pytest.raises(TextRefusedError, match=r"the checkpoint has no tokenizer\. Give ids"):
            call("x")
    assert model([[1, 2, 3]]).logits.shape[0] == 1
