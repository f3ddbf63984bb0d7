"""Sentence vectors: prompts, limits and lower-casing as sentence-transformers applies them.

sentence-transformers itself is not needed: what it does is done by hand with transformers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tracefleet
from tasks.fetch.needed import list_needed_files
from tasks.fetch.source import SourceRequest
from tasks.sweep.tiny import Case, build
from tests.test_pooling import TASK, write
from tests.test_predict import publish, write_json
from tracefleet.errors import InputTooLongError, TextRefusedError
from tracefleet.reader.model import Model
from tracefleet.reader.texts import Texts
from tracefleet.text.files import PROMPTS, SENTENCE_CONFIGS, read_spec

TEXTS = ["A train", "Ü 42!", "", " a  b "]
QUERY = {"query": "query: ", "passage": "passage: "}
Made = tuple[Model, Path]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Return a conversion of a tiny embedder with these configs of sentence-transformers."""
    root = tmp_path_factory.mktemp("sentences")
    made: dict[str, Made] = {}

    def get(lengths: tuple[int, ...] = (16, 32), **configs: Any) -> Made:
        key = json.dumps([lengths, configs], sort_keys=True)
        if key not in made:
            case = Case(model_type="roberta", task="feature-extraction")
            folder = write(build(case, root / f"embedder-{len(made)}"))
            write_json(folder / PROMPTS, **configs.get("prompts", {}))
            write_json(folder / SENTENCE_CONFIGS[0], **configs.get("sentence", {}))
            made[key] = publish(folder, TASK, root / "store", lengths), folder
        return made[key]

    return get


def embed_by_hand(folder: Path, texts: Sequence[str], most: int) -> Any:
    """Return the mean of the tokens' vectors, as the checkpoint's pooling says."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=most, return_tensors="pt")
        with torch.no_grad():
            vectors.append(model(**encoded).last_hidden_state[0].mean(0).numpy())
    return np.stack(vectors)


def test_vectors_are_those_of_encode_and_long_texts_are_cut_as_it_cuts(
    embedder: Callable[..., Made],
):
    model, folder = embedder(sentence={"max_seq_length": 20})
    texts = [*TEXTS, "a long one " * 30]
    got = model.predict(texts)
    assert got.dtype == np.float32
    assert np.allclose(got, embed_by_hand(folder, texts, 20), atol=1e-4)
    assert np.allclose(model.predict(texts[0]), got[0], atol=1e-5)
    assert np.allclose(model(texts[:4]).sentence_embedding, got[:4], atol=1e-5)
    assert model.predict([]).shape == (0, got.shape[1])
    with pytest.raises(InputTooLongError, match="truncate=True"):
        model(texts)


def test_a_conversion_that_is_shorter_than_the_checkpoint_cuts_only_when_asked(
    embedder: Callable[..., Made],
):
    model, folder = embedder(sentence={"max_seq_length": 64})
    long = "a long one " * 30
    with pytest.raises(InputTooLongError, match=r"text 1: .* expected at most 32"):
        model.predict(["short", long])
    expected = embed_by_hand(folder, [long], 32)
    assert np.allclose(model.predict([long], truncate=True), expected, atol=1e-4)


def test_prompts_are_put_before_texts_by_their_names(embedder: Callable[..., Made]):
    prompts = {"prompts": QUERY, "default_prompt_name": "query"}
    model, folder = embedder(sentence={"max_seq_length": 20}, prompts=prompts)

    def by_hand(prompt: str) -> Any:
        return embed_by_hand(folder, [prompt + text for text in TEXTS], 20)

    plain = by_hand("")
    assert not np.allclose(plain, by_hand("query: "), atol=1e-2)
    assert np.allclose(model.predict(TEXTS), by_hand("query: "), atol=1e-4)
    assert np.allclose(model(TEXTS).sentence_embedding, by_hand("query: "), atol=1e-4)
    named = model.predict(TEXTS, prompt_name="passage")
    assert np.allclose(named, by_hand("passage: "), atol=1e-4)
    assert np.allclose(model.predict(TEXTS, prompt="x "), by_hand("x "), atol=1e-4)
    assert np.allclose(model.predict(TEXTS, prompt=""), plain, atol=1e-4)
    for call in (model, model.predict):
        with pytest.raises(ValueError, match=r"expected one of \['passage', 'query'\], got 'x'"):
            call(TEXTS, prompt_name="x")
        with pytest.raises(ValueError, match="expected prompt or prompt_name, got both"):
            call(TEXTS, prompt_name="query", prompt="x")


def test_a_lower_casing_config_lower_cases_and_leaves_special_tokens(embedder: Callable[..., Made]):
    model, folder = embedder(sentence={"max_seq_length": 20, "do_lower_case": True})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = f"The TRAIN {tokenizer.mask_token} Ü"
    lower = f"the train {tokenizer.mask_token} ü"
    expected = embed_by_hand(folder, [lower], 20)
    assert not np.allclose(expected, embed_by_hand(folder, [text], 20), atol=1e-2)
    assert np.allclose(model.predict([text]), expected, atol=1e-4)


def test_the_same_request_elsewhere_writes_the_same_manifest(
    embedder: Callable[..., Made], tmp_path: Path
):
    prompts = {"prompts": QUERY, "default_prompt_name": "query"}
    model, folder = embedder(sentence={"max_seq_length": 20}, prompts=prompts)
    again = publish(folder, TASK, tmp_path / "store")
    assert again.manifest.text == model.manifest.text
    assert again.manifest.key == model.manifest.key


def test_a_pipelines_task_of_the_same_checkpoint_applies_none_of_it(embedder: Callable[..., Made]):
    prompts = {"prompts": QUERY, "default_prompt_name": "query"}
    _, folder = embedder(sentence={"max_seq_length": 20, "do_lower_case": True}, prompts=prompts)
    spec = read_spec(lambda name: _read(folder, name), "feature-extraction")
    assert (spec.prompts, spec.default_prompt, spec.lower_case) == ({}, None, False)


def test_an_embedder_from_before_prompts_were_kept_refuses_texts(embedder: Callable[..., Made]):
    model, _ = embedder(sentence={"max_seq_length": 20})
    old = dataclasses.replace(model.manifest, text=None)
    with pytest.raises(TextRefusedError, match="before conversions carried their prompts"):
        _ = Texts(old, model.read).tokenizer
    labels = dataclasses.replace(old, variant=tracefleet.Variant(task="text-classification"))
    assert Texts(labels, model.read).encode(["x"], truncate=False)


def test_the_configs_that_say_so_are_fetched(embedder: Callable[..., Made]):
    _, folder = embedder(sentence={"max_seq_length": 20})

    class Listing:
        def names(self) -> list[str]:
            return [path.name for path in folder.iterdir()]

        def has(self, path: str) -> bool:
            return (folder / path).is_file()

        def read(self, path: str, limit: int) -> bytes:
            return (folder / path).read_bytes()

    needed = list_needed_files(Listing(), SourceRequest(source=f"file://{folder}"))
    assert {PROMPTS, SENTENCE_CONFIGS[0]} <= set(needed)


def _read(folder: Path, name: str) -> bytes | None:
    path = folder / name
    return path.read_bytes() if path.is_file() else None


# --- what the files may say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {"max_tokens": None, "labels": ()}),
        ({"config.json": "not json"}, {"labels": ()}),
        ({"config.json": "[]"}, {"labels": ()}),
        ({"config.json": {"id2label": {"0": "a", "2": "c"}}}, {"labels": ("a", "LABEL_1", "c")}),
        ({"config.json": {"id2label": {"99999999": "a"}}}, {"labels": ()}),
        ({"config.json": {"id2label": ["a"]}}, {"labels": ()}),
        ({"tokenizer_config.json": {"model_max_length": 1e30}}, {"max_tokens": None}),
        ({"tokenizer_config.json": {"model_max_length": 12}}, {"max_tokens": 12}),
        ({"tokenizer_config.json": {"truncation_side": "no"}}, {"truncation_side": "right"}),
        ({"special_tokens_map.json": {"mask_token": {"content": "M"}}}, {"special": {"mask": "M"}}),
        (
            {"config.json": {"max_position_embeddings": 9}, SENTENCE_CONFIGS[0]: {}},
            {"max_tokens": 9},
        ),
        ({PROMPTS: {"prompts": [], "default_prompt_name": 3}}, {"prompts": {}}),
    ],
)
def test_files_are_read_as_they_may_be(files: dict[str, Any], expected: dict[str, Any]):
    def read(name: str) -> bytes | None:
        value = files.get(name)
        if value is None:
            return None
        return (value if isinstance(value, str) else json.dumps(value)).encode()

    spec = read_spec(read, TASK)
    assert {name: getattr(spec, name) for name in expected} == expected


def test_a_class_without_a_name_has_its_position():
    spec = read_spec(lambda name: b'{"id2label": {"0": "a"}}', "text-classification")
    assert (spec.label(0), spec.label(1)) == ("a", "LABEL_1")


# --- the sample -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample_model(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return publish(sample, TASK, tmp_path_factory.mktemp("sample"), (32, 256))


def test_the_samples_vectors_are_those_of_its_modules(sample: Path, sample_model: Model):
    texts = [*TEXTS, "[CLS] a [MASK] <s>", "漢字 🎉", "a long one " * 200]
    expected = embed_by_hand(sample, texts, 256)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(sample_model.predict(texts), expected, atol=1e-5)


def test_the_packages_example_works_on_the_sample(sample_model: Model):
    assert tracefleet.__doc__ is not None
    lines = [line for line in tracefleet.__doc__.splitlines() if line.startswith("    ")]
    statements = [line.strip() for line in lines if not line.startswith("    model = ")]
    names: dict[str, Any] = {"model": sample_model}
    compared = 0
    for statement in statements:
        code, _, said = statement.partition("  # ")
        if code.startswith("import "):
            exec(code, names)
            continue
        got = repr(eval(code, names))
        if said.startswith(("(2, 384)", "(1, 384)", "'validated'")):
            assert got == said.partition(":")[0]
            compared += 1
    assert compared == 3
