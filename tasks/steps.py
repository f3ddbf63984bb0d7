"""How one conversion calls its steps, with the time and memory of each.

``flows.convert`` goes through its steps by two verbs: ``here`` calls a function in this process,
``child`` in a process that is thrown away. ``flows.engine.prefect_steps`` makes task runs of them.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tasks import child
from tasks.child import Limits, Outcome
from tracefleet.manifest import Manifest
from tracefleet.store import Store

R = TypeVar("R")


def _new_run_id() -> str:
    # Not datetime.UTC: Inf1's Python 3.10 has none.
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"  # noqa: UP017


@dataclass(kw_only=True)
class Steps:
    """The steps of one conversion; stays in one process and is never pickled.

    Use it in a ``with`` statement: its work folder is removed at the end.

    Attributes:
        limits: Limits of each child.
        run_id: Name of the run's attestation and report.
        run: Function that calls another one in a child process.
        seconds: Wall time of each step, by its name.
        peak_bytes: Largest resident size of each child, by its step's name.
    """

    limits: Limits = field(default_factory=Limits)
    run_id: str = field(default_factory=_new_run_id)
    run: Callable[..., Outcome[Any]] = child.run
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def work(self) -> Path:
        """Folder for everything that the conversion makes.

        The first use also starts the fork server: a repeat of a published request needs neither.
        """
        if self._folder is None:
            child.warm_up()
            self._folder = tempfile.TemporaryDirectory(prefix="tracefleet-")
        return Path(self._folder.name)

    def log(self, step: str) -> Path:
        """Return the file that receives the output of a step's child."""
        return self.work / f"{step}.log"

    def here(self, step: str, function: Callable[..., R], *arguments: Any, **options: Any) -> R:
        """Call a function in this process and time it."""
        started = time.monotonic()
        try:
            return function(*arguments, **options)
        finally:
            self.seconds[step] = time.monotonic() - started

    def child(self, step: str, function: Callable[..., R], *arguments: Any) -> R:
        """Call a module-level function in a child process; takes and returns plain data and paths.

        Raises:
            ConversionCrashedError: The child died, hung or exceeded its memory.
            ConversionError: The typed error that the function raised.
        """
        outcome: Outcome[R] = self.run(
            function, *arguments, limits=self.limits, log=self.log(step), step=step
        )
        self.seconds[step], self.peak_bytes[step] = outcome.seconds, outcome.peak_bytes
        return outcome.value

    def publish(
        self,
        function: Callable[..., R],
        store: Store,
        manifest: Manifest,
        files: dict[str, Path],
        *,
        channel: str,
        name: str | None = None,
    ) -> R:
        """Call the function that publishes, and time it."""
        where = {"channel": channel, "name": name}
        return self.here("publish", function, store, manifest, files, **where)

    def show(self, facts: Any, report: Any, url: str) -> None:
        """Show a report beside its page at ``url``, of a refused artifact too."""
