"""Get ready to run the gate once more on a published conversion, without tracing anything.

The gate itself is the next step: ``steps.child("validate", validate_bundle, bundle, reference)``.
"""

from __future__ import annotations

from pathlib import Path

from tasks.fetch.checkpoint import fetch, fetch_description, resolve
from tasks.model.preflight import inspect
from tasks.request.candidate import check_same_commit
from tasks.request.conversion import ConversionRequest
from tasks.request.proof import check_required, download_bundle, plan_proof
from tasks.samples.make import make_samples
from tasks.steps import Steps
from tasks.validate.compute import compute_reference
from tasks.validate.reference import Reference
from tracefleet.manifest import Manifest
from tracefleet.store import ReadableStore


def prepare_gate(
    store: ReadableStore,
    manifest: Manifest,
    request: ConversionRequest,
    steps: Steps,
    *,
    device: str = "cpu",
) -> tuple[Path, Reference]:
    """Return a conversion's own bytes, and what eager computes with this host's versions.

    Args:
        store: Store of the conversion.
        manifest: Manifest of the conversion.
        request: Request that it was made for.
        steps: How steps are called.
        device: Device that eager and the bundle are to run on.

    Raises:
        NumericsMismatchError: Eager requires an input that the manifest lets callers leave out, or
            the quantised model is too far from the float32 one.
        ConversionError: The checkpoint is not what was converted, or can't be a reference here.
        DigestMismatchError: The bundle is damaged.
    """
    source = steps.here("resolve", resolve, request.source, **request.permissions)
    check_same_commit(manifest, source)
    described = steps.here("describe", fetch_description, source)
    facts = steps.child("inspect", inspect, described, request.load_options, request.known_lengths)
    checkpoint = steps.here("fetch", fetch, source)  # every byte verified
    bundle = steps.here("download", download_bundle, store, manifest, steps.work)
    folder, options = checkpoint.folder, request.load_options
    path, outputs = steps.work / "samples.safetensors", steps.work / "reference"
    samples = steps.child("samples", make_samples, folder, options, facts, manifest.lengths, path)
    plan = plan_proof(manifest, facts, device, samples)
    reference = steps.child("reference", compute_reference, folder, options, plan, outputs)
    check_required(manifest, reference)
    return bundle, reference
