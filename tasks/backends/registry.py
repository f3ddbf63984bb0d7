"""The one place that knows which backends there are: ``find_backend``."""

from __future__ import annotations

from importlib import import_module

from tasks.backends.base import BACKENDS, Backend
from tasks.errors import RequestError


def find_backend(name: str) -> Backend:
    """Return a backend that can run here; only its own module is imported.

    Raises:
        RequestError: there is no backend of that name.
        BackendUnavailableError: its packages are not on this machine.
    """
    if name not in BACKENDS:
        raise RequestError(f"backend: expected one of {', '.join(BACKENDS)}; got {name!r}.")
    backend: Backend = getattr(import_module(f"tasks.backends.{name}"), name.upper())
    backend.toolchain()  # raises where a package is missing
    return backend
