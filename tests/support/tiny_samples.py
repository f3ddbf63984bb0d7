"""Tiny checkpoints that see or hear: each with the preprocessor_config.json of its real processor.

As in ``tests.support.tiny``, weights are drawn so that activations are of order one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

_LABELS = {"num_labels": 3}
_IMAGE = {"image_size": 32, "num_channels": 3, **_LABELS}
_BLOCKS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_VIT = {**_IMAGE, **_BLOCKS, "patch_size": 8}
_STAGES = {"num_channels": 3, "hidden_sizes": [16, 32], "depths": [1, 1], **_LABELS}
_HEAD = {"classifier_proj_size": 16, **_LABELS}
_SPEECH = {
    **_BLOCKS,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    **_HEAD,
}
_LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_SWIN = {**_IMAGE, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
_BEIT = {**_VIT, "use_relative_position_bias": True, "layer_scale_init_value": 0.1}
_WHISPER = {
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    **_HEAD,
}
_AST = {**_VIT, "max_length": 24, "num_mel_bins": 16}
_SQUARE = {"height": 32, "width": 32}
_VIT_PROCESSOR = ("ViTImageProcessorPil", {"size": _SQUARE})
_CONVNEXT_PROCESSOR = ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}})
#: Frames of one chunk are chunk_length * sampling_rate / hop_length: 20.
_WHISPER_PROCESSOR = (
    "WhisperFeatureExtractor",
    {"feature_size": 8, "sampling_rate": 1600, "hop_length": 160, "chunk_length": 2, "n_fft": 64},
)
_UNMASKED = ("Wav2Vec2FeatureExtractor", {"return_attention_mask": False})
_MASKED = ("Wav2Vec2FeatureExtractor", {"return_attention_mask": True})

#: name -> (model class, config, processor class, its options)
MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, dict[str, Any]]]] = {
    "vit": ("ViTForImageClassification", _VIT, _VIT_PROCESSOR),
    # Wider than high, so that swapped axes show.
    "vit-wide": (
        "ViTForImageClassification",
        {**_VIT, "image_size": [32, 48]},
        ("ViTImageProcessorPil", {"size": {"height": 32, "width": 48}}),
    ),
    "beit": (
        "BeitForImageClassification",
        _BEIT,
        ("BeitImageProcessorPil", {"size": _SQUARE, "do_center_crop": False}),
    ),
    "swin": ("SwinForImageClassification", {**_SWIN, "window_size": 4}, _VIT_PROCESSOR),
    "resnet": (
        "ResNetForImageClassification",
        {**_STAGES, "embedding_size": 16},
        _CONVNEXT_PROCESSOR,
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {**_STAGES, "num_stages": 2, "layer_scale_init_value": 0.1},
        _CONVNEXT_PROCESSOR,
    ),
    # The processor resizes to 36 and crops 32 out of it.
    "deit": (
        "DeiTForImageClassification",
        _VIT,
        ("DeiTImageProcessorPil", {"size": {"height": 36, "width": 36}, "crop_size": _SQUARE}),
    ),
    "wav2vec2": (
        "Wav2Vec2ForSequenceClassification",
        {**_SPEECH, "feat_extract_norm": "group"},
        _UNMASKED,
    ),
    "wav2vec2-masked": ("Wav2Vec2ForSequenceClassification", {**_SPEECH, **_LAYER_NORM}, _MASKED),
    # Normalises over the padding as well, whatever the mask says.
    "wav2vec2-group-masked": (
        "Wav2Vec2ForSequenceClassification",
        {**_SPEECH, "feat_extract_norm": "group"},
        _MASKED,
    ),
    "wavlm": ("WavLMForSequenceClassification", {**_SPEECH, **_LAYER_NORM}, _MASKED),
    # Frames of stacked bins: any number of them, with a mask.
    "wav2vec2-bert": (
        "Wav2Vec2BertForSequenceClassification",
        {**_BLOCKS, "feature_projection_input_dim": 16, "output_hidden_size": 32, **_HEAD},
        ("SeamlessM4TFeatureExtractor", {"feature_size": 8, "num_mel_bins": 8}),
    ),
    "ast": (
        "ASTForAudioClassification",
        _AST,
        ("ASTFeatureExtractor", {"max_length": 24, "num_mel_bins": 16}),
    ),
    "whisper": ("WhisperForAudioClassification", _WHISPER, _WHISPER_PROCESSOR),
}


#: Standard lengths, where they are not 400 and 800 samples.
_LENGTHS = {"ast": (24,), "whisper": (20,), "wav2vec2-bert": (16, 32)}


def task_of(name: str) -> str:
    """Return the task of a tiny model."""
    images = MODELS[name][0].endswith("ForImageClassification")
    return "image-classification" if images else "audio-classification"


def lengths_of(name: str) -> tuple[int, ...]:
    """Return standard lengths that suit a tiny model."""
    if task_of(name) == "image-classification":
        return (32,)
    return _LENGTHS.get(name, (400, 800))


def build(name: str) -> Any:
    """Return the tiny model of a name, in eval mode, the same on every call."""
    class_name, config, _ = MODELS[name]
    kind = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            _draw(parameter_name, parameter, generator)
        for buffer_name, buffer in model.named_buffers():
            _draw(buffer_name, buffer, generator)
    return model.eval()


def _draw(name: str, tensor: torch.Tensor, generator: torch.Generator) -> None:
    # A weight's length and direction are of order one already.
    if not tensor.is_floating_point() or "parametrizations" in name:
        return
    drawn = torch.randn(tensor.shape, generator=generator)
    if "running_var" in name:
        tensor.copy_(drawn.abs() + 0.5)
    elif tensor.dim() > 1:
        tensor.copy_(drawn * tensor[0].numel() ** -0.5)
    elif "bias" in name or "running_mean" in name:
        tensor.copy_(drawn * 0.1)


def processor(name: str) -> Any:
    """Return the processor of a tiny model, which makes its inputs from images or sounds."""
    class_name, options = MODELS[name][2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Whisper's: so few filters leave some empty
        return getattr(transformers, class_name)(**options)


def save(name: str, folder: Path, **save_options: Any) -> Path:
    """Save a tiny model and its processor under ``folder``; return the checkpoint's folder."""
    target = folder / name
    if not (target / "config.json").exists():
        build(name).save_pretrained(target, **save_options)
        processor(name).save_pretrained(target)
    return target


def image(seed: int) -> np.ndarray:
    """Return a picture, 50 high and 40 wide."""
    return np.random.default_rng(seed).integers(0, 256, (50, 40, 3)).astype(np.uint8)


def sound(seed: int, samples: int) -> np.ndarray:
    """Return noise, as a microphone gives it."""
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
