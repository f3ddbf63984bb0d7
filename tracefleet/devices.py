"""Verdicts of further devices: on which ones a conversion was proved after it was published.

A manifest names the device of its first gate. The gate can be run again on another one; its verdict
is a create-once file beside the manifest, ``devices/<backend>-<device>.json``, that names the
manifest by its digest and the versions of the host.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tracefleet.canonical import canonical_json
from tracefleet.decode import decode
from tracefleet.errors import ManifestError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import INT8, JIT, Toolchain
from tracefleet.store import ReadableStore
from tracefleet.verdict_types import Validation

CPU = "cpu"
FOLDER = "devices"
#: A kind of device as torch names it; it is part of a path.
_KIND = re.compile(r"[a-z][a-z0-9]{0,15}")


@dataclass(frozen=True, kw_only=True)
class DeviceVerdict:
    """The gate's verdict on another device.

    Attributes:
        manifest: sha256 of the manifest whose files ran.
        device: kind of the device, such as ``cuda``.
        name: what the device is called, such as its model.
        toolchain: versions of the host.
        validation: verdict of the gate, against eager on the same device.
        distance: largest difference of eager there from eager on the CPU, relative to the largest
            value, for one input.
    """

    manifest: str
    device: str
    name: str
    toolchain: Toolchain
    validation: Validation
    distance: float

    def to_bytes(self) -> bytes:
        """Return the canonical JSON."""
        return canonical_json(dataclasses.asdict(self))


def kind_of(device: str) -> str:
    """Return the kind of a device: ``cuda`` of ``cuda:1``.

    Raises:
        ValueError: it is no name of a device.
    """
    kind = device.partition(":")[0]
    if not _KIND.fullmatch(kind):
        raise ValueError(f"device: expected cpu, cuda, cuda:1 or the like, got {device!r}")
    return kind


def explain_refusal(manifest: Manifest, device: str) -> str | None:
    """Say why a conversion can't run on a device; None: it can, where there is such a device.

    Raises:
        ValueError: it is no name of a device.
    """
    kind, variant = kind_of(device), manifest.variant
    if variant.backend != JIT:
        return (
            f"device expected none for backend {variant.backend}, whose programs run on "
            f"NeuronCores, got {device!r}. Leave it out, or take a conversion of backend 'jit'."
        )
    if kind == CPU:
        return None
    if variant.dtype == INT8:
        return (
            f"dtype int8 runs on x86 CPUs alone, got device {device!r}. Take the float32 or "
            "float16 conversion there."
        )
    if not manifest.follows_device:
        return (
            f"its graph is bound to {manifest.device or CPU}, where it was recorded, got device "
            f"{device!r}. Conversions of recipe 3 follow their device: convert again."
        )
    return None


def verdict_path(folder: str, manifest: Manifest, kind: str) -> str:
    """Return where the verdict of a kind of device is in a conversion's folder."""
    return f"{folder}/{FOLDER}/{manifest.variant.backend}-{kind}.json"


def find_verdicts(store: ReadableStore, folder: str, manifest: Manifest) -> Iterator[DeviceVerdict]:
    """Yield the verdicts of all devices that are beside a manifest.

    Raises:
        ManifestError: one is malformed, or of another manifest or device.
    """
    start = f"{manifest.variant.backend}-"
    for name in store.names(f"{folder}/{FOLDER}"):
        if name.startswith(start) and name.endswith(".json"):
            kind = name.removeprefix(start).removesuffix(".json")
            verdict = read_verdict(store, folder, manifest, kind)
            if verdict is not None:
                yield verdict


def read_verdict(
    store: ReadableStore, folder: str, manifest: Manifest, kind: str
) -> DeviceVerdict | None:
    """Return the verdict of a kind of device, or None.

    Raises:
        ManifestError: it is malformed, or of another manifest or device.
    """
    path = verdict_path(folder, manifest, kind)
    try:
        raw = json.loads(store.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ManifestError(f"{path}: expected JSON, got something else: {error}") from error
    verdict = decode(DeviceVerdict, raw, where=path)
    for name, expected, got in (
        ("manifest", manifest.digest, verdict.manifest),
        ("device", kind, verdict.device),
    ):
        if got != expected:
            raise ManifestError(
                f"{path}: {name} expected {expected}, got {got}. It was moved or edited: remove "
                "it and validate on the device again."
            )
    return verdict
