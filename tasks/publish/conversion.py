"""Publish a validated conversion: files first, the manifest last, then its channels' next numbers.

A reader finds a conversion only through its manifest, which is written after every file that it
names; a crash before that leaves files that nothing references. A key is published once: two
writers write the same bytes, and the second one finds those of the first.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from tasks.errors import NumericsMismatchError, PublishConflictError
from tasks.publish.claim import Claim, claim_conversion
from tasks.publish.doubles import refuse_doubles
from tasks.publish.find import CANDIDATE_CHANNEL, check_publishable
from tasks.publish.point import Publication, move_channels
from tasks.validate.verdict import ValidationReport
from tracefleet.canonical import canonical_json
from tracefleet.channel import conversion_folder, source_slug
from tracefleet.errors import StoreUnavailableError
from tracefleet.manifest import MANIFEST, Manifest, parse
from tracefleet.store import ReadableStore, Store
from tracefleet.verdict_types import (
    UNVALIDATED_ON_DEVICE,
    VALIDATED,
    Tolerance,
    Validation,
)


def publish(
    store: Store,
    manifest: Manifest,
    files: dict[str, Path],
    *,
    channel: str,
    name: str | None = None,
) -> Publication:
    """Write a conversion to a store and point a channel to it, its name's too.

    Args:
        store: Store to publish to.
        manifest: Manifest of the conversion.
        files: Local files by the paths that the manifest names.
        channel: Channel; a conversion that no device has run goes to ``candidate`` alone.
        name: Name that it is opened by, beside its source; None: by its source alone.

    Raises:
        NumericsMismatchError: the channel does not accept the manifest's verdict.
        UnsafeCheckpointError: the contract double of the tests made the files.
        PublishConflictError: other bytes are published under the same key.
        DigestMismatchError: a file changed since it was described.
        StoreError: the store can't be written (full, read-only); nothing becomes visible.
    """
    if manifest.validation.verdict != UNVALIDATED_ON_DEVICE or channel != CANDIDATE_CHANNEL:
        check_publishable(manifest.validation)
    refuse_doubles(store, manifest, files.values())
    with claim_conversion(store, source_slug(manifest.source), manifest.key) as claim:
        winner = _publish_files(claim, manifest, files)
        claim.renew()
        return move_channels(store, winner, channel, name)


def _publish_files(claim: Claim, manifest: Manifest, files: dict[str, Path]) -> Manifest:
    """Write files and manifest; return the manifest that is published, of this or another run."""
    store = claim.store
    folder = conversion_folder(manifest.source, manifest.key)
    for entry in manifest.published:
        local = files[entry.path]
        store.put_file(f"{folder}/{entry.path}", local, size=entry.size, sha256=entry.sha256)
    if claim.renew():
        _check_uploaded(store, folder, manifest)
    data = manifest.to_bytes()
    path = f"{folder}/{manifest.file_name}"
    if store.put_new(path, data):
        return manifest
    there = store.read(path)
    if there == data:
        return manifest
    # Another machine was first, with the same files and other measured rounding errors.
    other = parse(there)
    if dataclasses.replace(other, validation=manifest.validation) == manifest:
        if manifest.file_name == MANIFEST:
            check_publishable(other.validation)
        return other
    raise PublishConflictError(
        f"{path}: expected the bytes of this conversion (sha256 {manifest.digest}), got others "
        f"({hashlib.sha256(there).hexdigest()}) from another writer. Nothing was changed. "
        "Compare the two with `tracefleet show`; if the published one is wrong, raise RECIPE."
    )


def _check_uploaded(store: ReadableStore, folder: str, manifest: Manifest) -> None:
    """Check the files again after a long upload: gc may have collected some meanwhile."""
    sizes = {file.path: file.size for file in store.walk(folder)}
    for file in manifest.published:
        path = f"{folder}/{file.path}"
        if sizes.get(path) != file.size:
            raise StoreUnavailableError(
                f"{store.url}/{path}: expected {file.size} bytes that were uploaded a while ago, "
                f"got {sizes.get(path)}. Run again."
            )


def attest(store: Store, manifest: Manifest, run: str, facts: dict[str, Any]) -> str:
    """Write an attestation (who, when, where, how fast) and return its path.

    Args:
        store: Store of the conversion.
        manifest: Manifest that the attestation names by its digest.
        run: Identifier of the run.
        facts: Plain data.
    """
    path = f"attestations/{source_slug(manifest.source)}/{manifest.key}/{run}.json"
    store.put_new(path, canonical_json({"manifest": manifest.digest, "run": run, **facts}))
    return path


def validation_of(report: ValidationReport | None, tolerance: Tolerance) -> Validation:
    """Return the part of a report that the manifest publishes.

    Args:
        report: Report of the gate; None: the host that compiled has no device to run on.
        tolerance: Tolerance of the request.

    Raises:
        NumericsMismatchError: the report did not pass; there is nothing to publish.
    """
    if report is None:
        return Validation(
            verdict=UNVALIDATED_ON_DEVICE, tolerance=tolerance, lengths=(), negative_controls=()
        )
    if not report.passed:
        raise NumericsMismatchError(f"publish: got a failed report: {report.failures[0]}", report)
    return Validation(
        verdict=VALIDATED,
        tolerance=report.tolerance,
        lengths=report.lengths(),
        negative_controls=report.negative_controls,
        accuracy=report.accuracy,
        samples=report.golden.entry,
        without_samples=report.golden.missing,
        left_padding=report.left_padding,
    )
