"""Move channels by hand: promote a conversion to another channel, or roll a channel back.

Nothing is overwritten: both write the channel's next number. Called by
``python -m flows promote`` and ``rollback``.
"""

from __future__ import annotations

import logging

from tasks.errors import PublishConflictError, RequestError
from tasks.publish.claim import claim_conversion
from tasks.publish.find import check_publishable
from tracefleet.channel import advance, append, channel_folder, check_channel, read_entry
from tracefleet.errors import ManifestError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, load_manifest
from tracefleet.store import ReadableStore, Store

logger = logging.getLogger(__name__)


def promote(store: Store, selection: Selection, *, to: str = "latest") -> tuple[Manifest, int]:
    """Make what one channel points to current in another one too.

    Args:
        store: Store of both channels.
        selection: Current conversion of the channel that is promoted from.
        to: Name of the other channel.

    Returns:
        The conversion's manifest, and the number it now has in ``to``.

    Raises:
        NumericsMismatchError: the conversion is not validated.
        ArtifactError: it is damaged, or the store does not answer.
    """
    published = selection.published
    if check_channel(to) == published.channel:
        raise RequestError(f"promote: expected two different channels, got {to!r} twice")
    with claim_conversion(store, published.slug, selection.entry.key):
        manifest = load_manifest(store, selection)
        check_publishable(manifest.validation)
        folder = channel_folder(manifest.source, manifest.variant, to)
        number = advance(store, folder, manifest_digest=manifest.digest, key=manifest.key)
    return manifest, number


def rollback(
    store: Store, selection: Selection, *, number: int | None = None
) -> tuple[Manifest, int]:
    """Make an earlier number of a channel current again, as its next number.

    Args:
        store: Store of the channel.
        selection: Current conversion of the channel.
        number: Number to bring back; None: the one before the current, or after a rollback the
            one before the number that it brought back.

    Returns:
        The manifest of what is current now, and its number.

    Raises:
        RequestError: there is no such number, or its conversion was collected.
        PublishConflictError: another writer moved the channel meanwhile.
        ArtifactError: the conversion is damaged, or the store does not answer.
    """
    published = selection.published
    wanted = number if number is not None else selection.entry.previous
    if wanted is None:
        raise RequestError(
            f"{published.folder}: rollback expected something before number {published.number}, "
            "got nothing. See `tracefleet list`."
        )
    if not 0 < wanted <= published.number:
        raise RequestError(
            f"{published.folder}: rollback expected a number from 1 to {published.number}, got "
            f"{wanted}"
        )
    earlier = Selection(
        published=published._replace(number=wanted),
        entry=read_entry(store, published.folder, wanted),
    )
    with claim_conversion(store, published.slug, earlier.entry.key):
        manifest = _load(store, earlier)
        check_publishable(manifest.validation)
        # `append` and not `advance`: a rollback that lost a race must not undo the other writer.
        following = append(
            store,
            published.folder,
            after=published.number,
            manifest_digest=manifest.digest,
            key=manifest.key,
            previous=earlier.entry.previous,
        )
    if following is None:
        raise PublishConflictError(
            f"{published.folder}: expected number {published.number} to be current still, but "
            "another writer published meanwhile. Nothing was rolled back; look at the channel "
            "(`tracefleet show`) and run again if it is still wanted."
        )
    return manifest, following


def _load(store: ReadableStore, selection: Selection) -> Manifest:
    try:
        return load_manifest(store, selection)
    except ManifestError as error:
        raise RequestError(
            f"{selection.published.folder}: number {selection.number} can't come back: {error}"
        ) from error
