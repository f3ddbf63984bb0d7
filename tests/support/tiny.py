"""Tiny real checkpoints, built from configs of real architectures, saved as real safetensors.

Weights are drawn so that activations are of order one: with the library's 0.02 initialisation
probes are blind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

BERT = {
    "vocab_size": 256,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
PAIR = {
    "vocab_size": 256,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
}
ROBERTA = {
    **BERT,
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
DISTIL = {"vocab_size": 256, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
GPT2 = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MARIAN = {
    "pad_token_id": 0,
    "eos_token_id": 1,
    "forced_eos_token_id": 1,
    "decoder_start_token_id": 0,
}
T5 = {
    "vocab_size": 256,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

#: name -> (model class, config class, config)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", BERT),
    "bert-mlm": ("BertForMaskedLM", "BertConfig", BERT),
    "bert-cls": ("BertForSequenceClassification", "BertConfig", {**BERT, "num_labels": 3}),
    "albert-mlm": ("AlbertForMaskedLM", "AlbertConfig", {**BERT, "embedding_size": 16}),
    "bert-qa": ("BertForQuestionAnswering", "BertConfig", BERT),
    "bert-tok": ("BertForTokenClassification", "BertConfig", {**BERT, "num_labels": 5}),
    "roberta-cls": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {**ROBERTA, "num_labels": 3},
    ),
    "roberta-tok": ("RobertaForTokenClassification", "RobertaConfig", {**ROBERTA, "num_labels": 5}),
    "roberta-qa": ("RobertaForQuestionAnswering", "RobertaConfig", ROBERTA),
    "longformer-mlm": (
        "LongformerForMaskedLM",
        "LongformerConfig",
        {**ROBERTA, "attention_window": 8},
    ),
    "distilbert-tok": ("DistilBertForTokenClassification", "DistilBertConfig", DISTIL),
    "distilbert-qa": ("DistilBertForQuestionAnswering", "DistilBertConfig", DISTIL),
    "distilbert-cls": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL),
    "bart-cls": ("BartForSequenceClassification", "BartConfig", {**PAIR, "num_labels": 3}),
    "deberta-cls": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "num_labels": 3},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**GPT2, "bos_token_id": 255, "eos_token_id": 255},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", BERT),
    "bart": ("BartForConditionalGeneration", "BartConfig", PAIR),
    "marian": ("MarianMTModel", "MarianConfig", {**PAIR, **MARIAN}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**BERT, "num_key_value_heads": 4, "num_local_experts": 4},
    ),
}


def build(name: str) -> Any:
    """Return the tiny model of a name, in eval mode, the same on every call."""
    model_class, config_class, config = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif "bias" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def save(name: str, folder: Path, **save_options: Any) -> Path:
    """Save the tiny model of a name under ``folder`` and return its checkpoint folder."""
    target = folder / name
    if not (target / "config.json").exists():
        build(name).save_pretrained(target, **save_options)
    return target


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
