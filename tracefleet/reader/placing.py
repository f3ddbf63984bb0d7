"""Put an opened bundle on the device that its caller asked for, or say why it can't be there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracefleet.devices import CPU, explain_refusal, kind_of, read_verdict
from tracefleet.errors import BackendUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection
from tracefleet.store import ReadableStore

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What is known of a conversion on a device.

    Attributes:
        found: whether the gate was run on such a device.
        distance: how far eager there is from eager on the CPU, relative to the largest value.
    """

    found: bool = True
    distance: float = 0.0


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
    refusal = explain_refusal(manifest, device)
    if refusal is not None:
        raise BackendUnavailableError(f"{path}: {refusal}")
    if kind_of(device) != CPU:
        check_host(device)
    return device


def check_host(device: str) -> None:
    """Refuse a device that this host or its torch does not have.

    Raises:
        BackendUnavailableError: there is none.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackendUnavailableError(
            f"device: expected {device!r} on this host, got: {str(error).splitlines()[0]}. Use a "
            "host that has it, with a torch that supports it, or leave it out."
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


def find_proof(
    store: ReadableStore, selection: Selection, manifest: Manifest, device: str
) -> Proof:
    """Return whether the gate was run on a kind of device, and say so once if it was not."""
    kind = kind_of(device)
    if kind == CPU or manifest.device == kind:
        return Proof()
    verdict = read_verdict(store, selection.folder, manifest, kind)
    if verdict is not None:
        return Proof(distance=verdict.distance)
    logger.warning(
        "%s was never proved on %s: run `tracefleet validate %s/%s --device %s` on such a host",
        manifest.source,
        kind,
        store.url,
        selection.folder,
        kind,
    )
    return Proof(found=False)
