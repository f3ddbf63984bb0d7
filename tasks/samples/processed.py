"""Pictures and sounds as a checkpoint's own processor makes them of files: feeds for its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.model.arguments import Argument
from tasks.model.facts import ModelFacts
from tasks.model.feeds import length_axis
from tasks.model.versions import pil_option
from tasks.samples.errors import NoSamples, describe
from tasks.samples.media import load_photograph, load_speech, make_drawing, make_music

if TYPE_CHECKING:
    import torch

    from tasks.model.feeds import Feed

_PIXELS = "pixel_values"
_SOUNDS = ("input_features", "input_values")


def process_media(
    folder: Path, facts: ModelFacts, lengths: tuple[int, ...], trust_remote_code: bool = False
) -> dict[str, Feed]:
    """Return a feed for a photograph and a drawing, or for a second of speech and of music.

    Nothing is downloaded, and pictures are processed by Pillow. Pixels are rounded to float16 and
    back: half the size then holds them without loss. Raw sound is cut to the largest standard
    length before it is processed, features of sound after it; a model that can't be padded gets the
    largest standard length that a second fills.

    Args:
        folder: Folder of the checkpoint, with its processor's config.
        facts: Facts of its model.
        lengths: Standard lengths of the request.
        trust_remote_code: Whether a processor in the checkpoint's own Python files may run.

    Returns:
        ``photograph`` and ``drawing``, or ``speech`` and ``music``: each argument of the facts in
        order, of its dtype, batch 1.

    Raises:
        NoSamples: The model takes other inputs, the processor can't be loaded or fails, or it makes
            another shape than the model takes.
    """
    try:
        made = _process(folder, facts, lengths, trust_remote_code)
        return {sample: _make_feed(facts, one, lengths) for sample, one in made.items()}
    except NoSamples:
        raise
    # Processors are the checkpoint's own, and each fails in its own way: never a wrong conversion.
    except Exception as error:
        raise NoSamples(f"its processor: {describe(error)}") from error


def _process(
    folder: Path, facts: ModelFacts, lengths: tuple[int, ...], trusted: bool
) -> dict[str, Mapping[str, Any]]:
    """Return what the processor makes of each sample."""
    name = facts.inputs[0] if facts.inputs else "nothing"
    if name == _PIXELS:
        return _process_pictures(folder, trusted)
    if name in _SOUNDS:
        return _process_sounds(folder, facts, lengths, trusted)
    raise NoSamples(f"{facts.architecture} takes {name}, neither pixels nor sound")


def _process_pictures(folder: Path, trusted: bool) -> dict[str, Mapping[str, Any]]:
    from transformers import AutoImageProcessor

    # With trust_remote_code=None transformers would ask somebody at a terminal.
    processor = AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trusted, **pil_option()
    )
    made = {}
    for sample, picture in (("photograph", load_photograph()), ("drawing", make_drawing())):
        made[sample] = processor(images=picture, return_tensors="np")
    return made


def _process_sounds(
    folder: Path, facts: ModelFacts, lengths: tuple[int, ...], trusted: bool
) -> dict[str, Mapping[str, Any]]:
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trusted
    )
    rate = int(extractor.sampling_rate)
    # A position of raw sound is a sample. What is normalised must be what the model gets.
    raw = facts.arguments[0].axes == ("batch", "length")
    size = _choose_length(facts, rate, lengths) if raw else rate
    made = {}
    for sample, sound in (("speech", load_speech(rate)), ("music", make_music(rate))):
        made[sample] = extractor(sound[:size], sampling_rate=rate, return_tensors="np")
    return made


def _choose_length(facts: ModelFacts, size: int, lengths: tuple[int, ...]) -> int:
    """Return how many of ``size`` positions a bundle with these standard lengths takes.

    Raises:
        NoSamples: It takes exact lengths, and none is that short.
    """
    if facts.takes_padding:
        return min(size, max(lengths))
    fitting = [length for length in lengths if length <= size]
    if not fitting:
        raise NoSamples(
            f"a second makes {size} positions, and the shortest standard length is {min(lengths)}"
        )
    return max(fitting)


def _make_feed(facts: ModelFacts, made: Mapping[str, Any], lengths: tuple[int, ...]) -> Feed:
    """Return the arguments of a model out of what a processor made."""
    feed: Feed = {}
    for one in facts.arguments:
        if one.kind == "mask" and one.name not in made:
            feed[one.name] = _make_mask(feed)
        elif one.name in made:
            feed[one.name] = _fit(facts, one, made[one.name], lengths)
        else:
            raise NoSamples(f"its processor makes {', '.join(made)}, and no {one.name}")
    return feed


def _make_mask(feed: Feed) -> torch.Tensor:
    """Return a mask of ones for the values that are already there: nothing was padded."""
    import torch

    values = next(iter(feed.values()))
    return torch.ones(values.shape[:2], dtype=torch.int64)


def _fit(
    facts: ModelFacts, argument: Argument, value: Any, lengths: tuple[int, ...]
) -> torch.Tensor:
    """Return what a processor made as a tensor of the argument's shape and dtype."""
    import numpy as np
    import torch

    values = np.asarray(value)
    axis = length_axis(argument)
    size = 0  # none, until there is a length
    if axis is not None and values.ndim == len(argument.axes):
        size = _choose_length(facts, values.shape[axis], lengths)
        values = values.take(range(size), axis)
    _check_shape(argument, values.shape, size)
    if argument.name == _PIXELS:
        values = values.astype(np.float16)
    tensor = torch.tensor(values).to(getattr(torch, argument.dtype))
    if not bool(tensor.isfinite().all()):
        raise NoSamples(f"its processor makes {argument.name} that are not finite")
    return tensor


def _check_shape(argument: Argument, shape: tuple[int, ...], length: int) -> None:
    sizes = {"batch": 1, "length": length}
    expected = tuple(int(sizes.get(axis, axis)) for axis in argument.axes)
    if shape != expected:
        raise NoSamples(
            f"its processor makes {argument.name} of shape {shape}, and the model takes {expected}"
        )
