"""Golden samples: inputs and eager's outputs that are published with a conversion.

With them anybody can see on their own machine whether the artifact computes what was proved. They
are one safetensors file. Every fact is a tensor, so that a C++ program needs no JSON but the file's
own header:

- ``<n>/name``, ``<n>/text``, ``<n>/pair``: UTF-8 bytes; ``pair`` only where there is one;
- ``<n>/tokenized``: 1 if ``tokenizer.json`` by itself makes the sample's ids of its text;
  ``<n>/cut``: 1 if it has to cut the text to so many;
- ``<n>/input/<i>``: input ``i`` of the bundle, one row at its own length, without padding; real
  values may be held as float16, which loses nothing of them;
- ``<n>/output/<i>/values``: every ``stride``-th value of output ``i``, flattened;
- ``<n>/output/<i>/shape``, ``stride``, ``scale`` (max|eager|) and ``bound`` (the largest difference
  that is allowed on the device of the gate).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracefleet.errors import ManifestError
from tracefleet.manifest_types import InputSpec, OutputSpec

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

MEDIA_TYPE = "application/vnd.safetensors"


@dataclass(frozen=True, kw_only=True)
class GoldenOutput:
    """What eager computed for one output.

    Attributes:
        values: every ``stride``-th value, flattened.
        shape: shape of the whole output, such as ``(1, length, 384)``.
        stride: distance of two values that are kept.
        scale: largest absolute value of the whole output, never taken smaller than it is on the
            traced input.
        bound: largest difference that is allowed on the device of the gate.
    """

    values: torch.Tensor
    shape: tuple[int, ...]
    stride: int
    scale: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class GoldenSample:
    """One input with eager's outputs.

    Attributes:
        name: what it tries, such as ``emoji`` or ``photograph``.
        text: text that the ids came from; empty for a picture or a sound.
        pair: second text of a pair; None: there is none.
        tokenized: whether ``tokenizer.json`` by itself makes these ids of the text.
        cut: whether it has to cut the text to so many.
        inputs: the bundle's inputs in their order, one row.
        outputs: the bundle's outputs in their order.
    """

    name: str
    text: str
    pair: str | None
    tokenized: bool
    cut: bool
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[GoldenOutput, ...]


def pack(samples: Sequence[GoldenSample]) -> bytes:
    """Return the bytes of the file."""
    from safetensors.torch import save

    tensors: Tensors = {}
    for number, sample in enumerate(samples):
        for name, tensor in _flatten(sample).items():
            tensors[f"{number}/{name}"] = tensor.contiguous()
    return save(tensors)


def unpack(
    data: bytes, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]
) -> tuple[GoldenSample, ...]:
    """Read back what ``pack`` wrote.

    Args:
        data: bytes of the file, whose digest was checked.
        inputs: inputs of the conversion; each sample's are returned in these types.
        outputs: outputs of the conversion.

    Raises:
        ManifestError: it is no such file, or does not fit the conversion.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        numbers = sorted({int(name.partition("/")[0]) for name in tensors})
        if not numbers:
            raise ValueError("no samples at all")
        return tuple(_restore(_select(tensors, number), inputs, outputs) for number in numbers)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ManifestError(
            f"golden samples: expected the samples of this conversion, got something else: {error}."
            " Its bytes are as published: convert the checkpoint again."
        ) from error


def choose_stride(values: int, most: int, width: int) -> int:
    """Return a stride that keeps at most so many values, and all columns of a row in turn.

    Args:
        values: number of values of an output.
        most: number of values to keep.
        width: size of the last axis.
    """
    stride = max(1, -(-values // max(1, most)))
    while stride > 1 and math.gcd(stride, width) > 1:
        stride += 1
    return stride


def _flatten(sample: GoldenSample) -> Tensors:
    import torch

    facts: dict[str, Any] = {"name": _encode(sample.name), "text": _encode(sample.text)}
    if sample.pair is not None:
        facts["pair"] = _encode(sample.pair)
    facts["tokenized"] = torch.tensor([int(sample.tokenized)])
    facts["cut"] = torch.tensor([int(sample.cut)])
    for place, tensor in enumerate(sample.inputs):
        facts[f"input/{place}"] = _narrow(tensor)
    for place, output in enumerate(sample.outputs):
        start = f"output/{place}"
        facts[f"{start}/values"] = output.values
        facts[f"{start}/shape"] = torch.tensor(output.shape, dtype=torch.int64)
        facts[f"{start}/stride"] = torch.tensor([output.stride])
        facts[f"{start}/scale"] = torch.tensor([output.scale], dtype=torch.float64)
        facts[f"{start}/bound"] = torch.tensor([output.bound], dtype=torch.float64)
    return facts


def _restore(
    tensors: Tensors, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]
) -> GoldenSample:
    import torch

    given = []
    for place, spec in enumerate(inputs):
        given.append(tensors[f"input/{place}"].to(getattr(torch, spec.dtype)))
    pair = _decode(tensors["pair"]) if "pair" in tensors else None
    return GoldenSample(
        name=_decode(tensors["name"]),
        text=_decode(tensors["text"]),
        pair=pair,
        tokenized=bool(tensors["tokenized"].item()),
        cut=bool(tensors["cut"].item()),
        inputs=tuple(given),
        outputs=tuple(_restore_output(tensors, place) for place in range(len(outputs))),
    )


def _restore_output(tensors: Mapping[str, torch.Tensor], place: int) -> GoldenOutput:
    start = f"output/{place}"
    output = GoldenOutput(
        values=tensors[f"{start}/values"],
        shape=tuple(tensors[f"{start}/shape"].tolist()),
        stride=int(tensors[f"{start}/stride"].item()),
        scale=float(tensors[f"{start}/scale"].item()),
        bound=float(tensors[f"{start}/bound"].item()),
    )
    _check_output(output)
    return output


def _check_output(output: GoldenOutput) -> None:
    """Refuse numbers that no conversion writes; the file may come from anybody."""
    if output.stride < 1 or min(output.shape, default=1) < 0:
        raise ValueError(f"stride {output.stride}, shape {output.shape}")
    kept = -(-math.prod(output.shape) // output.stride)
    if output.values.dim() != 1 or len(output.values) != kept:
        raise ValueError(f"expected {kept} values, got {tuple(output.values.shape)}")
    if not (0 <= output.bound < math.inf and 0 <= output.scale < math.inf):
        raise ValueError(f"scale {output.scale}, bound {output.bound}")


def _select(tensors: Tensors, number: int) -> Tensors:
    start, own = f"{number}/", {}
    for name, tensor in tensors.items():
        if name.startswith(start):
            own[name.removeprefix(start)] = tensor
    return own


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    """Return real values as float16 where that is exact."""
    import torch

    half = tensor.half()
    narrows = tensor.dtype == torch.float32 and torch.equal(half.float(), tensor)
    return half if narrows else tensor


def _encode(text: str) -> torch.Tensor:
    import torch

    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _decode(tensor: torch.Tensor) -> str:
    return bytes(tensor.tolist()).decode()
