"""Publish the verdict of a further device: a create-once file beside the manifest."""

from __future__ import annotations

import dataclasses

from tasks.errors import PublishConflictError
from tasks.publish.conversion import validation_of
from tasks.publish.find import check_publishable
from tasks.validate.verdict import ValidationReport
from tracefleet.channel import conversion_folder
from tracefleet.devices import DeviceVerdict, kind_of, read_verdict, verdict_path
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import Toolchain
from tracefleet.store import ReadableStore, Store


def find_device(store: ReadableStore, manifest: Manifest, device: str) -> DeviceVerdict | None:
    """Return the verdict of a kind of device that is published, or None.

    Raises:
        ManifestError: it is malformed, or of another manifest or device.
    """
    folder = conversion_folder(manifest.source, manifest.key)
    return read_verdict(store, folder, manifest, kind_of(device))


def publish_device(
    store: Store,
    manifest: Manifest,
    report: ValidationReport,
    *,
    device: str,
    name: str,
    toolchain: Toolchain,
    distance: float,
) -> DeviceVerdict:
    """Write a device's verdict beside the manifest; the first one of a kind of device stays.

    Args:
        store: Store of the conversion.
        manifest: Manifest whose files were run.
        report: Report of the gate on the device.
        device: The device.
        name: What the device is called.
        toolchain: Versions of its host.
        distance: How far eager there is from eager on the CPU.

    Raises:
        NumericsMismatchError: the report did not pass.
        PublishConflictError: another host's verdict is gone again while it was read.
    """
    validation = validation_of(report, manifest.validation.tolerance)
    # The golden samples of the conversion are those of its first gate.
    validation = dataclasses.replace(validation, samples=None, without_samples=None)
    check_publishable(validation)
    verdict = DeviceVerdict(
        manifest=manifest.digest,
        device=kind_of(device),
        name=name,
        toolchain=toolchain,
        validation=validation,
        distance=distance,
    )
    folder = conversion_folder(manifest.source, manifest.key)
    path = verdict_path(folder, manifest, verdict.device)
    if store.put_new(path, verdict.to_bytes()):
        return verdict
    there = find_device(store, manifest, device)
    if there is None:
        raise PublishConflictError(f"{path}: expected the verdict that was there. Run again.")
    return there
