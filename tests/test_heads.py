"""Tasks: what a checkpoint was made for, and which class builds it with that head."""

from __future__ import annotations

import json

import pytest
import transformers

from tasks.errors import RequestError, UnsupportedCheckpointError
from tasks.model.heads import count_choices, default_task, model_class
from tests.support import tiny
from tracefleet.heads import AUTO_CLASSES


def _folder(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def _with_modules(folder, *types):
    listed = []
    for i, one in enumerate(types):
        path = f"{i}_X" if i else ""
        listed.append({"idx": i, "name": str(i), "path": path, "type": one})
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


TASKS = {
    "BertForMaskedLM": "fill-mask",
    "AlbertForMaskedLM": "fill-mask",
    "DistilBertForMaskedLM": "fill-mask",
    "XLMWithLMHeadModel": "fill-mask",  # in the mapping of causal language models as well
    "RobertaForSequenceClassification": "text-classification",
    "BartForSequenceClassification": "text-classification",
    "DistilBertForSequenceClassification": "text-classification",
    "LlamaForSequenceClassification": "text-classification",
    "DistilBertForTokenClassification": "token-classification",
    "T5ForTokenClassification": "token-classification",
    "DistilBertForQuestionAnswering": "question-answering",
    "RobertaForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
    "GPT2LMHeadModel": "text-generation",
    "LlamaForCausalLM": "text-generation",
    "Gemma3ForCausalLM": "text-generation",
    "BertLMHeadModel": "text-generation",
    "T5ForConditionalGeneration": "text2text-generation",
    "MarianMTModel": "text2text-generation",
    # These two are in the mapping of masked language models as well.
    "BartForConditionalGeneration": "text2text-generation",
    "MBartForConditionalGeneration": "text2text-generation",
    "BertModel": "feature-extraction",
    "DistilBertModel": "feature-extraction",
    "T5EncoderModel": "feature-extraction",
    "GPT2Model": "feature-extraction",
    "ViTForImageClassification": "image-classification",
    "ResNetForImageClassification": "image-classification",
    "Wav2Vec2ForSequenceClassification": "audio-classification",
    "ASTForAudioClassification": "audio-classification",
}


@pytest.mark.parametrize("architecture", TASKS)
def test_the_architecture_names_the_task(architecture, tmp_path):
    assert default_task(_folder(tmp_path, architectures=[architecture])) == TASKS[architecture]


def test_every_task_but_sentence_similarity_is_named_by_some_architecture():
    assert {*TASKS.values(), "sentence-similarity"} == set(AUTO_CLASSES)


@pytest.mark.parametrize("package", ["models", "sentence_transformer.modules.pooling"])
def test_a_pooling_beside_the_checkpoint_comes_first(package, tmp_path):
    folder = _folder(tmp_path, architectures=["BertForMaskedLM"])
    transformer = "sentence_transformers.models.Transformer"
    _with_modules(folder, transformer, f"sentence_transformers.{package}.Pooling")
    assert default_task(folder) == "sentence-similarity"


@pytest.mark.parametrize(
    ("architecture", "types", "task"),
    [
        ("BertForSequenceClassification", ["base.modules.transformer.Transformer"], None),
        ("BertForMaskedLM", ["models.MLMTransformer", "models.SpladePooling"], "fill-mask"),
    ],
)
def test_a_cross_encoder_and_splade_are_no_sentence_embedders(architecture, types, task, tmp_path):
    folder = _folder(tmp_path, architectures=[architecture])
    _with_modules(folder, *(f"sentence_transformers.{one}" for one in types))
    assert default_task(folder) == (task or "text-classification")


@pytest.mark.parametrize("architectures", [None, [], ["BertForPreTraining"], ["Wav2Vec2ForCTC"]])
def test_no_task_of_ours_is_refused_with_the_next_step(architectures, tmp_path):
    with pytest.raises(RequestError, match=r"names (no arch|\w+, which are).*Name the task"):
        default_task(_folder(tmp_path, architectures=architectures))


@pytest.mark.parametrize(
    "text", ["{", "", "[]", "null", '{"architectures": "BertModel"}', '{"architectures": [1]}']
)
def test_a_damaged_config_is_refused_by_name(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnsupportedCheckpointError, match=r"config\.json: expected"):
        default_task(tmp_path)


def test_a_config_that_is_missing_or_no_text_is_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=r"config\.json"):
        default_task(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UnsupportedCheckpointError, match=r"config\.json"):
        default_task(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "[1]", "null"])
def test_a_damaged_list_of_modules_is_refused_by_name(text, tmp_path):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UnsupportedCheckpointError, match=r"modules\.json"):
        default_task(_folder(tmp_path, architectures=["BertModel"]))


def test_the_default_task_of_saved_checkpoints_has_a_class(checkpoint):
    """What ``save_pretrained`` writes is what is read."""
    for name in ("bert", "roberta-qa", "bart", "t5", "gpt2", "deberta-cls"):
        folder = checkpoint(name)
        config = transformers.AutoConfig.from_pretrained(folder)
        kind = model_class(config, default_task(folder))
        assert kind.__name__ == tiny.MODELS[name][0]


# --- the class that builds it --------------------------------------------------------------------


def _config(name, **fields):
    return getattr(transformers, name)(**fields)


@pytest.mark.parametrize(
    ("config", "task", "expected"),
    [
        ("BertConfig", "feature-extraction", "BertModel"),
        ("BertConfig", "sentence-similarity", "BertModel"),
        ("BertConfig", "fill-mask", "BertForMaskedLM"),
        ("BertConfig", "multiple-choice", "BertForMultipleChoice"),
        ("DistilBertConfig", "question-answering", "DistilBertForQuestionAnswering"),
        ("T5Config", "text2text-generation", "T5ForConditionalGeneration"),
        ("T5Config", "feature-extraction", "T5Model"),
        ("T5Config", "sentence-similarity", "T5EncoderModel"),
        ("MT5Config", "sentence-similarity", "MT5EncoderModel"),
        ("BartConfig", "feature-extraction", "BartModel"),
        ("ViTConfig", "image-classification", "ViTForImageClassification"),
        ("Wav2Vec2Config", "audio-classification", "Wav2Vec2ForSequenceClassification"),
    ],
)
def test_the_class_follows_config_and_task(config, task, expected):
    assert model_class(_config(config), task).__name__ == expected


def test_a_checkpoint_of_the_encoder_alone_gets_the_encoder():
    config = _config("T5Config", architectures=["T5EncoderModel"])
    assert model_class(config, "feature-extraction").__name__ == "T5EncoderModel"


def test_of_several_classes_the_checkpoints_own_is_taken():
    """Funnel's base model has no decoder; its weights do not fit the whole model."""
    base = _config("FunnelConfig", architectures=["FunnelBaseModel"])
    assert model_class(base, "feature-extraction").__name__ == "FunnelBaseModel"
    other = _config("FunnelConfig", architectures=["FunnelForMaskedLM"])
    assert model_class(other, "feature-extraction").__name__ == "FunnelModel"


@pytest.mark.parametrize(
    ("config", "task", "auto"),
    [
        ("GPT2Config", "fill-mask", "AutoModelForMaskedLM"),
        ("T5Config", "text-generation", "AutoModelForCausalLM"),
        ("ViTConfig", "text-classification", "AutoModelForSequenceClassification"),
        ("BertConfig", "image-classification", "AutoModelForImageClassification"),
        ("LlamaConfig", "multiple-choice", "AutoModelForMultipleChoice"),
    ],
)
def test_a_head_that_does_not_exist_is_refused_with_the_reason(config, task, auto):
    made = _config(config, architectures=["Own"])
    match = rf"{made.model_type}.*head for {task}.*{auto}.*names \['Own'\]"
    with pytest.raises(UnsupportedCheckpointError, match=match):
        model_class(made, task)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(RequestError, match=r"fill-mask.*got 'telepathy'"):
        model_class(_config("BertConfig"), "telepathy")


def test_remote_code_is_taken_when_it_is_trusted(tmp_path):
    (tmp_path / "code.py").write_text("class Own:\n    pass\n")
    config = _config("BertConfig", auto_map={"AutoModel": "code.Own"})
    config._name_or_path = str(tmp_path)
    trusted = model_class(config, "feature-extraction", trust_remote_code=True)
    assert trusted.__name__ == "Own"
    assert model_class(config, "feature-extraction").__name__ == "BertModel"


def test_only_multiple_choice_has_choices():
    assert {task for task in AUTO_CLASSES if count_choices(task)} == {"multiple-choice"}
