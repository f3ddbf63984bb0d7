"""The tolerance of a request: its dtype's own, its backend's, and how far it may be loosened.

``tasks.request.conversion`` calls this.
"""

from __future__ import annotations

from tasks.backends.options import Options
from tasks.validate.verdict import TOLERANCES
from tracefleet.verdict_types import Tolerance

#: Largest factor by which a request may loosen its tolerance: corrupted models start at 0.1.
MAX_LOOSENING = 10.0


def find_tolerance(dtype: str, options: Options | None) -> Tolerance:
    """Return the dtype's tolerance, or the backend's if its arithmetic costs more.

    Args:
        dtype: Dtype of the weights in the artifact.
        options: Options of the backend; None: it has none.
    """
    own = TOLERANCES[dtype]
    if options is None or options.tolerance.rtol <= own.rtol:
        return own
    return options.tolerance


def is_loose(rtol: float | None, dtype: str, options: Options | None) -> bool:
    """Return whether a request's tolerance is over its ceiling."""
    return rtol is not None and rtol > find_ceiling(dtype, options)


def find_ceiling(dtype: str, options: Options | None) -> float:
    """Return the largest relative tolerance that needs no accepted risk."""
    return find_tolerance(dtype, options).rtol * MAX_LOOSENING


def check_ceiling(rtol: float, dtype: str, options: Options | None) -> None:
    """Refuse a tolerance with which the gate could not find faults.

    Raises:
        ValueError: it is over its ceiling.
    """
    if is_loose(rtol, dtype, options):
        raise ValueError(
            f"expected at most {find_ceiling(dtype, options):g} for {dtype} ({MAX_LOOSENING:g} "
            f"times its own tolerance), got {rtol:g}; a looser gate could not tell faults apart. "
            "Set accept_tolerance_risk (--accept-tolerance-risk) if you accept that."
        )
