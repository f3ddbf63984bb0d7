"""The machine that is measured: its processor, how busy it was, the versions of what runs."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from tracefleet import __version__
from tracefleet.bench.optional import find_version

_PACKAGES = ("torch", "transformers", "onnxruntime", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What figures depend on, beside the model.

    Attributes:
        cpu: name of the processor.
        cores: how many of it this process may use.
        load: processes that ran in the last minute, on average; None: not known here.
        versions: of Python and of every package that may take part; None: not installed.
    """

    cpu: str
    cores: int
    load: float | None
    versions: dict[str, str | None]


def describe_machine() -> Machine:
    """Return this machine as it is now; called before any work, which would be load as well."""
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "tracefleet": __version__,
    }
    for package in _PACKAGES:
        versions[package] = find_version(package)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Machine(cpu=_name_cpu(), cores=count_cores(), load=load, versions=versions)


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _name_cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # another system than Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
