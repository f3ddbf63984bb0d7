"""How far two outputs are apart, and what the gate concludes from it.

An error is ``max|traced - eager|`` over valid positions, judged against
``atol + rtol * max|eager|``; shape, dtype and the pattern of NaN and infinity must be equal.
Cosine and top-1 agreement are reported beside it and decide nothing: both hide large errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracefleet.manifest_types import (
    DIFFERS,
    HOLDS,
    RAISES,
    UNTRIED,
    Accuracy,
    General,
    LengthVerdict,
    Tolerance,
)

if TYPE_CHECKING:
    import torch

#: dtype -> (largest error seen, number of correct conversions), measured by `flows sweep` (November
#: 2026, docs/gate.md); faults were at least 0.1.
MEASURED = {"float32": (6.3e-6, 424), "float16": (2.5e-3, 50), "bfloat16": (2.0e-2, 50)}
#: int8 against the quantised eager model, called in the bundle's own shapes: exactly 0 in each of
#: 2,117 probes (44 tiny architectures, three layers of BERT-base, all-MiniLM-L6-v2 for two tasks).
#: More can't be allowed: in other shapes (padded against unpadded), whose last bits differ, that
#: model's error was anything from 1e-7 to 0.1.
TOLERANCES = {
    "float32": Tolerance(atol=0.0, rtol=1e-5),
    "float16": Tolerance(atol=0.0, rtol=5e-3),
    "bfloat16": Tolerance(atol=0.0, rtol=3e-2),
    "int8": Tolerance(atol=0.0, rtol=1e-5),
}
#: A probe counts only if it moves eager's own output by this many tolerances, or by as much as
#: the smallest fault that was ever seen (0.1), where half precision's tolerance is coarse.
_DISCRIMINATION, _SMALLEST_FAULT = 100.0, 0.1


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two outputs compared.

    Attributes:
        max_abs: max|a - b| over valid positions.
        max_rel: max_abs divided by max|b|, or by the output's usual size if that is larger.
        cosine: Cosine of the two as flat vectors.
        top1: Share of equal argmaxes over the last axis.
        reason: Why they can't be compared at all (shape, dtype, NaN pattern); empty if they can.
        passed: Whether the difference is within the tolerance.
    """

    max_abs: float
    max_rel: float
    cosine: float
    top1: float
    reason: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """One probe's verdict on every output.

    Attributes:
        name: Name of the probe.
        length: Standard length whose graph it tested.
        vacuous: Whether it can't move this model, so that it proves nothing here.
        outputs: Names of the outputs; one tuple for all probes, so that a report is pickled small.
        differences: Traced against eager, one for each output.
    """

    name: str
    length: int
    vacuous: bool
    outputs: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def difference(self) -> Difference:
        """Difference of the worst output."""
        return self.differences[self._worst]

    @property
    def output(self) -> str:
        """Name of the worst output."""
        return self.outputs[self._worst]

    @property
    def _worst(self) -> int:
        found = self.differences
        return max(
            range(len(found)), key=lambda index: (not found[index].passed, found[index].max_rel)
        )


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """The gate's whole record, for people; the manifest keeps its digest-worthy part.

    Attributes:
        tolerance: Bound that was applied.
        probes: Every comparison.
        negative_controls: Names of the deliberate faults that were caught.
        weights_matched: Number of the bundle's tensors that equal the checkpoint's bit for bit.
        latency_eager: Milliseconds of one eager call, by length.
        latency_traced: Milliseconds of one traced call, by length.
        failures: Sentence for each check that failed; empty means passed.
        measured: Standard length, axis (``length`` or ``batch``) and result of the bare graph at
            another one.
        accuracy: Cost of quantisation; None: nothing is quantised.
        general: Shapes at which probes ran without padding; None: the artifact pads.
        follows_device: Whether nothing in the artifact binds it to the device of its recording.
    """

    tolerance: Tolerance
    probes: tuple[ProbeResult, ...]
    negative_controls: tuple[str, ...]
    weights_matched: int
    latency_eager: dict[int, float]
    latency_traced: dict[int, float]
    failures: tuple[str, ...]
    measured: tuple[tuple[int, str, str], ...] = ()
    accuracy: Accuracy | None = None
    general: General | None = None
    follows_device: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def lengths(self) -> tuple[LengthVerdict, ...]:
        """Return the worst of all probes for each length, as the manifest publishes it."""
        lengths = sorted({probe.length for probe in self.probes})
        return tuple(self._verdict(length) for length in lengths)

    def by_output(self, length: int) -> dict[str, Difference]:
        """Return the worst of all probes for each output at one length."""
        found: dict[str, list[Difference]] = {}
        for probe in self.probes:
            if probe.length == length:
                for output, difference in zip(probe.outputs, probe.differences, strict=True):
                    found.setdefault(output, []).append(difference)
        return {output: worst_of(differences) for output, differences in found.items()}

    def _verdict(self, length: int) -> LengthVerdict:
        probes = [probe for probe in self.probes if probe.length == length]
        found = worst_of(list(itertools.chain(*(probe.differences for probe in probes))))
        vacuous = tuple(probe.name for probe in probes if probe.vacuous)
        return LengthVerdict(
            length=length,
            probes=len(probes) - len(vacuous),
            vacuous=vacuous,
            max_abs_error=found.max_abs,
            max_rel_error=found.max_rel,
            min_cosine=round(found.cosine, 9),
            top1_agreement=round(found.top1, 9),
            passed=found.passed,
            other_lengths=self._generality(length, "length"),
            other_batches=self._generality(length, "batch"),
        )

    def _generality(self, length: int, axis: str) -> str:
        """Return the worst result; lengths without their own share what others measured."""
        if self.general is not None:  # its probes are judged, so that they all hold
            return UNTRIED if axis == "length" and self.general.tokens is None else HOLDS
        own, all_lengths = set(), set()
        for measured_length, measured_axis, result in self.measured:
            if measured_axis == axis:
                all_lengths.add(result)
                if measured_length == length:
                    own.add(result)
        for result in (DIFFERS, RAISES, HOLDS):
            if result in (own or all_lengths):
                return result
        return UNTRIED


def compare(
    traced: torch.Tensor,
    eager: torch.Tensor,
    tolerance: Tolerance,
    valid: torch.Tensor | None = None,
    scale: float = 0.0,
) -> Difference:
    """Compare one output with its reference.

    Args:
        traced: Output that is judged.
        eager: Reference of the same shape.
        tolerance: Bound on the difference.
        valid: Mask over the leading axes, shape ``(batch, length)``; None: everything counts.
        scale: Usual size of this output: a lone value that happens to be near zero has the same
            rounding as its larger neighbours.
    """
    if traced.shape != eager.shape or traced.dtype != eager.dtype:
        return incomparable(
            f"expected {tuple(eager.shape)} {eager.dtype}, got {tuple(traced.shape)} {traced.dtype}"
        )
    if valid is not None:
        traced, eager = traced[valid], eager[valid]
    if not eager.is_floating_point():
        traced, eager = traced.double(), eager.double()
    finite = eager.isfinite()
    if not _same_pattern(traced, eager):
        return incomparable("expected the same NaN and infinity pattern, got another")
    return _measure(traced.float(), eager.float(), finite, tolerance, scale)


def least_movement(tolerance: Tolerance) -> float:
    """Return the relative movement of an output above which a probe proves something."""
    # A tolerance that the request loosened beyond that still has to be exceeded.
    return max(min(_DISCRIMINATION * tolerance.rtol, _SMALLEST_FAULT), 2 * tolerance.rtol)


def is_within(difference: Difference, bound: float) -> bool:
    """Tell whether a relative error is finite and at most ``bound``."""
    return not difference.reason and difference.max_rel <= bound


def _same_pattern(traced: torch.Tensor, eager: torch.Tensor) -> bool:
    import torch

    if not torch.equal(traced.isnan(), eager.isnan()):
        return False
    infinite = eager.isinf()
    return torch.equal(traced.isinf(), infinite) and torch.equal(traced[infinite], eager[infinite])


def _measure(
    traced: torch.Tensor,
    eager: torch.Tensor,
    finite: torch.Tensor,
    tolerance: Tolerance,
    usual: float,
) -> Difference:
    import torch

    if traced.numel() == 0 or not bool(finite.any()):
        return Difference(max_abs=0.0, max_rel=0.0, cosine=1.0, top1=1.0, reason="", passed=True)
    agree = 1.0
    if traced.dim() > 1:
        agree = float((traced.argmax(-1) == eager.argmax(-1)).float().mean())
    if not bool(finite.all()):
        traced, eager = traced[finite], eager[finite]
    scale = max(usual, float(eager.abs().max()))
    error = float((traced - eager).abs().max())
    cosine = torch.nn.functional.cosine_similarity(
        traced.flatten().double(), eager.flatten().double(), dim=0
    )
    relative = float("inf") if error else 0.0
    if scale:
        relative = error / scale
    return Difference(
        max_abs=error,
        max_rel=relative,
        cosine=1.0 if error == 0 else float(cosine),
        top1=agree,
        reason="",
        passed=error <= tolerance.atol + tolerance.rtol * scale,
    )


def worst_of(differences: Sequence[Difference]) -> Difference:
    """Return the worst of each figure over several differences, with the first reason."""
    worst = differences[0]
    for one in differences[1:]:
        worst = Difference(
            max_abs=max(worst.max_abs, one.max_abs),
            max_rel=max(worst.max_rel, one.max_rel),
            cosine=min(worst.cosine, one.cosine),
            top1=min(worst.top1, one.top1),
            reason=worst.reason or one.reason,
            passed=worst.passed and one.passed,
        )
    return worst


def all_passed(differences: Sequence[Difference]) -> bool:
    """Tell whether every difference is within the tolerance."""
    return all(difference.passed for difference in differences)


def incomparable(reason: str) -> Difference:
    """Return the worst difference there is, with its reason."""
    worst = float("inf")
    return Difference(
        max_abs=worst, max_rel=worst, cosine=-1.0, top1=0.0, reason=reason, passed=False
    )
