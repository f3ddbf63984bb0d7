"""The eager reference as the gate gets it: files of outputs, and how two outputs compare.

``tasks.validate.compute`` computes it in a child of its own and writes the outputs to a folder, so
that the eager model and the bundle are never in memory together.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.validate.difference import Difference, compare, is_within, least_movement
from tasks.validate.plan import ProbePlan
from tasks.validate.probes import Probe
from tasks.validate.verdict import NO_GOLDEN, GoldenFile
from tracefleet.manifest_types import OutputSpec
from tracefleet.verdict_types import Accuracy, Tolerance

if TYPE_CHECKING:
    import torch

    Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Eager's outputs for every probe of a plan, and which of the probes prove something.

    Attributes:
        plan: Probes that were run.
        outputs: Elements of the tuple that each probe returned.
        weights: Digest of every parameter and buffer, by its name.
        folder: Folder with one safetensors file for each probe, by its index in the plan.
        vacuous: Keys of probes that can't move this model.
        latency: Milliseconds of one eager call of the traced shape, by length.
        scales: max|eager| of each output for the first probe.
        padded: Keys of probes whose unpadded input eager refuses: it was given the padded one.
        refused: Keys of probes that eager refuses altogether.
        accuracy: Cost of quantisation; None: nothing is quantised.
        corrupted: File with the first probe's outputs of an eager model with a wrong weight, from
            which the artifact must differ; None: the artifact's own weights are corrupted instead.
        distance: Largest difference of eager on the plan's device from eager on the CPU, relative
            to the largest value, for the first probe.
        required: Inputs that a caller must not leave out: eager's own default is no constant.
        golden: A few real inputs with eager's outputs, to be published.
        moved_by_both: Keys of left-padded probes whose result in float32 is another with padding on
            the right as well, of quantised models: the others' own outputs tell.
    """

    plan: ProbePlan
    outputs: tuple[OutputSpec, ...]
    weights: dict[str, str]
    folder: Path
    vacuous: frozenset[str]
    latency: dict[int, float]
    scales: tuple[float, ...]
    padded: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    accuracy: Accuracy | None = None
    corrupted: Path | None = None
    distance: float = 0.0
    required: frozenset[str] = frozenset()
    golden: GoldenFile = NO_GOLDEN
    moved_by_both: frozenset[str] = frozenset()


def as_run(probe: Probe, padded: Container[str]) -> Probe:
    """Return the probe as eager ran it; ``padded`` has the keys of those that it ran padded."""
    if probe.key in padded:
        return dataclasses.replace(probe, reference_feed=None)
    return probe


def save_outputs(path: Path, outputs: Outputs) -> None:
    """Write a tuple of outputs so that another process reads the same bits."""
    from safetensors.torch import save_file

    # safetensors takes contiguous tensors alone.
    save_file({str(index): tensor.contiguous() for index, tensor in enumerate(outputs)}, path)


def load_outputs(path: Path) -> Outputs:
    """Read what ``save_outputs`` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return tuple(tensors[str(index)] for index in range(len(tensors)))


def hash_feed(feed: dict[str, torch.Tensor]) -> str:
    """Return a digest of a feed's values and shapes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in feed.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # NumPy has no bfloat16.
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def stack_rows(spec: OutputSpec, rows: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Join single rows of an output, each filled up with zeros to ``length`` on its length axis."""
    import torch

    if spec.length_axis is None:
        return torch.cat(list(rows))
    shape = list(rows[0].shape)
    shape[0], shape[spec.length_axis] = len(rows), length
    stacked = rows[0].new_zeros(shape)
    for place, row in enumerate(rows):
        size = row.shape[spec.length_axis]
        stacked[place : place + 1].narrow(spec.length_axis, 0, size).copy_(row)
    return stacked


def valid_positions(
    spec: OutputSpec, feed: dict[str, torch.Tensor], shape: torch.Size
) -> torch.Tensor | None:
    """Return the mask of an output's valid positions; None: all of them are."""
    if spec.length_axis != 1:
        return None
    name = "attention_mask" if spec.axes[1] == "length" else "decoder_attention_mask"
    if name not in feed:
        return None
    return feed[name][:, : shape[1]].bool()


def compare_outputs(
    specs: tuple[OutputSpec, ...],
    tolerance: Tolerance,
    judged: Outputs,
    reference: Outputs,
    feed: dict[str, torch.Tensor],
    scales: tuple[float, ...],
) -> list[Difference]:
    """Compare two tuples of outputs on the positions that both have and ``feed`` shows."""
    found = []
    for spec, one, two, scale in zip(specs, judged, reference, scales, strict=True):
        # Eager ran unpadded where it could, and its outputs are as short as its inputs.
        axis = spec.length_axis
        if axis is not None and one.dim() == two.dim():
            shared = min(one.shape[axis], two.shape[axis])
            one, two = one.narrow(axis, 0, shared), two.narrow(axis, 0, shared)
        valid = valid_positions(spec, feed, two.shape)
        found.append(compare(one, two, tolerance, valid, scale))
    return found


def find_movement(found: Iterable[Difference], tolerance: Tolerance) -> list[bool]:
    """Return for each output whether it moved far more than the tolerance."""
    least = least_movement(tolerance)
    return [not is_within(difference, least) for difference in found]
