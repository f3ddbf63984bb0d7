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

A refusal that is ``lasting`` follows from the checkpoint, the request and the versions alone, so
that a fleet remembers it (``tasks.publish.refusals``). By type: what can't be converted, is unsafe,
could not be untied or traced, or differs from eager. A numeric mismatch lasts on one kind of CPU;
another may round otherwise, and a record is of no use for longer than a month. Never a mistake of
the fleet file, a crash, a timeout, a missing package or device, or another writer's bytes. Where a
type says too little its error says it itself: bytes that were damaged on the way pass, a length
over the model's positions lasts.
"""

from __future__ import annotations

import re
from typing import Any

from tracefleet.errors import ArtifactError, StoreUnavailableError

#: What a library says when memory or a disk is used up: torch 2.13's allocators, strerror(3).
_USED_UP = re.compile(
    r"(?:can't|cannot|unable to) allocate|out of memory|not enough memory|no space left", re.I
)
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


#: Reasons of compilers (``tasks.backends.triage``) that are the model's own. Not device memory, a
#: device's own refusal or a share left to the CPU: the host or another process may be the cause.
_OF_THE_MODEL = frozenset(
    {
        "complex numbers",
        "dynamic shape",
        "flags",
        "no target",
        "too many instructions",
        "unsupported operator",
    }
)


class ConversionError(Exception):
    """Base of every failure that would happen again, so that it is never retried.

    Attributes:
        lasting: Whether it follows from the checkpoint, the request and the versions alone.
    """

    lasting = False

    def __init__(self, *arguments: Any, lasting: bool | None = None) -> None:
        """Make the error; ``lasting``: said of this one, where its type says another thing."""
        super().__init__(*arguments)
        if lasting is not None:
            self.lasting = lasting


def settle_lasting(error: ConversionError) -> None:
    """Let an error last no more that the host has caused: memory, a disk, a missing package.

    To be called where it was raised: what caused an error is lost between processes.
    """
    cause: BaseException | None = error
    while error.lasting and cause is not None:
        if _is_of_the_host(cause):
            error.lasting = False
        cause = cause.__cause__


def _is_of_the_host(error: BaseException) -> bool:
    # Libraries raise a bare OSError of their own too, about a file that is not as they want it.
    of_system = isinstance(error, OSError) and error.errno is not None
    if of_system or isinstance(error, MemoryError | ImportError):
        return True
    failures = getattr(getattr(error, "report", None), "failures", ())
    return any(_USED_UP.search(text) for text in (str(error), *failures))


class RequestError(ConversionError):
    """The request can't be carried out as written."""


class UnsupportedCheckpointError(ConversionError):
    """The checkpoint can't be converted for this task; the message names the reason."""

    lasting = True


class PaddingChangesError(UnsupportedCheckpointError):
    """Eager's outputs depend on padding, so that a bundle that pads would differ from eager."""


class UnsafeCheckpointError(ConversionError):
    """The checkpoint needs pickle or remote code without permission, or its bytes are damaged."""

    lasting = True


class TiedWeightsError(ConversionError):
    """Untying left a shared storage behind, or changed an output bit."""

    lasting = True


class TraceError(ConversionError):
    """The model ran eagerly but could not be recorded or saved as TorchScript."""

    lasting = True


class GenerationError(ConversionError):
    """Generation can't be recorded or proved, and is left out; its one forward is not concerned."""


class NumericsMismatchError(ConversionError):
    """The saved bundle does not compute what eager computes.

    Attributes:
        report: Report of the gate, with every probe's error; None: there is none.
        refused: Artifact that was refused (``tasks.backends.base.Proved``); None: unknown.
    """

    lasting = True

    def __init__(self, message: str, report: Any = None) -> None:
        self.report = report
        self.refused: Any = None
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the report when a child's error is pickled."""
        # By default an exception is made again from its message alone.
        return NumericsMismatchError, (str(self), self.report), {"lasting": self.lasting}


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
        self.lasting = reason in _OF_THE_MODEL
        super().__init__(message)


class PublishConflictError(ConversionError):
    """Another writer published different bytes under the same conversion key."""


def may_pass(error: Exception) -> bool:
    """Tell whether another try may help: it came from the network, or from a store that is away."""
    if isinstance(error, StoreUnavailableError):
        return True
    return not isinstance(error, ConversionError | ArtifactError)
