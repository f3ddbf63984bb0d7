"""Inputs of models that see or hear: the sizes that a checkpoint's own processor makes.

The sizes are in ``preprocessor_config.json``. An image has one size, so that the standard length
is its height in pixels. Features of a sound (log-mel frames) have one size as well; raw samples
have a length of their own, and are padded only where the model takes a mask.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tasks.errors import RequestError, UnsupportedCheckpointError
from tasks.fetch.needed import PROCESSOR
from tasks.model.arguments import Argument
from tasks.model.vocabulary import read_json

_SEPARATE, _COMBINED = PROCESSOR
#: Samples a second of a processor that names none, as in transformers.
_SAMPLING_RATE = 16_000
#: Frames a second of Wav2Vec2-BERT's extractor: one of 10 ms, two of them side by side.
_FRAME_RATE = 50
#: Parts of a combined processor that make pixels or samples.
_PARTS = ("image_processor", "feature_extractor", "audio_processor")
#: Inputs that a processor makes beside the pixels; without them the model computes something else.
_UNBUILT = {
    "input_ids": "token ids of a prompt (ShieldGemma 2)",
    "spatial_shapes": "sizes of images in unequal patches (SigLIP 2)",
}


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Tensor that a processor makes of one image or sound.

    Attributes:
        axes: Sizes behind the batch; ``length`` for one that varies.
        standard: The only length; None: any.
        least: Smallest standard length.
    """

    axes: tuple[str, ...]
    standard: int | None = None
    least: int = 1


def sample_arguments(
    folder: Path, kind: Any, config: Any, dtype: str, lengths: tuple[int, ...]
) -> tuple[Argument, ...]:
    """Return the arguments of a model that reads an image or a sound.

    Args:
        folder: Folder of the checkpoint.
        kind: Class of the model.
        config: Configuration of the model.
        dtype: Type of pixels and samples: the variant's.
        lengths: Standard lengths of the request.

    Raises:
        UnsupportedCheckpointError: It takes neither pixels nor samples, or its size is not known.
        UnsafeCheckpointError: The processor's config is damaged.
        RequestError: A length is not the processor's.
    """
    names = list(inspect.signature(kind.forward).parameters)
    name = _find_main_input(kind, names)
    processor = _read_processor(folder)
    readers = {
        "pixel_values": _read_image,
        "input_features": _read_features,
        "input_values": _read_sound,
    }
    sample = readers[name](config, processor)
    _check_lengths(kind, sample, lengths)
    # Seamless's extractor (Wav2Vec2-BERT) makes a mask by default; wav2vec2's does not.
    given = processor.get("return_attention_mask", name == "input_features")
    masked = sample.standard is None and "attention_mask" in names and given
    values = Argument(
        name=name,
        kind="values",
        axes=("batch", *sample.axes),
        dtype=dtype,
        pad=0 if masked else None,
    )
    mask = Argument(name="attention_mask", kind="mask", axes=("batch", "length"), fill=1)
    return (values, mask) if masked else (values,)


def default_sizes(folder: Path, task: str, config: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    """Return the standard lengths of a model that sees or hears, and where they come from.

    Args:
        folder: Folder of the checkpoint.
        task: One of ``heads.SAMPLE_TASKS``.
        config: Its ``config.json``.

    Raises:
        UnsupportedCheckpointError: The size is not known.
    """
    processor, fields = _read_processor(folder), SimpleNamespace(**config)
    if task == "image-classification":
        sample = _read_image(fields, processor)
        return (int(sample.standard or 0),), "the processor's size"
    whisper = config.get("num_mel_bins") and config.get("max_source_positions")
    frames = config.get("feature_projection_input_dim")
    if whisper or frames:
        sample = _read_features(fields, processor)
    else:
        sample = _read_sound(fields, processor)
    if sample.standard is not None:
        return (sample.standard,), "the processor's window"
    rate = _FRAME_RATE if frames else int(processor.get("sampling_rate", _SAMPLING_RATE))
    return (rate, 10 * rate), "1 s and 10 s"


def _find_main_input(kind: Any, names: list[str]) -> str:
    known = [n for n in ("pixel_values", "input_features", "input_values") if n in names]
    if not known:
        raise UnsupportedCheckpointError(
            f"{kind.__name__}: expected forward() to take pixel_values, input_features or "
            f"input_values, got {names}. Other inputs can't be made here: ask for another task."
        )
    for name, meaning in _UNBUILT.items():
        if name in names:
            raise UnsupportedCheckpointError(
                f"{kind.__name__}: expected {known[0]} to be its whole input, got {name}: "
                f"{meaning} as well. Traced without it, the model would be another one: name a "
                "checkpoint that takes nothing else."
            )
    return known[0]


def _read_processor(folder: Path) -> dict[str, Any]:
    """Return the config of what makes pixels or samples; empty where there is none."""
    # In transformers' own order: the combined processor's file first.
    combined = read_json(folder / _COMBINED)
    for part in _PARTS:
        nested = combined.get(part)
        if isinstance(nested, dict):
            return nested
    return read_json(folder / _SEPARATE)


def _read_image(config: Any, processor: dict[str, Any]) -> _Sample:
    """Return channels, height and width, of the processor or else of the model's config."""
    size = _read_image_size(processor)
    height_width = _as_pair(size) or _as_pair(getattr(config, "image_size", None))
    if height_width is None:
        raise UnsupportedCheckpointError(
            f"{_SEPARATE}: expected size or crop_size with height and width, got {size}; "
            "config.json names no image_size either. Save the processor beside the checkpoint."
        )
    channels = getattr(config, "num_channels", 3)
    return _Sample(axes=tuple(map(str, (channels, *height_width))), standard=height_width[0])


def _read_image_size(processor: dict[str, Any]) -> Any:
    """Return the size that the processor's last step makes: the crop, if it crops."""
    name = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    size, crop = processor.get("size"), processor.get("crop_size")
    crops = processor.get("do_center_crop")
    if crops is None:
        crops = crop is not None
    if crops and not name.startswith("Perceiver"):  # it crops first and then resizes
        return crop
    by_edge = isinstance(size, dict) and "shortest_edge" in size
    if by_edge and not name.startswith("ConvNext"):  # it crops without being configured to
        raise UnsupportedCheckpointError(
            f"{_SEPARATE}: expected one size for every image, got {size} without a crop: each "
            "keeps its own proportions. Set do_center_crop and crop_size, if the model was "
            "trained so."
        )
    return size


def _as_pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) == 2 and all(type(one) is int for one in pair):
        return pair
    return None


def _read_features(config: Any, processor: dict[str, Any]) -> _Sample:
    """Return frames of log-mel features: any number of them, or one chunk (Whisper)."""
    width = getattr(config, "feature_projection_input_dim", None)
    if width:  # Wav2Vec2-BERT: each frame holds the bins of two
        return _Sample(axes=("length", str(width)))
    bins = getattr(config, "num_mel_bins", None)
    positions = getattr(config, "max_source_positions", None)
    if bins and positions:
        frames = 2 * positions  # one convolution of stride two before them
        return _Sample(axes=(str(bins), str(frames)), standard=frames)
    raise UnsupportedCheckpointError(
        f"config.json: expected num_mel_bins and max_source_positions, got {bins} and "
        f"{positions}; the processor names {sorted(processor)}. The size of its features is "
        "not known: write both into config.json."
    )


def _read_sound(config: Any, processor: dict[str, Any]) -> _Sample:
    """Return raw samples, or frames × mel bins (AST)."""
    frames = getattr(config, "max_length", None) or processor.get("max_length")
    bins = getattr(config, "num_mel_bins", None)
    if bins and frames:
        return _Sample(axes=(str(frames), str(bins)), standard=frames)
    least = 1
    kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        least = (least - 1) * stride + kernel
    # Every length is probed with an input of three quarters of it, which must make a frame too.
    return _Sample(axes=("length",), least=-(-4 * least // 3))


def _check_lengths(kind: Any, sample: _Sample, lengths: tuple[int, ...]) -> None:
    """Require the processor's one length, or at least the model's least."""
    if sample.standard is not None and lengths != (sample.standard,):
        raise RequestError(
            f"lengths: expected {sample.standard} alone, the size that the processor of "
            f"{kind.__name__} makes ({' × '.join(sample.axes)}); got "
            f"{', '.join(map(str, lengths))}. Ask for lengths [{sample.standard}].",
            lasting=True,
        )
    if min(lengths) < sample.least:
        raise RequestError(
            f"lengths: expected at least {sample.least} samples, so that an input a quarter "
            f"shorter still makes a frame of {kind.__name__}; got {min(lengths)}. Ask for "
            "more: a second has as many samples as the processor's sampling_rate.",
            lasting=True,
        )
