"""How far two outputs are apart.

An error is ``max|traced - eager|`` over valid positions, judged against
``atol + rtol * max|eager|``; shape, dtype and the pattern of NaN and infinity must be equal.
Cosine and top-1 agreement are reported beside it and decide nothing: both hide large errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracefleet.verdict_types import Tolerance

if TYPE_CHECKING:
    import torch

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


_EQUAL = Difference(max_abs=0.0, max_rel=0.0, cosine=1.0, top1=1.0, reason="", passed=True)


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
    import torch

    if traced.shape != eager.shape or traced.dtype != eager.dtype:
        return incomparable(
            f"expected {tuple(eager.shape)} {eager.dtype}, got {tuple(traced.shape)} {traced.dtype}"
        )
    if valid is not None:
        traced, eager = traced[valid], eager[valid]
    if not eager.is_floating_point():
        traced, eager = traced.double(), eager.double()
    if torch.equal(traced, eager):
        return _EQUAL
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
        return _EQUAL
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
