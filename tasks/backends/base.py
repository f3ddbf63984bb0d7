"""What a backend is, and the one place that knows which there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracefleet.manifest import Toolchain

if TYPE_CHECKING:
    from tasks.trace.record import TraceResult
    from tasks.validate.reference import Reference
    from tasks.validate.verdict import ValidationReport

#: Every backend of the vocabulary; not each can run on every machine.
BACKENDS = ("jit", "neuronx", "neuron")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to make an artifact of one file for all lengths.

    Attributes:
        name: ``jit``.
        trace: module-level function that a child runs; takes and returns plain data.
        toolchain: reads the versions that shape the artifact, without importing torch.
    """

    name: str
    trace: Callable[..., TraceResult]
    toolchain: Callable[[], Toolchain]


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """One way to make an artifact of a program for each length, for a device of its own.

    Every function can be pickled and runs in a child; all take and return plain data.

    Attributes:
        name: ``neuronx`` or ``neuron``.
        toolchain: reads the versions that shape the artifact, without importing anything.
        has_device: tells whether this host can run what it compiles.
        prepare: describes outputs, unties with proof, names operators that can't be compiled.
        compile: makes the program of one length.
        validate: runs the gate on the programs, on this host's device.
    """

    name: str
    toolchain: Callable[[], Toolchain]
    has_device: Callable[[], bool]
    prepare: Callable[..., Any]
    compile: Callable[..., Any]
    validate: Callable[[dict[int, Path], Reference, Toolchain, str], ValidationReport]
