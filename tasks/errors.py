"""Every way a conversion can be refused or fail; none of these is ever retried.

    ConversionError
    ├── RequestError                the request itself: unknown scheme, task, length, option
    ├── UnsupportedCheckpointError  a checkpoint that can't be converted, with the reason
    │   └── PaddingChangesError     padding changes eager's outputs: nothing may be padded
    ├── UnsafeCheckpointError       pickle or remote code without permission; damaged weights
    ├── TiedWeightsError            a tied group that could not be untied bit-identically
    ├── TraceError                  torch.jit refused to trace or save the model
    ├── GenerationError             no generation in the artifact, with the reason; forward stays
    ├── NumericsMismatchError       the saved file differs from eager (carries the report)
    ├── BackendUnavailableError     the backend's package or device is not here
    ├── CompilationError            a device's compiler made no program (carries the reason)
    ├── ConversionCrashedError      the child process died: signal, out of memory, timeout
    ├── PublishConflictError        the store already holds other bytes under this key
    └── FleetError                  some entries of a fleet failed; the others are published

Network and capacity errors keep their library's type: those are what Prefect retries.
"""

from __future__ import annotations

from typing import Any

_LONGEST = 300


def first_line(error: BaseException) -> str:
    """Return the first line of an error that is not empty, for our own message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _end(lines[0]) if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """Return the last line of an error that is not empty: TorchScript's own message is there."""
    # A Python stack follows it where an operator is written in Python.
    raised, _, _ = str(error).partition("\nAt:\n")
    lines = [line.strip() for line in raised.splitlines() if line.strip()]
    return _end(lines[-1]) if lines else type(error).__name__


def _end(line: str) -> str:
    """Return a line as a part of a sentence of ours, which has a full stop of its own."""
    return line[:_LONGEST].rstrip(" .")


class ConversionError(Exception):
    """Base of every failure that would happen again, so that it is never retried."""


class RequestError(ConversionError):
    """The request can't be carried out as written."""


class UnsupportedCheckpointError(ConversionError):
    """The checkpoint can't be converted for this task; the message names the reason."""


class PaddingChangesError(UnsupportedCheckpointError):
    """Eager's outputs depend on padding, so that a bundle that pads would differ from eager."""


class UnsafeCheckpointError(ConversionError):
    """The checkpoint needs pickle or remote code without permission, or its bytes are damaged."""


class TiedWeightsError(ConversionError):
    """Untying left a shared storage behind, or changed an output bit."""


class TraceError(ConversionError):
    """The model ran eagerly but could not be recorded or saved as TorchScript."""


class GenerationError(ConversionError):
    """Generation can't be recorded or proved, and is left out; its one forward is not concerned."""


class NumericsMismatchError(ConversionError):
    """The saved bundle does not compute what eager computes.

    Attributes:
        report: Report of the gate, with every probe's error; None: there is none.
        refused: Artifact that was refused (``tasks.backends.base.Proved``); None: unknown.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        self.report = report
        self.refused: Any = None
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the report when a child's error is pickled."""
        # By default an exception is made again from its message alone.
        return NumericsMismatchError, (str(self), self.report)


class BackendUnavailableError(ConversionError):
    """The backend's package, compiler or device is not on this machine."""


class ConversionCrashedError(ConversionError):
    """The child process died, was killed or ran out of time or memory.

    Attributes:
        reason: Few words: ``signal SIGSEGV``, ``timeout``, ``memory limit``.
        log_tail: Last lines that the child wrote.
    """

    def __init__(self, message: str, *, reason: str = "", log_tail: str = "") -> None:
        self.reason, self.log_tail = reason, log_tail
        super().__init__(message)


class CompilationError(ConversionError):
    """A device's compiler could not make a program.

    Attributes:
        reason: Few words, one of ``tasks.backends.triage``'s.
        log_tail: Last lines that the compiler wrote.
    """

    def __init__(self, message: str, *, reason: str = "", log_tail: str = "") -> None:
        self.reason, self.log_tail = reason, log_tail
        super().__init__(message)


class PublishConflictError(ConversionError):
    """Another writer published different bytes under the same conversion key."""
