"""Publish a validated conversion: files first, the manifest last, then the channel's next number.

A reader finds a conversion only through its manifest, which is written after every file that it
names; a crash before that leaves files that nothing references. The same key published twice is
published once: two writers write the same bytes, and whoever comes second finds them there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import NumericsMismatchError, PublishConflictError
from tasks.publish.claim import Claim, claimed
from tasks.publish.doubles import refuse_doubles
from tasks.publish.find import CANDIDATE_CHANNEL, check_publishable, find_candidate, find_manifest
from tasks.validate.verdict import ValidationReport
from tracefleet.canonical import canonical_json
from tracefleet.channel import (
    ChannelEntry,
    append,
    channel_folder,
    conversion_folder,
    current,
    read_entry,
    source_slug,
)
from tracefleet.errors import DigestMismatchError, StoreUnavailableError
from tracefleet.manifest import MANIFEST, Manifest, parse
from tracefleet.manifest_types import UNVALIDATED_ON_DEVICE, VALIDATED, Tolerance, Validation
from tracefleet.store import ReadableStore, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Where a conversion is to be found.

    Attributes:
        url: of the conversion's folder.
        manifest_digest: sha256 of the manifest's bytes.
        channel: the channel that points to it.
        number: the current number of the channel's log.
        withdrawn: the channel was rolled back from this very conversion and stays so; the highest
            number that holds it. None: it was not.
    """

    url: str
    manifest_digest: str
    channel: str
    number: int
    withdrawn: int | None = None


def publish(
    store: Store, manifest: Manifest, files: dict[str, Path], *, channel: str
) -> Publication:
    """Put a conversion into a store and point a channel at it.

    What no device has run yet goes to the channel ``candidate`` alone.

    Raises:
        NumericsMismatchError: the manifest's verdict is not one that this channel may have.
        UnsafeCheckpointError: the contract double of the tests made it.
        PublishConflictError: other bytes are published under the same key.
        DigestMismatchError: a file changed since it was described.
        StoreError: the store can't take it (full, not writable); nothing becomes visible.
    """
    if manifest.validation.verdict != UNVALIDATED_ON_DEVICE or channel != CANDIDATE_CHANNEL:
        check_publishable(manifest.validation)
    refuse_doubles(store, manifest, files.values())
    with claimed(store, source_slug(manifest.source), manifest.key) as claim:
        winner = _publish_files(claim, manifest, files)
        claim.renew()
        return _point(store, winner, channel)


def _publish_files(claim: Claim, manifest: Manifest, files: dict[str, Path]) -> Manifest:
    """Publish a conversion for no channel yet; return the manifest that counts."""
    store = claim.store
    folder = conversion_folder(manifest.source, manifest.key)
    for entry in manifest.files:
        local = files[entry.path]
        store.put_file(f"{folder}/{entry.path}", local, size=entry.size, sha256=entry.sha256)
    if claim.renew():
        _check_all_there(store, folder, manifest)
    data = manifest.to_bytes()
    path = f"{folder}/{manifest.file_name}"
    if store.put_new(path, data) or (there := store.read(path)) == data:
        return manifest
    # Another machine measured other rounding errors of the same bytes: theirs was first.
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


def _check_all_there(store: ReadableStore, folder: str, manifest: Manifest) -> None:
    """Look once more after an upload that took long: gc may have taken this publisher for dead."""
    there = {file.path: file.size for file in store.walk(folder)}
    for file in manifest.files:
        if there.get(f"{folder}/{file.path}") != file.size:
            raise StoreUnavailableError(
                f"{store.url}/{folder}/{file.path}: expected {file.size} bytes that were put a "
                f"while ago, got {there.get(f'{folder}/{file.path}')}. Run again."
            )


def point_channel(store: Store, manifest: Manifest, *, channel: str) -> Publication:
    """Make a channel point to a conversion that is published; no new entry if it does already.

    Raises:
        DigestMismatchError: the channel points to this key with another manifest: it was edited.
        StoreUnavailableError: the conversion is being collected, or was a moment ago.
    """
    log = channel_folder(manifest.source, manifest.variant, channel)
    newest = current(store, log)
    if newest and _points_to(store, newest[1], manifest):
        return _publication(store, manifest, channel, newest[0])
    with claimed(store, source_slug(manifest.source), manifest.key):
        # From here on it can't be collected; up to here it could.
        if find_manifest(store, manifest.source, manifest.key, manifest.file_name) is None:
            raise StoreUnavailableError(
                f"{store.url}/{conversion_folder(manifest.source, manifest.key)}: expected the "
                "conversion that was found a moment ago, but gc has collected it. Run again."
            )
        return _point(store, manifest, channel)


def _point(store: Store, manifest: Manifest, channel: str) -> Publication:
    """Write the channel's next number, or decide again if somebody else took it."""
    log = channel_folder(manifest.source, manifest.variant, channel)
    while True:
        newest = current(store, log)
        number = newest[0] if newest else None
        if newest and _points_to(store, newest[1], manifest):
            return _publication(store, manifest, channel, newest[0])
        if newest and (withdrawn := rolled_back_from(store, log, *newest, manifest.key)):
            logger.warning("%s was rolled back from %s: left so", log, manifest.key[:12])
            return _publication(store, manifest, channel, newest[0], withdrawn=withdrawn)
        following = append(
            store,
            log,
            after=number,
            manifest_digest=manifest.digest,
            key=manifest.key,
            previous=number,
        )
        if following is not None:
            return _publication(store, manifest, channel, following)


def _points_to(store: ReadableStore, entry: ChannelEntry, manifest: Manifest) -> bool:
    """Tell whether a channel's entry is this conversion's; its candidate has the same key.

    Raises:
        DigestMismatchError: the same key with a manifest that is neither.
    """
    if entry.key != manifest.key or entry.manifest == manifest.digest:
        return entry.key == manifest.key
    candidate = find_candidate(store, manifest.source, manifest.key)
    if candidate is not None and candidate.digest == entry.manifest:
        return False
    path = f"{conversion_folder(manifest.source, manifest.key)}/{manifest.file_name}"
    raise DigestMismatchError(path, expected=entry.manifest, got=manifest.digest)


def _publication(
    store: ReadableStore,
    manifest: Manifest,
    channel: str,
    number: int,
    *,
    withdrawn: int | None = None,
) -> Publication:
    return Publication(
        url=f"{store.url}/{conversion_folder(manifest.source, manifest.key)}",
        manifest_digest=manifest.digest,
        channel=channel,
        number=number,
        withdrawn=withdrawn,
    )


def rolled_back_from(
    store: ReadableStore, log: str, number: int, newest: ChannelEntry, key: str
) -> int | None:
    """Return the highest number with this key that a rollback to ``newest`` passed over.

    A scheduled run of an unchanged request would otherwise undo what an operator did. None if
    ``newest`` is no rollback, or not from this key.
    """
    passed = range(number - 1, newest.previous or 0, -1)
    return next((one for one in passed if read_entry(store, log, one).key == key), None)


def attest(store: Store, manifest: Manifest, run: str, facts: dict[str, Any]) -> str:
    """Write who, when, where and how fast beside the conversion; return the path.

    Args:
        store: where the conversion is published.
        manifest: what the attestation is about; named by its digest.
        run: identifier of the run.
        facts: plain data.
    """
    path = f"attestations/{source_slug(manifest.source)}/{manifest.key}/{run}.json"
    store.put_new(path, canonical_json({"manifest": manifest.digest, "run": run, **facts}))
    return path


def validation_of(report: ValidationReport | None, tolerance: Tolerance) -> Validation:
    """Return what the manifest publishes of a report.

    Args:
        report: The gate's; None: no device could run the artifact where it was compiled.
        tolerance: Bound that the request set.

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
    )
