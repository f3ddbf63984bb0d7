"""Golden samples of a conversion: a few of the real inputs with what eager computed for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tasks.samples.make import Samples
from tasks.samples.texts import PASSAGE, Text
from tasks.validate.plan import plan_probes
from tasks.validate.probes import Probe
from tasks.validate.reference import load_outputs
from tasks.validate.reference_pass import ReferencePass, find_largest
from tasks.validate.verdict import GoldenFile
from tracefleet.golden import GoldenOutput, GoldenSample, choose_stride, pack
from tracefleet.verdict_types import Tolerance

if TYPE_CHECKING:
    import torch

#: Texts that are kept, the most telling first: several scripts, and what breaks tokenizers.
_KEPT = ("english", "emoji", "russian", "code", "pair", "japanese", "photograph", "speech")
_MOST = 6
#: A golden file has at most so many bytes, or a hundredth of the weights if that is more.
_MOST_BYTES, _SHARE = 1_000_000, 0.01
#: Bytes of the file's header for each tensor, generously.
_HEADER_BYTES = 120
_TENSORS_OF_OUTPUT = 5


def write_golden(eager: ReferencePass, *, weight_bytes: int, extra: float = 0.0) -> GoldenFile:
    """Write a few real inputs with the outputs that a pass has stored for them.

    Args:
        eager: A pass that has run, the quantised one of an int8 conversion.
        weight_bytes: Bytes of the model's weights.
        extra: Relative difference that is allowed beside the tolerance's: quantised results move
            by as much from one machine to another.
    """
    samples = eager.plan.samples
    if samples is None or samples.path is None:
        return GoldenFile(missing=samples.missing if samples else "no real inputs were made")
    chosen = _choose(eager, samples)
    budget = max(_MOST_BYTES, int(_SHARE * weight_bytes))
    data = b""
    # One input may be larger than the budget by itself; then fewer fit, or none.
    while chosen and not data:
        data = _pack(eager, samples, chosen, budget, extra)
        chosen = chosen[:-1]
    if not data:
        return GoldenFile(missing=f"no input fits into {budget} bytes, or eager refuses them all")
    path = eager.folder / "golden.safetensors"
    path.write_bytes(data)
    return GoldenFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _choose(eager: ReferencePass, samples: Samples) -> list[tuple[int, Probe]]:
    """Return probes of one row that eager ran, with their indices: the kept, then the longest."""
    found = {probe.sample: (index, probe) for index, probe in _find_single_rows(eager)}
    passages = sorted((_read_size(name), name) for name in found if name.startswith(PASSAGE))
    names = [name for name in _KEPT if name in found]
    names += [name for _, name in passages[-1:]]
    names += [text.name for text in samples.texts if text.name in found and text.name not in names]
    return [found[name] for name in names[:_MOST]]


def _read_size(name: str) -> int:
    return int(name.removeprefix(PASSAGE))


def _find_single_rows(eager: ReferencePass) -> Iterator[tuple[int, Probe]]:
    for index, probe in enumerate(plan_probes(eager.plan)):
        rows = {tensor.shape[0] for tensor in probe.feed.values()}
        alone = probe.reference_feed is None and probe.key not in eager.padded
        if probe.sample and alone and rows == {1} and eager.path(index).exists():
            yield index, probe


def _pack(
    eager: ReferencePass,
    samples: Samples,
    chosen: Sequence[tuple[int, Probe]],
    budget: int,
    extra: float,
) -> bytes:
    """Return the file with as many values of each output as fit; empty if inputs alone do not."""
    inputs = sum(_count_bytes(probe) for _, probe in chosen)
    outputs = len(eager.specs) * len(chosen)
    tensors = len(chosen) * (4 + len(eager.plan.facts.inputs)) + _TENSORS_OF_OUTPUT * outputs
    left = (budget - inputs - tensors * _HEADER_BYTES) // outputs
    if left <= 0:
        return b""
    texts = {text.name: text for text in samples.texts}
    made = []
    for index, probe in chosen:
        stored = load_outputs(eager.path(index))
        kept = []
        for tensor, usual in zip(stored, eager.scales, strict=True):
            kept.append(_keep(tensor, usual, eager.plan.tolerance, left, extra))
        made.append(_make(texts[probe.sample], samples, probe, tuple(kept)))
    return pack(made)


def _count_bytes(probe: Probe) -> int:
    size = 0
    for tensor in probe.feed.values():
        each = tensor.element_size()
        size += tensor.numel() * (2 if tensor.is_floating_point() else each)
    return size


def _keep(
    tensor: torch.Tensor, usual: float, tolerance: Tolerance, most: int, extra: float
) -> GoldenOutput:
    """Return as many evenly spaced values of an output as fit into so many bytes."""
    values = most // tensor.element_size()
    stride = choose_stride(tensor.numel(), values, tensor.shape[-1] if tensor.dim() else 1)
    scale = max(usual, find_largest(tensor))
    bound = tolerance.atol + (tolerance.rtol + extra) * scale
    return GoldenOutput(
        values=tensor.flatten()[::stride].clone(),
        shape=tuple(tensor.shape),
        stride=stride,
        scale=scale,
        bound=bound,
    )


def _make(
    text: Text, samples: Samples, probe: Probe, outputs: tuple[GoldenOutput, ...]
) -> GoldenSample:
    return GoldenSample(
        name=text.name,
        text=text.text,
        pair=text.pair,
        tokenized=text.name in samples.tokenized,
        cut=text.name in samples.cut,
        inputs=tuple(probe.feed.values()),
        outputs=outputs,
    )
