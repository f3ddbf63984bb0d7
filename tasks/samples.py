"""Inputs of models that see or hear: the sizes that a checkpoint's own processor makes.

``preprocessor_config.json`` says what the processor gives. An image has one size, so that the
standard length is its height in pixels. Features of a sound (log-mel frames) have one size as
well; raw samples have a length of their own, and are padded only where the model takes a mask.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from tasks.arguments import Argument
from tasks.errors import RequestError, UnsupportedCheckpointError

_PREPROCESSOR = "preprocessor_config.json"


def sample_arguments(
    folder: Path, kind: Any, config: Any, dtype: str, lengths: tuple[int, ...]
) -> tuple[Argument, ...]:
    """Return the arguments of a model that reads an image or a sound.

    Args:
        folder: the checkpoint.
        kind: the model's class.
        config: its configuration.
        dtype: of pixels and samples: the variant's.
        lengths: standard lengths of the request.

    Raises:
        UnsupportedCheckpointError: it takes neither pixels nor samples, or its size is not known.
        RequestError: a length is not the processor's.
    """
    names = list(inspect.signature(kind.forward).parameters)
    processor = _processor(folder)
    for name, read in (
        ("pixel_values", _image_shape),
        ("input_features", _feature_shape),
        ("input_values", _sound_shape),
    ):
        if name in names:
            axes = read(config, processor)
            break
    else:
        raise UnsupportedCheckpointError(
            f"{kind.__name__}: expected forward() to take pixel_values, input_features or "
            f"input_values, got {names}. Other inputs can't be made here."
        )
    if "length" not in axes:
        _check_fixed(kind, axes, lengths)
        return (Argument(name=name, kind="values", axes=("batch", *axes), dtype=dtype),)
    return _with_mask(name, axes, dtype, "attention_mask" in names, processor)


def _processor(folder: Path) -> dict[str, Any]:
    try:
        read = json.loads((folder / _PREPROCESSOR).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UnsupportedCheckpointError(
            f"{_PREPROCESSOR}: expected JSON, got: {error}. Fetch the checkpoint again."
        ) from error
    return read if isinstance(read, dict) else {}


def _image_shape(config: Any, processor: dict[str, Any]) -> tuple[str, ...]:
    """Channels, height, width: after the crop, if the processor crops; else the config's size."""
    cropped = processor.get("do_center_crop", "crop_size" in processor)
    size = processor.get("crop_size") if cropped else processor.get("size")
    height_width = _pair(size) or _pair(getattr(config, "image_size", None))
    if height_width is None:
        raise UnsupportedCheckpointError(
            f"{_PREPROCESSOR}: expected size or crop_size with height and width, got {size}; "
            "config.json names no image_size either. Save the processor beside the checkpoint."
        )
    channels = getattr(config, "num_channels", 3)
    return (str(channels), *map(str, height_width))


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None


def _feature_shape(config: Any, processor: dict[str, Any]) -> tuple[str, ...]:
    """Whisper's log-mel features: bins × frames of one chunk."""
    bins = getattr(config, "num_mel_bins", None) or processor.get("feature_size")
    frames = processor.get("nb_max_frames")
    if frames is None and getattr(config, "max_source_positions", None):
        frames = 2 * config.max_source_positions  # one convolution of stride two before them
    if bins and frames:
        return str(bins), str(frames)
    # Frames of stacked bins (Wav2Vec2-BERT, SeamlessM4T): any number of them.
    width = getattr(config, "feature_projection_input_dim", None)
    if width:
        return "length", str(width)
    raise UnsupportedCheckpointError(
        f"{_PREPROCESSOR}: expected the number of mel bins and frames, got {sorted(processor)}. "
        "Save the feature extractor beside the checkpoint."
    )


def _sound_shape(config: Any, processor: dict[str, Any]) -> tuple[str, ...]:
    """Raw samples, or frames × mel bins (AST)."""
    frames = getattr(config, "max_length", None) or processor.get("max_length")
    bins = getattr(config, "num_mel_bins", None)
    return (str(frames), str(bins)) if bins and frames else ("length",)


def _check_fixed(kind: Any, axes: tuple[str, ...], lengths: tuple[int, ...]) -> None:
    """The one standard length: an image's height, or the number of a sound's frames."""
    sizes = [int(size) for size in axes]
    standard = sizes[1] if len(sizes) == 3 else max(sizes)
    if lengths != (standard,):
        raise RequestError(
            f"lengths: expected {standard}, the size that the processor of {kind.__name__} makes "
            f"({' × '.join(axes)}); got {', '.join(map(str, lengths))}."
        )


def _with_mask(
    name: str, axes: tuple[str, ...], dtype: str, takes_mask: bool, processor: dict[str, Any]
) -> tuple[Argument, ...]:
    """Sounds of any length; their padding is hidden only where the processor gives a mask."""
    masked = takes_mask and processor.get("return_attention_mask", False)
    sound = Argument(
        name=name, kind="values", axes=("batch", *axes), dtype=dtype, pad=0 if masked else None
    )
    if not masked:
        return (sound,)
    return sound, Argument(name="attention_mask", kind="mask", axes=("batch", "length"), fill=1)
