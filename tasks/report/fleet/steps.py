"""What a person should do about an entry that failed: what the message of its error says last.

Our errors say what, expected, got and the next step (``tasks.errors``), so the step always fits the
reason; ``tests/test_steps.py`` holds every refusal to it. A type has a step of its own for messages
without one: mistakes of a file, and what libraries say.
"""

from __future__ import annotations

import re

from tasks import errors as ours
from tracefleet import errors as readers

_NEXT = {
    "RequestError": "Correct the entry in the fleet file.",
    "NumericsMismatchError": "Open the conversion's report: it names the probe and the output.",
    "BackendUnavailableError": "Start a worker of this backend's pool on its own kind of host.",
    "RunLostError": "Look at the worker's host: memory, disk, spot reclaim; then run again.",
    "StoreUnavailableError": "Run the fleet again when the store answers.",
}
_NETWORK = "Check the network, then run the fleet again."
_ANY_NEXT = "Look at the run's log, then run the fleet again."
#: Before a sentence; lines that a process wrote need not end in a full stop.
_BOUNDARY = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])|\s*\n\s*(?=[A-Z`])")
_DOUBLE_STOP = re.compile(r"(?<!\.)\.\.(?!\.)")


def split_step(error: str, message: str, *, transient: bool = False) -> tuple[str, str]:
    """Return why an entry failed, and what to do about it.

    Args:
        error: Name of the error's type.
        message: What it says.
        transient: Whether it came from the network.
    """
    whole = _DOUBLE_STOP.sub(".", message.strip())
    boundaries = list(_BOUNDARY.finditer(whole))
    if boundaries and _is_ours(error, whole):
        last = boundaries[-1]
        reason, step = whole[: last.start()], whole[last.end() :]
        # A line that names one of several mistakes is no step.
        if step.endswith(".") and "expected " not in step:
            return reason, step
    return whole, _NEXT.get(error, _NETWORK if transient else _ANY_NEXT)


def _is_ours(error: str, message: str) -> bool:
    """Whether we wrote a message; errors of the network keep their type where we explain them."""
    return hasattr(ours, error) or hasattr(readers, error) or "expected " in message
