"""Packages, versions and devices of a Neuron backend on this host."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from tasks.child_main import report_progress
from tasks.errors import BackendUnavailableError
from tracefleet import errors
from tracefleet.manifest_types import Toolchain
from tracefleet.reader import neuron

#: The public package index has placeholders of version 1.0 under the compilers' names.
_FIRST_REAL = 1.1


def toolchain(backend: str) -> Toolchain:
    """Return the versions that shape a backend's programs, without importing anything.

    Raises:
        BackendUnavailableError: One of its distributions is not installed.
    """
    found = neuron.find_installed(backend)
    for name in neuron.DISTRIBUTIONS[backend]:
        if name not in found or _parse_numbers(found[name]) < _FIRST_REAL:
            raise BackendUnavailableError(
                f"backend {backend!r}: expected AWS Neuron's package {name}, got "
                f"{found.get(name, 'none')}. Convert on a worker of pool {backend!r} "
                "(infra/neuron), or ask for backend jit."
            )
    return Toolchain(
        python=".".join(platform.python_version_tuple()[:2]),
        torch=version("torch"),
        transformers=version("transformers"),
        compiler=neuron.format_toolchain(found),
    )


def has_device(backend: str) -> bool:
    """Tell whether this host's runtime finds NeuronCores, by reserving one.

    Runs in a child of its own: the runtime holds cores until its process ends.

    Raises:
        BackendUnavailableError: The backend's package can't be imported.
    """
    package = import_runtime(backend)
    try:
        with neuron.find_placement(package).neuron_cores_context(0, 1):
            return True
    except RuntimeError as error:
        report_progress(f"no Neuron device here: {str(error).splitlines()[0]}")
        return False


def import_runtime(backend: str) -> Any:
    """Import a backend's package.

    Raises:
        BackendUnavailableError: It can't be imported.
    """
    try:
        return neuron.import_runtime(backend)
    except errors.BackendUnavailableError as error:
        raise BackendUnavailableError(str(error)) from error


def compiler_numbers(backend: str) -> tuple[int, ...]:
    """Return the version of a backend's compiler on this host as numbers; empty: there is none."""
    name = neuron.DISTRIBUTIONS[backend][0]
    return neuron.parse_version(neuron.find_installed(backend).get(name, ""))


def _parse_numbers(version: str) -> float:
    major, _, rest = version.partition(".")
    return float(f"{major}.{rest.partition('.')[0] or 0}")
