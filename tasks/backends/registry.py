"""The one place that knows which backends there are: ``find_backend``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.errors import RequestError

if TYPE_CHECKING:
    pass
from tasks.backends.base import BACKENDS, Backend, Compiler


def find_backend(name: str) -> Backend | Compiler:
    """Return a backend that can run here.

    Raises:
        RequestError: there is no backend of that name.
        BackendUnavailableError: its packages are not on this machine.
    """
    if name == "jit":
        from tasks.backends.jit import JIT

        return JIT
    if name == "neuronx":
        from tasks.backends.neuronx import NEURONX

        return _available(NEURONX)
    if name == "neuron":
        from tasks.backends.neuron import NEURON

        return _available(NEURON)
    raise RequestError(f"backend: expected one of {', '.join(BACKENDS)}; got {name!r}.")


def _available(compiler: Compiler) -> Compiler:
    compiler.toolchain()  # raises where a package is missing
    return compiler
