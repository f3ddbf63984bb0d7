"""Whether this host's torch can run a bundle: asked before a byte of it is read."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from tracefleet.errors import BackendUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import INT8, JIT
from tracefleet.opens_with import OPENS_WITH, allows

#: Engines that run int8 bundles. Torch has them on x86 CPUs, where one of them is its default.
_ENGINES = ("fbgemm", "x86")


def check_torch(manifest: Manifest, path: str) -> None:
    """Refuse a bundle that this torch is too old for, or has no engine for: on ARM, for instance.

    Raises:
        BackendUnavailableError: one of the two.
    """
    import torch

    if manifest.variant.backend != JIT:
        return
    if not allows(manifest.opens_with, torch.__version__):
        raise BackendUnavailableError(
            f"{path}: expected {manifest.opens_with or OPENS_WITH}, got torch {torch.__version__}: "
            f"the bundle was made with {manifest.toolchain.torch}, and in an older one its numbers "
            "may be others. Upgrade torch on this host."
        )
    if manifest.variant.dtype == INT8:
        _check_engine(path)


def _check_engine(path: str) -> None:
    import torch

    engines = torch.backends.quantized.supported_engines
    if _ENGINES[0] not in engines:
        raise BackendUnavailableError(
            f"{path}: dtype int8 expected torch's quantised engine {_ENGINES[0]}, got {engines}: "
            f"this CPU ({platform.machine()}) has none of it. Open it on an x86 CPU, or open the "
            "float32 conversion (dtype='float32')."
        )


@contextmanager
def using_int8_engine(manifest: Manifest) -> Iterator[None]:
    """Select the engine that runs int8 bundles: torch packs their weights for it when loading."""
    if manifest.variant.dtype != INT8:
        yield
        return
    import torch

    quantized = torch.backends.quantized
    before = quantized.engine
    if before not in _ENGINES:
        quantized.engine = _ENGINES[0]
    try:
        yield
    finally:
        if before not in _ENGINES:
            quantized.engine = before
