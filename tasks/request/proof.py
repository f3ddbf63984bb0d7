"""What it takes to run the gate once more for a published conversion: elsewhere, or later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.errors import NumericsMismatchError, RequestError, UnsupportedCheckpointError
from tasks.model.facts import ModelFacts
from tasks.publish.find import find_published
from tasks.request.candidate import parse_url, request_fields
from tasks.request.conversion import ConversionRequest, make_request
from tasks.samples.make import Samples
from tasks.validate.plan import ProbePlan
from tasks.validate.reference import Reference
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
    return manifest, request_proof(store, manifest, **more)


def request_proof(store: ReadableStore, manifest: Manifest, **more: Any) -> ConversionRequest:
    """Return the request that a conversion was made for, of its very commit.

    Args:
        store: Store of the conversion.
        manifest: Manifest of the conversion.
        more: Fields of the request that are no part of its identity: trust, limits.

    Raises:
        RequestError: This version takes no such request.
    """
    return make_request({**request_fields(manifest), "store": store.url, **more})


def _check_device(manifest: Manifest, device: str) -> None:
    try:
        refusal = explain_refusal(manifest, device)
    except ValueError as error:
        raise RequestError(str(error)) from None
    if refusal is not None:
        raise RequestError(f"{manifest.key}: {refusal}")


def plan_proof(manifest: Manifest, facts: ModelFacts, device: str, samples: Samples) -> ProbePlan:
    """Return the probes that the conversion passed, to be run again.

    Args:
        manifest: Manifest of the conversion.
        facts: Facts of the model, as this host's versions see it.
        device: Device to run on.
        samples: Real inputs of the checkpoint.

    Raises:
        UnsupportedCheckpointError: These versions call the model with other inputs.
    """
    taken = tuple(spec.name for spec in manifest.inputs)
    if tuple(facts.inputs) != taken:
        raise UnsupportedCheckpointError(
            f"{manifest.source}: expected inputs {', '.join(taken)}, which the bundle takes, got "
            f"{', '.join(facts.inputs)} from this host's versions. Convert the checkpoint again."
        )
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


def check_required(manifest: Manifest, reference: Reference) -> None:
    """Refuse a manifest that fills in an input which eager computes from the others.

    Raises:
        NumericsMismatchError: It does.
    """
    filled = {spec.name for spec in manifest.inputs if spec.fill_value is not None}
    wrong = sorted(filled & reference.required)
    if wrong:
        raise NumericsMismatchError(
            f"{manifest.source}: expected inputs that callers may leave out to be constants in "
            f"eager, got {', '.join(wrong)}, which eager computes. Convert the checkpoint again.",
            None,
        )


def download_bundle(store: ReadableStore, manifest: Manifest, work: Path) -> Path:
    """Download a conversion's bundle and verify it."""
    target, file = work / "model.pt", manifest.bundle
    path = f"{conversion_folder(manifest.source, manifest.key)}/{file.path}"
    store.download_to(path, target, size=file.size, sha256=file.sha256)
    return target
