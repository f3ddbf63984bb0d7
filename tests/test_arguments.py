"""Inputs of every kind: built, traced, varied by the probes, and read back through the reader."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
import transformers

import tracefleet
from flows.convert import convert
from tasks.errors import NumericsMismatchError, UnsafeCheckpointError, UnsupportedCheckpointError
from tasks.model.arguments import Argument
from tasks.model.facts import LoadOptions
from tasks.model.feeds import mirror, random_feed
from tasks.model.load import load_eager
from tasks.model.preflight import inspect
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case, build
from tests.support import tiny
from tests.support.gate_support import Bench

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny checkpoint of a model type and a task; read only."""

    @functools.cache
    def make(model_type, task):
        folder = tmp_path_factory.mktemp(f"{model_type}-{task}")
        return build(Case(model_type=model_type, task=task), folder)

    return make


def _facts(folder, task):
    return inspect(folder, LoadOptions(task=task), (8,))


def _save(folder, name, **config):
    """Save a model of transformers whose activations are of order one."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder


XLM = {
    "vocab_size": 256,
    "emb_dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 128,
    "n_langs": 5,
}
ERNIE = {**tiny.BERT, "use_task_id": True, "task_type_vocab_size": 3}


# --- which inputs a model gets -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "task", "inputs"),
    [
        ("bert", "fill-mask", (IDS, MASK, TYPES)),
        ("distilbert", "fill-mask", (IDS, MASK)),
        ("deberta-v2", "fill-mask", (IDS, MASK)),  # type_vocab_size is 0: it ignores them
        ("gemma3_text", "text-generation", (IDS, MASK)),
        ("gpt2", "text-generation", (IDS, MASK)),
        ("xlnet", "text-classification", (IDS, MASK, TYPES)),
        ("funnel", "feature-extraction", (IDS, MASK, TYPES)),
        ("fnet", "fill-mask", (IDS, TYPES)),
        ("layoutlm", "token-classification", (IDS, "bbox", MASK, TYPES)),
        ("bros", "token-classification", (IDS, "bbox", MASK, TYPES)),
        ("tapas", "feature-extraction", (IDS, MASK, TYPES)),
        ("xlm", "fill-mask", (IDS, MASK)),  # of one language
        ("ernie", "fill-mask", (IDS, MASK, TYPES)),  # use_task_id is off
        ("luke", "feature-extraction", (IDS, MASK, TYPES)),
        ("bart", "text-classification", (IDS, MASK)),
        ("bart", "question-answering", (IDS, MASK)),  # the decoder's ids are the encoder's
        ("t5", "question-answering", (IDS, MASK)),
    ],
)
def test_inputs_are_those_that_move_the_model(model_type, task, inputs, made):
    assert _facts(made(model_type, task), task).inputs == inputs


def _arguments_by_name(facts):
    return {argument.name: argument for argument in facts.arguments}


def test_token_types_are_optional_and_of_the_first_type_when_left_out(made):
    types = _arguments_by_name(_facts(made("bert", "fill-mask"), "fill-mask"))[TYPES]
    assert (types.kind, types.bounds, types.fill, types.pad) == ("segments", (2,), 0, 0)


def test_tapas_has_seven_columns_of_types(made):
    task = "feature-extraction"
    facts = _facts(made("tapas", task), task)
    types = _arguments_by_name(facts)[TYPES]
    assert types.axes == ("batch", "length", "7")
    assert types.bounds == (3, 256, 256, 2, 256, 256, 10)
    drawn = random_feed(facts, batch=2, length=300, seed=0)[TYPES]
    assert drawn.shape == (2, 300, 7)
    assert tuple(drawn.amax(dim=(0, 1)) + 1) == types.bounds


def test_boxes_are_required_valid_and_of_the_models_own_unit(made):
    task = "token-classification"
    for model_type, dtype, most in (("layoutlm", "int64", 127), ("bros", "float32", 1)):
        facts = _facts(made(model_type, task), task)
        bbox = _arguments_by_name(facts)["bbox"]
        assert (bbox.axes, bbox.dtype, bbox.fill) == (("batch", "length", "4"), dtype, None)
        drawn = random_feed(facts, batch=3, length=50, seed=0)["bbox"]
        for boxes in (drawn, mirror(bbox, drawn)):
            assert str(boxes.dtype) == f"torch.{dtype}"
            assert bool((boxes[..., :2] <= boxes[..., 2:]).all())
            assert 0 <= float(boxes.min()) < float(boxes.max()) <= most
        assert not torch.equal(drawn, mirror(bbox, drawn))


def test_shapes_and_sounds_of_characters_are_required(made):
    arguments = _arguments_by_name(_facts(made("roc_bert", "fill-mask"), "fill-mask"))
    for name in ("input_shape_ids", "input_pronunciation_ids"):
        assert arguments[name].kind == "other-ids"
        assert arguments[name].bounds == (512,)
        assert arguments[name].fill is None


def test_shapes_that_are_switched_off_are_no_input(made, tmp_path):
    folder = _save(tmp_path, "RoCBertForMaskedLM", **tiny.BERT, enable_shape=False)
    inputs = _facts(folder, "fill-mask").inputs
    assert "input_shape_ids" not in inputs
    assert "input_pronunciation_ids" in inputs


def test_languages_are_required_where_there_are_several(tmp_path):
    """Left out, XLM adds no language at all: another model than the one that was trained."""
    langs = _arguments_by_name(_facts(_save(tmp_path, "XLMWithLMHeadModel", **XLM), "fill-mask"))[
        "langs"
    ]
    assert (langs.kind, langs.bounds, langs.fill) == ("other-ids", (5,), None)


def test_task_types_are_optional(tmp_path):
    folder = _save(tmp_path, "ErnieForMaskedLM", **ERNIE)
    tasks = _arguments_by_name(_facts(folder, "fill-mask"))["task_type_ids"]
    assert (tasks.kind, tasks.bounds, tasks.fill) == ("other-ids", (3,), 0)


def test_robertas_positions_start_behind_the_padding_index(checkpoint):
    facts = _facts(checkpoint("roberta-qa"), "question-answering")
    assert (facts.inputs, facts.max_length, facts.vocabulary.pad) == ((IDS, MASK), 128, 1)
    assert _arguments_by_name(facts)[IDS].pad == 1


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_each_of_four_choices_has_its_own_row(model_type, made):
    facts = _facts(made(model_type, "multiple-choice"), "multiple-choice")
    assert {argument.axes for argument in facts.arguments} == {("batch", "4", "length")}
    feed = random_feed(facts, batch=2, length=6, seed=0)
    assert {tensor.shape for tensor in feed.values()} == {(2, 4, 6)}


@pytest.mark.parametrize(
    ("model_type", "task", "reason"),
    [
        ("markuplm", "feature-extraction", "xpath_tags_seq: paths of HTML tags"),
        ("markuplm", "question-answering", "xpath_tags_seq: paths of HTML tags"),
        ("luke", "token-classification", "entity_ids: ids of entities"),
        ("luke", "question-answering", "entity_ids: ids of entities"),
    ],
)
def test_what_only_a_processor_can_make_is_refused_by_name(model_type, task, reason, made):
    with pytest.raises(UnsupportedCheckpointError, match=f"{reason}.*another one"):
        _facts(made(model_type, task), task)


def test_counting_from_the_other_end_stays_in_bounds():
    columns = Argument(
        name=TYPES, kind="segments", axes=("batch", "length", "2"), bounds=(2, 10), fill=0
    )
    tensor = torch.tensor([[[0, 0], [1, 9]]])
    assert mirror(columns, tensor).tolist() == [[[1, 9], [0, 0]]]


# --- inputs of the tokenizer ---------------------------------------------------------------------


def _tokenizer(folder, text):
    (folder / "tokenizer_config.json").write_text(text)
    return folder


def _names(*names):
    return json.dumps({"model_input_names": names})


@pytest.mark.parametrize("names", [(IDS, TYPES, MASK), (IDS, MASK), (IDS, MASK, "special_tokens")])
def test_a_tokenizer_that_feeds_what_is_built_or_less_is_fine(names, own_checkpoint):
    """Without token types in its list, they stay an optional input."""
    folder = _tokenizer(own_checkpoint("bert-mlm"), _names(*names))
    assert _facts(folder, "fill-mask").inputs == (IDS, MASK, TYPES)


@pytest.mark.parametrize(
    ("name", "task", "lacking"),
    [
        ("bert-mlm", "fill-mask", "position_ids"),
        ("gpt2", "text-generation", TYPES),  # looked up in the table of token ids
        ("t5", "text2text-generation", "labels"),
    ],
)
def test_a_tokenizer_that_feeds_more_is_refused(name, task, lacking, own_checkpoint):
    folder = _tokenizer(own_checkpoint(name), _names(IDS, MASK, lacking))
    match = rf"tokenizer_config\.json: expected model_input_names among input_ids.*got {lacking}"
    with pytest.raises(UnsupportedCheckpointError, match=match):
        _facts(folder, task)


@pytest.mark.parametrize(
    ("name", "task"),
    [("roberta-qa", "question-answering"), ("deberta-cls", "text-classification")],
)
def test_token_types_without_effect_are_no_reason_to_refuse(name, task, own_checkpoint):
    folder = _tokenizer(own_checkpoint(name), _names(IDS, TYPES, MASK))
    assert _facts(folder, task).inputs == (IDS, MASK)


@pytest.mark.parametrize("text", ["{}", "[]", '{"model_input_names": null}'])
def test_a_tokenizer_that_names_nothing_says_nothing(text, own_checkpoint):
    assert _facts(_tokenizer(own_checkpoint("bert-mlm"), text), "fill-mask").inputs


def test_a_damaged_tokenizer_config_is_refused_by_name(own_checkpoint):
    with pytest.raises(UnsafeCheckpointError, match=r"tokenizer_config\.json"):
        _facts(_tokenizer(own_checkpoint("bert-mlm"), "{"), "fill-mask")


# --- the gate varies them ------------------------------------------------------------------------


def _counting(report, name):
    return [r for r in report.probes if r.name == f"other-{name}" and not r.vacuous]


@pytest.mark.parametrize(
    ("model_type", "task", "extra"),
    [
        ("layoutlm", "token-classification", ("bbox", TYPES)),
        ("layoutlmv3", "token-classification", ("bbox",)),
        ("lilt", "token-classification", ("bbox",)),
        ("bros", "token-classification", ("bbox",)),
        ("tapas", "feature-extraction", (TYPES,)),
        ("roc_bert", "fill-mask", ("input_shape_ids", "input_pronunciation_ids")),
        ("roberta", "multiple-choice", (TYPES,)),
        ("bart", "question-answering", ()),
        ("t5", "question-answering", ()),
    ],
)
def test_every_extra_input_is_proved_alone(model_type, task, extra, made, tmp_path):
    bench = Bench(folder=made(model_type, task), work=tmp_path, task=task)
    report = bench.validate(bench.trace())
    assert report.passed
    for name in extra:
        assert {result.length for result in _counting(report, name)} == {8, 16}


@pytest.mark.parametrize(
    ("model_type", "task"), [("xlnet", "text-classification"), ("funnel", "feature-extraction")]
)
def test_compared_types_are_proved_at_exact_lengths(model_type, task, made, tmp_path):
    bench = Bench(folder=made(model_type, task), work=tmp_path, task=task)
    bench.facts = bench.facts.without_padding()  # their padding changes the result
    report = bench.validate(bench.trace())
    assert report.passed
    assert _counting(report, TYPES)


def test_languages_and_task_types_are_proved_alone(tmp_path):
    for kind, config, name in (
        ("XLMWithLMHeadModel", XLM, "langs"),
        ("ErnieForMaskedLM", ERNIE, "task_type_ids"),
    ):
        folder = _save(tmp_path / name, kind, **config)
        bench = Bench(folder=folder, work=tmp_path / f"{name}-work", task="fill-mask", lengths=(8,))
        report = bench.validate(bench.trace())
        assert report.passed
        assert _counting(report, name)


def _find_failures(bench, change):
    """Trace a model whose feed is changed first, and return the names of the failed probes."""

    def corrupt(model):
        forward = model.forward

        @functools.wraps(forward)
        def forward_changed(**feed):
            return forward(**{**feed, **change(feed)})

        model.forward = forward_changed

    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bench.trace(corrupt))
    report = caught.value.report
    assert report is not None
    return {result.name for result in report.probes if not result.difference.passed}


def test_boxes_that_are_ignored_are_caught(made, tmp_path):
    task = "token-classification"
    bench = Bench(folder=made("layoutlm", task), work=tmp_path, task=task, lengths=(8,))
    failed = _find_failures(bench, lambda feed: {"bbox": torch.zeros_like(feed["bbox"])})
    assert {"other-bbox", "fresh-0", "traced-input"} <= failed


def test_segments_that_are_baked_in_are_caught(checkpoint, tmp_path):
    """The second half of every row of full length is of type 1: only one probe has it otherwise."""
    bench = Bench(folder=checkpoint("bert"), work=tmp_path, task="feature-extraction", lengths=(8,))

    def bake(feed):
        types = (torch.arange(8) >= 4).long()
        return {TYPES: types.expand(2, 8) if feed[TYPES].shape == (2, 8) else feed[TYPES]}

    failed = _find_failures(bench, bake)
    assert f"other-{TYPES}" in failed
    assert "fresh-0" not in failed


def test_shapes_of_characters_that_are_taken_for_sounds_are_caught(made, tmp_path):
    bench = Bench(
        folder=made("roc_bert", "fill-mask"), work=tmp_path, task="fill-mask", lengths=(8,)
    )
    failed = _find_failures(
        bench, lambda feed: {"input_shape_ids": feed["input_pronunciation_ids"]}
    )
    assert {"other-input_shape_ids", "fresh-0"} <= failed


# --- from folder to reader -----------------------------------------------------------------------


def _open(folder, task, store):
    request = make_request(
        {
            "source": f"file://{folder}",
            "task": task,
            "lengths": [8, 16],
            "store": f"file://{store}",
        }
    )
    convert(request)
    return tracefleet.open(f"file://{store}", request.source, task=task)


def _eager(folder, task, **feed):
    model = load_eager(folder, LoadOptions(task=task))
    with torch.no_grad():
        return model(**{k: torch.as_tensor(v) for k, v in feed.items()}).logits.numpy()


def test_boxes_from_folder_to_reader(made, tmp_path):
    task = "token-classification"
    folder = made("layoutlm", task)
    model = _open(folder, task, tmp_path)
    drawn = np.random.default_rng(0)
    ids = drawn.integers(10, 200, (3, 11))
    low = drawn.integers(0, 60, (3, 11, 2))
    bbox = np.concatenate([low, low + drawn.integers(0, 60, (3, 11, 2))], -1)
    got = model(ids, bbox=bbox)["logits"]
    np.testing.assert_allclose(got, _eager(folder, task, input_ids=ids, bbox=bbox), atol=1e-5)
    np.testing.assert_allclose(model(ids, bbox=bbox.tolist())["logits"], got, atol=0)
    one = model(ids[0], bbox=bbox[0])["logits"]  # one row without its batch axis
    np.testing.assert_allclose(one, got[:1], atol=1e-5)
    moved = model(ids, bbox=np.zeros_like(bbox))["logits"]
    assert np.abs(moved - got).max() > 1e-2
    for wrong, match in (
        (None, "bbox: this conversion needs it"),
        (bbox[..., :3], r"bbox: expected shape \(batch, length, 4\)"),
        (bbox[:, :5], "bbox: expected length 11 as in input_ids, got 5"),
        (bbox / 2, "bbox: expected integers"),
    ):
        with pytest.raises(ValueError, match=match):
            model(ids, bbox=wrong)


def test_multiple_choice_from_folder_to_reader(made, tmp_path):
    task = "multiple-choice"
    folder = made("bert", task)
    model = _open(folder, task, tmp_path)
    drawn = np.random.default_rng(1)
    ids, types = drawn.integers(10, 200, (3, 4, 11)), drawn.integers(0, 2, (3, 4, 11))
    mask = (np.arange(11) < drawn.integers(3, 12, (3, 4, 1))).astype(np.int64)
    got = model(ids, mask, token_type_ids=types)["logits"]
    assert got.shape == (3, 4)
    feed = {IDS: ids, MASK: mask, TYPES: types}
    np.testing.assert_allclose(got, _eager(folder, task, **feed), atol=1e-5)
    one = model(ids[0], mask[0], token_type_ids=types[0])["logits"]
    np.testing.assert_allclose(one, got[:1], atol=1e-5)
    lists = model(ids.tolist(), mask.tolist(), token_type_ids=types.tolist())["logits"]
    np.testing.assert_allclose(lists, got, atol=0)
    plain = model(ids)["logits"]  # every token counts, all of the first type
    np.testing.assert_allclose(plain, _eager(folder, task, input_ids=ids), atol=1e-5)
    for wrong, match in (
        ([[[5, 6], [7]] * 2], "input_ids: expected rows of one length"),
        (ids[:, :3], r"input_ids: expected shape \(batch, 4, length\), got \(3, 3, 11\)"),
        (ids[0, 0], r"input_ids: expected shape \(batch, 4, length\)"),
    ):
        with pytest.raises(ValueError, match=match):
            model(wrong)
    with pytest.raises(tracefleet.InputTooLongError):
        model(np.ones((1, 4, 17), np.int64))
