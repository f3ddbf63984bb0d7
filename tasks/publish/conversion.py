"""Publish a validated conversion: files first, the manifest last, then the channel's next number.

A reader finds a conversion only through its manifest, which is written after every file that it
names; a crash before that leaves files that nothing references. A key is published once: two
writers write the same bytes, and the second one finds those of the first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import NumericsMismatchError, PublishConflictError
from tasks.publish.claim import Claim, claim_conversion
from tasks.publish.doubles import refuse_doubles
from tasks.publish.find import CANDIDATE_CHANNEL, check_publishable, find_candidate, find_manifest
from tasks.publish.withdraw import Withdrawal, find_withdrawal
from tasks.validate.verdict import ValidationReport
from tracefleet.canonical import canonical_json
from tracefleet.channel import (
    ChannelEntry,
    append,
    channel_folder,
    conversion_folder,
    read_current,
    read_entry,
    source_slug,
)
from tracefleet.errors import DigestMismatchError, StoreUnavailableError
from tracefleet.manifest import MANIFEST, Manifest, parse
from tracefleet.store import ReadableStore, Store
from tracefleet.verdict_types import (
    UNVALIDATED_ON_DEVICE,
    VALIDATED,
    Tolerance,
    Validation,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Address of a published conversion.

    Attributes:
        url: URL of the conversion's folder.
        manifest_digest: sha256 of the manifest's bytes.
        channel: Channel that points to the conversion.
        number: Current number of the channel's log.
        rolled_back_number: Set if the channel was rolled back from this conversion, and so points
            to another one: the highest number that holds it.
        withdrawal: Set if the conversion was withdrawn from the channel, and left so.
    """

    url: str
    manifest_digest: str
    channel: str
    number: int
    rolled_back_number: int | None = None
    withdrawal: Withdrawal | None = None


def publish(
    store: Store, manifest: Manifest, files: dict[str, Path], *, channel: str
) -> Publication:
    """Write a conversion to a store and point a channel to it.

    Args:
        store: Store to publish to.
        manifest: Manifest of the conversion.
        files: Local files by the paths that the manifest names.
        channel: Channel; a conversion that no device has run goes to ``candidate`` alone.

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
        return _move_channel(store, winner, channel)


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


def point_channel(store: Store, manifest: Manifest, *, channel: str) -> Publication:
    """Make a channel point to a published conversion; write nothing if it does already.

    A conversion that was rolled back or withdrawn stays so: a repeat of a request is no decision.

    Raises:
        DigestMismatchError: the channel names another manifest for this key: one was edited.
        StoreUnavailableError: the conversion is being collected, or was a moment ago.
    """
    log = channel_folder(manifest.source, manifest.variant, channel)
    newest = read_current(store, log)
    if newest and _points_to(store, newest[1], manifest):
        return _describe_current(store, manifest, channel, *newest)
    withdrawal = find_withdrawal(store, log, newest[0], manifest.key) if newest else None
    if newest and withdrawal:
        logger.warning("%s was withdrawn from %s: left so", manifest.key[:12], log)
        return _describe_publication(store, manifest, channel, newest[0], withdrawal=withdrawal)
    with claim_conversion(store, source_slug(manifest.source), manifest.key):
        # Only now is it safe from the collector: it may have gone since it was found.
        if find_manifest(store, manifest.source, manifest.key, manifest.file_name) is None:
            raise StoreUnavailableError(
                f"{store.url}/{conversion_folder(manifest.source, manifest.key)}: expected the "
                "conversion that was found a moment ago, but gc has collected it. Run again."
            )
        return _move_channel(store, manifest, channel)


def _move_channel(store: Store, manifest: Manifest, channel: str) -> Publication:
    """Write the channel's next number; decide again if another writer took it."""
    log = channel_folder(manifest.source, manifest.variant, channel)
    while True:
        newest = read_current(store, log)
        number = newest[0] if newest else None
        if newest and _points_to(store, newest[1], manifest):
            return _describe_current(store, manifest, channel, *newest)
        passed = find_rolled_back_number(store, log, *newest, manifest.key) if newest else None
        if newest and passed:
            logger.warning("%s was rolled back from %s: left so", log, manifest.key[:12])
            return _describe_publication(
                store, manifest, channel, newest[0], rolled_back_number=passed
            )
        following = append(
            store,
            log,
            after=number,
            manifest_digest=manifest.digest,
            key=manifest.key,
            previous=number,
        )
        if following is not None:
            return _describe_publication(store, manifest, channel, following)


def _points_to(store: ReadableStore, entry: ChannelEntry, manifest: Manifest) -> bool:
    """Return whether a channel's entry names this conversion, and not its candidate.

    Raises:
        DigestMismatchError: the entry has the key and the manifest of neither.
    """
    if entry.key != manifest.key or entry.manifest == manifest.digest:
        return entry.key == manifest.key
    # A candidate has the key of the conversion that it becomes, and a manifest of its own.
    candidate = find_candidate(store, manifest.source, manifest.key)
    if candidate is not None and candidate.digest == entry.manifest:
        return False
    path = f"{conversion_folder(manifest.source, manifest.key)}/{manifest.file_name}"
    raise DigestMismatchError(path, expected=entry.manifest, got=manifest.digest)


def _describe_current(
    store: ReadableStore, manifest: Manifest, channel: str, number: int, entry: ChannelEntry
) -> Publication:
    """Return where a conversion is that the channel points to, if only to withdraw it."""
    withdrawal = None
    if entry.withdrawn is not None:
        withdrawal = Withdrawal(number, entry.withdrawn)
        logger.warning("%s was withdrawn from %s: left so", manifest.key[:12], channel)
    return _describe_publication(store, manifest, channel, number, withdrawal=withdrawal)


def _describe_publication(
    store: ReadableStore,
    manifest: Manifest,
    channel: str,
    number: int,
    *,
    rolled_back_number: int | None = None,
    withdrawal: Withdrawal | None = None,
) -> Publication:
    return Publication(
        url=f"{store.url}/{conversion_folder(manifest.source, manifest.key)}",
        manifest_digest=manifest.digest,
        channel=channel,
        number=number,
        rolled_back_number=rolled_back_number,
        withdrawal=withdrawal,
    )


def find_rolled_back_number(
    store: ReadableStore, log: str, number: int, newest: ChannelEntry, key: str
) -> int | None:
    """Return the highest number with this key that a rollback to ``newest`` passed over.

    Args:
        store: Store of the channel.
        log: Folder of the channel.
        number: Current number of the channel.
        newest: Entry of that number.
        key: Conversion key.

    Returns:
        None if ``newest`` is no rollback, or not one from this key.
    """
    # A scheduled run of an unchanged request would otherwise undo what an operator did.
    for passed in range(number - 1, newest.previous or 0, -1):
        if read_entry(store, log, passed).key == key:
            return passed
    return None


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
