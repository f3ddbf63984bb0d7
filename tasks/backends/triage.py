"""Find the cause of a failed compilation: a typed error with a reason and the next step.

The compilers report by exit status and by lines on stderr; the packages by ``RuntimeError``. The
table's patterns are from AWS's list of error codes and from public issue threads (aws-neuron-sdk).
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import (
    BackendUnavailableError,
    CompilationError,
    ConversionCrashedError,
    ConversionError,
)

_TAIL = 20_000
_EXIT = re.compile(r"neuronx?-cc failed with (-?\d+)")


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One row of the table.

    Attributes:
        pattern: Pattern in the exception's text or in the compiler's last lines.
        reason: One or two words, stable, for programs.
        advice: Next step for the user.
        kind: Type of the error.
    """

    pattern: str
    reason: str
    advice: str
    kind: type[ConversionError] = CompilationError


#: The first match counts: diagnostics before the exit status that follows them.
CAUSES = (
    Cause(
        pattern=r"num_devices > 0|could not be initialized",
        reason="no device",
        advice="Run on an instance of the target's family, or convert without a device: the "
        "backend then compiles for a candidate. A container needs --device=/dev/neuron0.",
        kind=BackendUnavailableError,
    ),
    Cause(
        pattern=r"supply compiler argument target",
        reason="no target",
        advice="Name the target in the backend's options.",
    ),
    Cause(
        pattern=r"neuronx?-cc(?: compiler)? is not installed|[Nn]o module named 'neuronx?cc'"
        r"|neuronx?-cc: (?:command )?not found",
        reason="no compiler",
        advice="Install the compiler beside its package, from AWS's package repository.",
        kind=BackendUnavailableError,
    ),
    Cause(
        pattern=r"NEFF version|NRT_UNSUPPORTED_NEFF|undefined symbol|requires torch",
        reason="version skew",
        advice="Install compiler, package, torch and runtime of one SDK release (infra/neuron pins "
        "them).",
        kind=BackendUnavailableError,
    ),
    Cause(
        pattern=r"NCC_EVRF001|no lowering to HLO|has no converter|NCC_EUOC002",
        reason="unsupported operator",
        advice="The line names it. Convert this checkpoint for jit, or let Inf1 fall back to its "
        "host's CPU.",
    ),
    Cause(
        pattern=r"NCC_EMOD025|dynamic shape",
        reason="dynamic shape",
        advice="The model's shapes depend on its inputs' values, which no NEFF can hold: convert "
        "this checkpoint for jit.",
    ),
    Cause(
        pattern=r"NCC_EVRF004",
        reason="complex numbers",
        advice="The cores know none: convert this checkpoint for jit.",
    ),
    Cause(
        pattern=r"NCC_EVRF007|NCC_EBVF030|[Tt]oo many instructions",
        reason="too many instructions",
        advice="Ask for a shorter standard length or a smaller batch, or optlevel 1.",
    ),
    Cause(
        pattern=r"NCC_EOOM00\d|Allocation Failure|status=4\b|RESOURCE_EXHAUSTED",
        reason="device memory",
        advice="The program does not fit a core's memory: ask for a shorter length, a smaller "
        "batch, or a cast (auto_cast).",
    ),
    Cause(
        pattern=r"NCC_EARG001|invalid choice|unrecognized arguments",
        reason="flags",
        advice="This compiler does not take a flag of the backend's options: compare its version "
        "with infra/neuron's.",
    ),
    Cause(
        pattern=r"maximum protobuf size|DecodeError|2GB|GraphDef",
        reason="2 GB limit",
        advice="Separate the weights from the program (separate_weights).",
    ),
    Cause(
        pattern=r"Numerical Error|status=1003",
        reason="execution",
        advice="The device refused to run the program: try without a cast, and report it to AWS.",
    ),
)
_KILLED = Cause(
    pattern="",
    reason="out of memory",
    advice="The kernel ended the compiler: compile on a host with more memory (64 GB for a large "
    "encoder), one length at a time, with a smaller batch or optlevel 1.",
    kind=ConversionCrashedError,
)
_HUNG = Cause(
    pattern="",
    reason="timeout",
    advice="Raise the request's timeout_seconds, or ask for optlevel 1 or a shorter length.",
    kind=ConversionCrashedError,
)
_NOTHING = Cause(
    pattern=r"No operations were successfully partitioned",
    reason="nothing compiled",
    advice="Every subgraph failed: look for the compiler's own messages in the run's log.",
)
_BROKEN = Cause(
    pattern="",
    reason="compiler error",
    advice="The compiler failed by itself: another optlevel or model_type often helps; else report "
    "its folder to AWS, and convert this checkpoint for jit.",
)
_UNKNOWN = Cause(
    pattern="",
    reason="unknown",
    advice="Look at the compiler's folder, and report the error with it.",
)


def find_cause(error: BaseException, log_tail: str) -> Cause:
    """Return what made a compilation fail.

    Args:
        error: Exception that was raised.
        log_tail: Last lines that the compiler wrote.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, subprocess.TimeoutExpired):
        return _HUNG
    # The exception first: earlier lines of the log may be about something else. But Inf1's package
    # raises no more than that nothing is left; the cause is in the log alone.
    silent = re.search(_NOTHING.pattern, text)
    places = (log_tail, text) if silent else (text, log_tail)
    status = _EXIT.search("\n".join(places) if silent else text)
    if status and int(status[1]) in (-9, 137):
        return _KILLED
    for place in places:
        for cause in CAUSES:
            if re.search(cause.pattern, place):
                return cause
    if silent:
        return _NOTHING
    return _BROKEN if status else _UNKNOWN


def triage(
    error: BaseException, what: str, log: Path, *, kept: Path | None = None
) -> ConversionError:
    """Return the typed error of a failed compilation.

    Args:
        error: Exception that was raised.
        what: Name of what was being compiled.
        log: File that the child and its compiler wrote to.
        kept: Folder of the compiler, if there is something in it.
    """
    log_tail = log.read_text(errors="replace")[-_TAIL:] if log.exists() else ""
    cause = find_cause(error, log_tail)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    diagnostic = next((line.strip() for line in log_tail.splitlines() if "NCC_" in line), "")
    shown = "; ".join(part for part in (lines[0], diagnostic) if part)
    where = f"Its folder is kept: {kept}. " if kept else ""
    message = (
        f"{what}: expected the compiler to make a program, got {cause.reason}: {shown}. "
        f"{where}{cause.advice}"
    )
    if issubclass(cause.kind, ConversionCrashedError | CompilationError):
        return cause.kind(message, reason=cause.reason, log_tail=log_tail[-2000:])
    return cause.kind(message)
