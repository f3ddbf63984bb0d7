"""What it takes to run the gate once more, on another device, for a published conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.errors import RequestError
from tasks.model.facts import ModelFacts
from tasks.publish.find import find_published
from tasks.request.candidate import parse_url, request_fields
from tasks.request.conversion import ConversionRequest, make_request
from tasks.samples.make import Samples
from tasks.validate.plan import ProbePlan
from tracefleet.channel import conversion_folder
from tracefleet.devices import explain_refusal
from tracefleet.errors import NoSuchVariantError
from tracefleet.manifest import MANIFEST, Manifest, parse
from tracefleet.store import ReadableStore


def read_conversion(
    conversion: str, device: str, **more: Any
) -> tuple[Manifest, ConversionRequest]:
    """Return a published conversion's manifest, and the request that it was made for.

    Args:
        conversion: URL of its folder.
        device: Device that it is to be proved on.
        more: Fields of the request that are no part of its identity: trust, limits.

    Raises:
        RequestError: the URL is no conversion's, or the conversion can't run on that device.
        NoSuchVariantError: nothing validated is published there.
        ManifestError: the manifest can't be trusted.
    """
    store, folder, key = parse_url(conversion)
    try:
        source = parse(store.read(f"{folder}/{MANIFEST}")).source
    except FileNotFoundError:
        raise NoSuchVariantError(
            f"{store.url}/{folder}: expected a validated conversion, got no {MANIFEST}. A "
            "candidate of Neuron is validated without --device."
        ) from None
    manifest = find_published(store, source, key)
    if manifest is None or conversion_folder(source, key) != folder:
        raise NoSuchVariantError(f"{store.url}/{folder}: it names another source: {source}")
    _check_device(manifest, device)
    return manifest, make_request({**request_fields(manifest), "store": store.url, **more})


def _check_device(manifest: Manifest, device: str) -> None:
    try:
        refusal = explain_refusal(manifest, device)
    except ValueError as error:
        raise RequestError(str(error)) from None
    if refusal is not None:
        raise RequestError(f"{manifest.key}: {refusal}")


def plan_proof(manifest: Manifest, facts: ModelFacts, device: str, samples: Samples) -> ProbePlan:
    """Return the probes that the conversion passed, to be run on another device.

    Args:
        manifest: Manifest of the conversion.
        facts: Facts of the model.
        device: Device to run on.
        samples: Real inputs of the checkpoint.
    """
    if all(spec.pad_value is None for spec in manifest.inputs):
        facts = facts.without_padding()
    whole = manifest.lengths[:1] if manifest.same_program else manifest.lengths
    return ProbePlan(
        facts=facts,
        lengths=manifest.lengths,
        whole=whole,
        batch=manifest.variant.batch,
        tolerance=manifest.validation.tolerance,
        general=manifest.general,
        device=device,
        samples=samples,
    )


def download_bundle(store: ReadableStore, manifest: Manifest, work: Path) -> Path:
    """Download a conversion's bundle and verify it."""
    target, file = work / "model.pt", manifest.bundle
    path = f"{conversion_folder(manifest.source, manifest.key)}/{file.path}"
    store.download_to(path, target, size=file.size, sha256=file.sha256)
    return target
