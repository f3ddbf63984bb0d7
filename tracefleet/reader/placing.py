"""Put an opened bundle on the device that its caller asked for, or say why it can't be there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tracefleet.devices import CPU, kind_of, read_verdict
from tracefleet.errors import BackendUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import INT8, JIT
from tracefleet.published import Selection
from tracefleet.store import ReadableStore

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def check_device(manifest: Manifest, path: str, device: str | None) -> str:
    """Return the device to run on, refused before anything is downloaded.

    Args:
        manifest: of the conversion.
        path: of the manifest, for messages.
        device: device that was asked for; None: the one of the manifest.

    Raises:
        ValueError: it is no name of a device.
        BackendUnavailableError: this conversion can't run there, or this host has no such device.
    """
    if device is None:
        return CPU
    kind, variant = kind_of(device), manifest.variant
    if variant.backend != JIT:
        raise BackendUnavailableError(
            f"{path}: device expected none for backend {variant.backend}, whose programs run on "
            f"NeuronCores, got {device!r}. Leave it out, or open backend 'jit'."
        )
    if kind == CPU:
        return device
    if variant.dtype == INT8:
        raise BackendUnavailableError(
            f"{path}: dtype int8 runs on x86 CPUs alone, got device {device!r}. Open the float32 "
            "or float16 conversion there."
        )
    if not manifest.follows_device:
        raise BackendUnavailableError(
            f"{path}: its graph is bound to {manifest.device or CPU}, where it was recorded, got "
            f"device {device!r}. Conversions of recipe 3 follow their device: convert again."
        )
    _check_host(path, device, kind)
    return device


def _check_host(path: str, device: str, kind: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BackendUnavailableError(
            f"{path}: expected a device {device!r} on this host, got: {reason}. "
            f"Install a torch that supports {kind}, or leave out device."
        ) from error


def place(module: torch.jit.ScriptModule, device: str) -> None:
    """Move a module's weights to a device."""
    if kind_of(device) != CPU:
        module.to(device)


def wait_for(device: str) -> None:
    """Wait until a device has done what it was given: calls of a GPU return before they end."""
    import torch

    if kind_of(device) == "cuda":
        torch.cuda.synchronize(device)


def find_proof(store: ReadableStore, selection: Selection, manifest: Manifest, device: str) -> bool:
    """Tell whether the gate was run on a kind of device, and say so once if it was not."""
    kind = kind_of(device)
    if kind == CPU or manifest.device == kind:
        return True
    if read_verdict(store, selection.folder, manifest, kind) is not None:
        return True
    logger.warning(
        "%s was never proved on %s: run `python -m flows validate --conversion %s/%s --device %s` "
        "on such a host",
        manifest.source,
        kind,
        store.url,
        selection.folder,
        kind,
    )
    return False
