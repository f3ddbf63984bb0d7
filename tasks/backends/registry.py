"""Find a backend by its name: ``find_backend``."""

from __future__ import annotations

from tasks.backends.base import BACKENDS, Backend
from tasks.backends.jit import JIT
from tasks.backends.neuron import NEURON
from tasks.backends.neuronx import NEURONX
from tasks.errors import RequestError

_BY_NAME = {backend.name: backend for backend in (JIT, NEURONX, NEURON)}


def find_backend(name: str) -> Backend:
    """Return a backend that can run here.

    Raises:
        RequestError: There is no backend of that name.
        BackendUnavailableError: Its packages are not on this machine.
    """
    if name not in _BY_NAME:
        raise RequestError(f"backend: expected one of {', '.join(BACKENDS)}; got {name!r}.")
    backend = _BY_NAME[name]
    backend.toolchain()  # raises where a package is missing
    return backend
