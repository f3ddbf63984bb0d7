import json

import pytest
from safetensors import safe_open

from tasks.errors import RequestError
from tasks.sweep.configs import VOCABULARY
from tasks.sweep.tiny import SWEPT_TASKS, Case, Untestable, build, list_cases
from tracefleet.heads import AUTO_CLASSES

BUILT = [
    ("bert", "fill-mask"),
    ("t5", "text2text-generation"),
    ("mixtral", "text-generation"),
    ("reformer", "text-generation"),  # an attention whose hashes are random
    ("roberta", "multiple-choice"),
]


def case_of(model_type, task):
    return Case(model_type=model_type, task=task)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("model_type", "task"), BUILT)
def test_the_same_case_makes_the_same_bytes(tmp_path, model_type, task):
    case = case_of(model_type, task)
    first = files_of(build(case, tmp_path / "first"))
    second = files_of(build(case, tmp_path / "second"))
    assert first == second
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= first.keys()
    assert sum(map(len, first.values())) < 2_000_000


@pytest.mark.parametrize(("model_type", "task"), BUILT)
def test_special_ids_are_small_and_inside_the_vocabulary(tmp_path, model_type, task):
    folder = build(case_of(model_type, task), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    ids = [config.get(f"{role}_token_id") for role in ("pad", "bos", "eos", "decoder_start")]
    assert config["vocab_size"] == VOCABULARY
    assert all(i is None or 0 <= i < 10 for i in ids)
    assert config["pad_token_id"] in (0, 1)


def test_the_config_names_the_architecture_of_the_task(tmp_path):
    folder = build(case_of("bert", "text-classification"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert len(config["id2label"]) == 3


def test_weights_are_of_order_one_in_their_effect(tmp_path):
    folder = build(case_of("bert", "fill-mask"), tmp_path)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        dense = file.get_tensor("bert.encoder.layer.0.output.dense.weight")
        norm = file.get_tensor("bert.encoder.layer.0.output.LayerNorm.weight")
    assert dense.std() * dense.shape[1] ** 0.5 == pytest.approx(1, abs=0.1)
    assert (norm == 1).all()


def test_every_kind_of_layer_of_the_default_config_is_kept(tmp_path):
    folder = build(case_of("qwen3_next", "text-generation"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["layer_types"] == ["linear_attention", "full_attention"]
    assert config["num_hidden_layers"] == 2


def test_lists_of_layer_indices_do_not_count_as_kinds(tmp_path):
    folder = build(case_of("llama4_text", "text-generation"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["moe_layers"] == [0, 1]


def test_two_cases_of_one_type_have_other_weights(tmp_path):
    first = files_of(build(case_of("bert", "fill-mask"), tmp_path / "first"))
    second = files_of(build(case_of("bert", "text-generation"), tmp_path / "second"))
    assert first["model.safetensors"] != second["model.safetensors"]


def test_cases_are_sorted_and_belong_to_swept_tasks():
    found = list_cases()
    assert len({case.model_type for case in found}) > 500
    assert list(found) == sorted(found, key=lambda case: (case.model_type, case.task))
    assert {case.task for case in found} == set(SWEPT_TASKS) & set(AUTO_CLASSES)


def test_cases_can_be_narrowed_to_types():
    names = [case.name for case in list_cases(["t5"])]
    assert "t5/text2text-generation" in names
    assert all(name.startswith("t5/") for name in names)


def test_an_unknown_type_is_refused_with_close_names():
    with pytest.raises(RequestError, match=r"got 'robrta'.*Did you mean roberta"):
        list_cases(["bert", "robrta"])


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("vit", r"forward\(\) reads pixel_values, no input_ids"),
        ("blip-2", "pixel_values"),
        ("layoutlmv2", "detectron2"),
    ],
)
def test_what_eager_cannot_run_from_ids_is_untestable_and_saves_nothing(
    tmp_path, model_type, reason
):
    with pytest.raises(Untestable, match=reason):
        build(case_of(model_type, "feature-extraction"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
