"""Run the gate of a published conversion once more, on another device."""

from __future__ import annotations

from typing import Any

from flows.prepare_gate import prepare_gate
from tasks.backends.registry import find_backend
from tasks.publish.devices import find_device, publish_device
from tasks.request.proof import read_conversion
from tasks.steps import Steps
from tasks.validate.devices import name_device
from tasks.validate.gate import validate_bundle
from tracefleet.devices import DeviceVerdict
from tracefleet.store import open_writable


def prove_device(
    conversion: str, device: str, steps: Steps | None = None, **more: Any
) -> DeviceVerdict:
    """Prove a conversion's own bytes on a device of this host, against eager on that device.

    Args:
        conversion: URL of the conversion's folder.
        device: Device to run on, such as ``cuda``.
        steps: How steps are called; None: here and in children.
        more: Fields of the request that are no part of its identity: trust, limits.

    Raises:
        ConversionError: it can't run there, or does not compute what eager computes.
    """
    manifest, request = read_conversion(conversion, device, **more)
    store = open_writable(request.store)
    if known := find_device(store, manifest, device):
        return known
    with steps or Steps(limits=request.limits) as steps:
        name = steps.child("device", name_device, device)
        bundle, reference = prepare_gate(store, manifest, request, steps, device=device)
        report = steps.child("validate", validate_bundle, bundle, reference)
        return publish_device(
            store,
            manifest,
            report,
            device=device,
            name=name,
            toolchain=find_backend(request.backend).toolchain(),
            distance=reference.distance,
        )
