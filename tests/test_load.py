"""Loading: what can't be converted is refused with the reason, before weights where possible."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import RequestError, UnsafeCheckpointError, UnsupportedCheckpointError
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.preflight import inspect
from tasks.model.weights import compare_with_files
from tests.support import tiny


def _inspect(folder, task, lengths=(16,), **options):
    return inspect(folder, LoadOptions(task=task, **options), lengths)


def test_facts_come_from_the_config_alone(own_checkpoint):
    folder = own_checkpoint("bert-mlm")
    (folder / "model.safetensors").unlink()
    facts = _inspect(folder, "fill-mask")
    assert facts.architecture == "BertForMaskedLM"
    assert facts.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert facts.max_length == 128
    assert facts.vocabulary.size == 256
    assert facts.vocabulary.pad == 0


def test_inputs_follow_the_forward_signature(checkpoint):
    inputs = {
        name: _inspect(checkpoint(name), task).inputs
        for name, task in {
            "distilbert-tok": "token-classification",
            "roberta-qa": "question-answering",
            "gpt2": "text-generation",
            "t5": "text2text-generation",
        }.items()
    }
    pair = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    assert inputs == {
        "distilbert-tok": ("input_ids", "attention_mask"),
        "roberta-qa": ("input_ids", "attention_mask"),
        "gpt2": ("input_ids", "attention_mask"),
        "t5": pair,
    }


@pytest.mark.parametrize(
    ("name", "task", "most"),
    [
        ("bert", "feature-extraction", 128),
        ("roberta-qa", "question-answering", 128),  # 130 rows, two of them before the first token
        ("gpt2", "text-generation", 128),
        ("bart", "text2text-generation", 128),
    ],
)
def test_lengths_over_the_positions_are_refused(name, task, most, checkpoint):
    assert _inspect(checkpoint(name), task, (most,)).max_length == most
    with pytest.raises(RequestError, match=f"at most {most}.*got {most + 1}"):
        _inspect(checkpoint(name), task, (16, most + 1))


def test_relative_positions_have_no_limit(checkpoint):
    assert _inspect(checkpoint("t5"), "text2text-generation", (4096,)).max_length is None


def test_an_unknown_architecture_is_refused(own_checkpoint):
    folder = own_checkpoint("bert")
    tiny.edit_config(folder, model_type="bort", architectures=["Bort"])
    with pytest.raises(UnsupportedCheckpointError, match="bort"):
        _inspect(folder, "feature-extraction")


def test_a_config_that_is_no_json_is_refused(own_checkpoint):
    folder = own_checkpoint("bert")
    (folder / "config.json").write_text("{")
    with pytest.raises(UnsupportedCheckpointError, match=r"config\.json"):
        _inspect(folder, "feature-extraction")


def test_a_config_that_builds_nothing_is_refused(own_checkpoint):
    folder = own_checkpoint("bert")
    tiny.edit_config(folder, num_attention_heads=5)
    with pytest.raises(UnsupportedCheckpointError, match="heads"):
        _inspect(folder, "feature-extraction")


def test_a_task_without_head_and_an_unknown_task_are_refused(checkpoint):
    with pytest.raises(UnsupportedCheckpointError, match="with a head"):
        _inspect(checkpoint("gpt2"), "fill-mask")
    with pytest.raises(RequestError, match="expected one of"):
        _inspect(checkpoint("gpt2"), "telepathy")


def test_remote_code_is_refused_unless_trusted(own_checkpoint):
    folder = own_checkpoint("bert")
    tiny.edit_config(
        folder, model_type="homemade", auto_map={"AutoConfig": "code.C", "AutoModel": "code.M"}
    )
    (folder / "code.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(UnsafeCheckpointError, match="trust_remote_code"):
        _inspect(folder, "feature-extraction")


def test_a_random_head_is_never_converted(checkpoint):
    with pytest.raises(UnsupportedCheckpointError, match=r"classifier\.weight"):
        load_eager(checkpoint("bert"), LoadOptions(task="text-classification"))


def test_the_head_of_another_task_is_dropped_for_features(checkpoint):
    model = load_eager(checkpoint("bert-mlm"), LoadOptions(task="feature-extraction"))
    assert type(model).__name__ == "BertModel"
    assert model.pooler is None  # the checkpoint has none, and none is made up


def test_weights_that_the_architecture_does_not_use_are_refused(own_checkpoint):
    folder = own_checkpoint("bert")
    path = folder / "model.safetensors"
    tensors = {**load_file(path), "encoder.layer.7.output.dense.weight": torch.ones(32, 64)}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UnsupportedCheckpointError, match=r"layer\.7"):
        load_eager(folder, LoadOptions(task="feature-extraction"))


@pytest.mark.parametrize(
    "leftover", ["bert.pooler.dense.weight", "cls.seq_relationship.weight", "bert.x.masked_bias"]
)
def test_leftovers_of_pre_training_are_no_reason_to_refuse(leftover, own_checkpoint):
    """bert-base-uncased carries a pooler and a next-sentence head beside its masked-LM head."""
    folder = own_checkpoint("bert-mlm")
    path = folder / "model.safetensors"
    save_file({**load_file(path), leftover: torch.ones(2, 32)}, path, metadata={"format": "pt"})
    assert load_eager(folder, LoadOptions(task="fill-mask"))


def test_files_that_are_not_loaded_are_not_compared(own_checkpoint):
    folder = own_checkpoint("bert")
    tensors = {n: t + 1 for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.other.safetensors")
    assert compare_with_files(tiny.build("bert"), folder) > 10


def test_a_damaged_tokenizer_and_a_quantised_config_are_named(own_checkpoint):
    folder = own_checkpoint("bert")
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UnsafeCheckpointError, match=r"tokenizer\.json"):
        _inspect(folder, "feature-extraction")
    tiny.edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedCheckpointError, match="quantization_config"):
        _inspect(folder, "feature-extraction")


def test_weights_of_another_shape_are_refused(own_checkpoint):
    folder = own_checkpoint("bert")
    tiny.edit_config(folder, vocab_size=300)
    with pytest.raises(UnsupportedCheckpointError, match="word_embeddings"):
        load_eager(folder, LoadOptions(task="feature-extraction"))


def test_a_wrongly_tied_weight_is_refused(checkpoint):
    """As transformers #48154: the encoder's embedding silently became the head's weight."""
    model = tiny.build("t5")
    assert compare_with_files(model, checkpoint("t5")) > 10
    model.encoder.block[0].layer[0].SelfAttention.q.weight.data[0, 0] += 1e-6
    with pytest.raises(UnsafeCheckpointError, match=r"SelfAttention\.q"):
        compare_with_files(model, checkpoint("t5"))


def test_files_of_another_model_match_nothing(checkpoint, tmp_path):
    save_file({"unheard.of": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsafeCheckpointError, match="no match"):
        compare_with_files(tiny.build("bert"), tmp_path)


def test_sharded_weights_load(own_checkpoint, tmp_path):
    model = tiny.build("bert")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    loaded = load_eager(tmp_path / "sharded", LoadOptions(task="feature-extraction"))
    assert torch.equal(
        loaded.encoder.layer[1].output.dense.weight, model.encoder.layer[1].output.dense.weight
    )


def test_pickled_weights_load_only_when_allowed(own_checkpoint):
    folder = own_checkpoint("bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedCheckpointError, match="weights to load"):
        load_eager(folder, LoadOptions(task="feature-extraction"))
    assert load_eager(folder, LoadOptions(task="feature-extraction", allow_pickle=True))


def test_experts_never_run_in_the_implementation_that_bakes_counts(checkpoint):
    model = load_eager(checkpoint("mixtral"), LoadOptions(task="text-generation"))
    assert model.config._experts_implementation == "batched_mm"


def test_special_ids_come_from_config_and_tokenizer(own_checkpoint):
    folder = own_checkpoint("bert")
    (folder / "tokenizer.json").write_text(
        '{"added_tokens": [{"id": 101, "special": true}, {"id": 102, "special": false}]}'
    )
    facts = _inspect(folder, "feature-extraction")
    assert 101 in facts.vocabulary.special
    assert 102 not in facts.vocabulary.special


def test_the_real_sample_loads_equal_to_its_file(sample, tmp_path):
    folder = tmp_path / "sample"
    shutil.copytree(sample, folder)
    model = load_eager(folder, LoadOptions(task="feature-extraction"))
    assert compare_with_files(model, folder) == 104
