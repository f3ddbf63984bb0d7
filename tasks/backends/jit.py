"""TorchScript through ``torch.jit.trace``, for CPUs and GPUs, Python, C++ and Triton."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tasks.backends.base import Backend
from tracefleet.manifest import Toolchain

if TYPE_CHECKING:
    from tasks.trace.record import TraceResult


def trace(*arguments: Any) -> TraceResult:
    """Run ``tasks.trace.record.trace_checkpoint``; torch is imported in the child alone."""
    from tasks.trace.record import trace_checkpoint

    return trace_checkpoint(*arguments)


def toolchain() -> Toolchain:
    """Return the versions that shape a jit bundle.

    Python's patch release changes no byte of an archive and is left out, so that it makes no
    fleet stale.
    """
    return Toolchain(
        python=".".join(platform.python_version_tuple()[:2]),
        torch=version("torch"),
        transformers=version("transformers"),
    )


JIT = Backend(name="jit", trace=trace, toolchain=toolchain)
