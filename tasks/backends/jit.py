"""TorchScript through ``torch.jit.trace``, for CPUs and GPUs, Python, C++ and Triton."""

from __future__ import annotations

import platform
from importlib.metadata import version

from tasks.backends.base import Backend
from tasks.backends.prove import prove_bundle
from tracefleet.manifest_types import Toolchain


def toolchain() -> Toolchain:
    """Return the versions that shape a jit bundle."""
    # Python's patch release changes no byte of an archive: with it every fleet would become stale.
    return Toolchain(
        python=".".join(platform.python_version_tuple()[:2]),
        torch=version("torch"),
        transformers=version("transformers"),
    )


def has_device() -> bool:
    """Return true: every host can run a bundle on its CPU."""
    return True


JIT = Backend(name="jit", toolchain=toolchain, has_device=has_device, prove=prove_bundle)
