"""What a backend is, and the one place that knows which there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.errors import BackendUnavailableError, RequestError
from tracefleet.manifest import Toolchain

if TYPE_CHECKING:
    from tasks.trace import TraceResult

#: Every backend of the vocabulary; not each can run on every machine.
BACKENDS = ("jit", "neuronx", "neuron")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to make an artifact.

    Attributes:
        name: ``jit``, ``neuronx`` or ``neuron``.
        trace: module-level function that a child runs; takes and returns plain data.
        toolchain: reads the versions that shape the artifact, without importing torch.
    """

    name: str
    trace: Callable[..., TraceResult]
    toolchain: Callable[[], Toolchain]


def find_backend(name: str) -> Backend:
    """Return a backend that can run here.

    Raises:
        RequestError: there is no backend of that name.
        BackendUnavailableError: its packages are not on this machine.
    """
    if name == "jit":
        from tasks.backends.jit import JIT

        return JIT
    if name in BACKENDS:
        raise BackendUnavailableError(
            f"backend {name!r}: expected AWS Neuron's packages and a worker of pool {name!r}, got "
            "a tracefleet without Neuron workers (this version converts for jit only). "
            "Ask for backend jit."
        )
    raise RequestError(f"backend: expected one of {', '.join(BACKENDS)}; got {name!r}.")
