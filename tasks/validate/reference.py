"""The eager reference as the gate gets it: where the outputs lie, and how two of them compare.

``tasks.validate.compute`` computes it in a child of its own and writes the outputs to a folder, so
that the eager model and the bundle are never in memory together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.validate.probes import Probe, ProbePlan
from tasks.validate.verdict import Difference, compare, discriminating, within
from tracefleet.manifest_types import Accuracy, OutputSpec, Tolerance

if TYPE_CHECKING:
    import torch

    Outputs = tuple[torch.Tensor, ...]

#: Milliseconds; the first call at a length also prepares it (a bundle's takes up to a hundred times
#: a later one's). A call that is longer than this is timed as it came, to not hold up the gate.
WORTH_REPEATING = 150.0


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where the eager outputs lie and what they are worth.

    Attributes:
        plan: which probes.
        outputs: elements of the tuple that each probe returned.
        weights: name -> digest of every parameter and buffer.
        folder: one safetensors file for each probe, by its index in the plan.
        vacuous: keys of probes that can't move this model.
        latency: milliseconds of one eager call of the traced shape, by length.
        scales: max|eager| of each output for the first probe.
        padded: keys of probes whose unpadded input eager refuses: it was given the padded one.
        refused: keys of probes that eager refuses altogether.
        accuracy: what quantisation costs; None: nothing is quantised.
        spoilt: outputs for the first probe of an eager model with a wrong weight, which the
            artifact must not agree with; None: its own weights are spoilt instead.
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
    spoilt: Path | None = None

    def as_asked(self, probe: Probe) -> Probe:
        """Return the probe as eager answered it."""
        return dataclasses.replace(probe, truth=None) if probe.key in self.padded else probe


def save_outputs(path: Path, outputs: Outputs) -> None:
    """Write a tuple of outputs so that another process reads the same bits."""
    from safetensors.torch import save_file

    save_file({str(i): t.contiguous() for i, t in enumerate(outputs)}, path)


def load_outputs(path: Path) -> Outputs:
    """Read what ``save_outputs`` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return tuple(tensors[str(i)] for i in range(len(tensors)))


def valid_positions(
    spec: OutputSpec, feed: dict[str, torch.Tensor], shape: torch.Size
) -> torch.Tensor | None:
    """Return the mask of positions of an output that mean something, or None for all of them."""
    if spec.length_axis != 1:
        return None
    name = "attention_mask" if spec.axes[1] == "length" else "decoder_attention_mask"
    if name not in feed:
        return None
    return feed[name][:, : shape[1]].bool()


def differences(
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
        if (axis := spec.length_axis) is not None and one.dim() == two.dim():
            shared = min(one.shape[axis], two.shape[axis])
            one, two = one.narrow(axis, 0, shared), two.narrow(axis, 0, shared)
        valid = valid_positions(spec, feed, two.shape)
        found.append(compare(one, two, tolerance, valid, scale))
    return found


def moved(found: Iterable[Difference], tolerance: Tolerance) -> list[bool]:
    """Tell for each output whether it moved far more than the tolerance."""
    return [not within(d, discriminating(tolerance)) for d in found]
