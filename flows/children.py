"""Steps in child processes, and what they took: one conversion's record of time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.child import Limits, Outcome


@dataclass(kw_only=True)
class Children:
    """Runs steps for one conversion; lives in one process and is never passed on.

    Attributes:
        run: calls a function in a child process (``tasks.child.run``, or a Prefect task over it).
        limits: what one child may take.
        seconds: wall time of each step, by its name.
        peak_bytes: largest resident size of each child.
    """

    run: Callable[..., Outcome[Any]]
    limits: Limits
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def child(self, work: Path, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a child; its log is ``log_of(work, step)``."""
        outcome = self.run(
            function, *arguments, limits=self.limits, log=log_of(work, step), step=step
        )
        self.seconds[step], self.peak_bytes[step] = outcome.seconds, outcome.peak_bytes
        return outcome.value

    def timed(self, step: str, call: Callable[[], Any]) -> Any:
        """Call a function here."""
        started = time.monotonic()
        try:
            return call()
        finally:
            self.seconds[step] = time.monotonic() - started


def log_of(work: Path, step: str) -> Path:
    """Return the file of what a step's child writes."""
    return work / f"{step}.log"
