"""Move channels by hand: promote a conversion to another channel, or roll a channel back.

Nothing is overwritten: both write the channel's next number. Neither brings back what was withdrawn
(``tasks.publish.withdraw``). A guarded channel (``tasks.publish.guard``) takes only what a
person has confirmed; a rollback, the way out of trouble, is never held up. Called by ``tracefleet
promote`` and ``rollback``, and by the flow ``promote-conversion``.
"""

from __future__ import annotations

from tasks.errors import RequestError
from tasks.publish.claim import claim_conversion
from tasks.publish.find import check_publishable
from tasks.publish.guard import require_confirmed
from tasks.publish.withdraw import Withdrawal, bring_back, find_withdrawal, select_number
from tracefleet.channel import (
    advance,
    check_channel,
    read_current,
    read_entry,
    slug_folder,
)
from tracefleet.channel_numbers import list_between
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, load_manifest
from tracefleet.store import ReadableStore, Store


def promote(
    store: Store, selection: Selection, *, to: str = "latest", confirmed: bool = False
) -> tuple[Manifest, int]:
    """Make what one channel points to current in another one too.

    Args:
        store: Store of both channels.
        selection: Current conversion of the channel that is promoted from.
        to: Name of the other channel.
        confirmed: Whether a person has said so, as a guarded channel requires.

    Returns:
        The conversion's manifest, and the number it now has in ``to``.

    Raises:
        NumericsMismatchError: the conversion is not validated.
        WithdrawnError: it was withdrawn from the channel that it is promoted from.
        RequestError: it was withdrawn from the other channel, or that one is guarded and nobody
            has confirmed it.
        ArtifactError: it is damaged, or the store does not answer.
    """
    published = selection.published
    if check_channel(to) == published.channel:
        raise RequestError(f"promote: expected two different channels, got {to!r} twice")
    require_confirmed(store, to, "promote", confirmed=confirmed)
    with claim_conversion(store, selection.slug, selection.entry.key):
        manifest = load_manifest(store, selection)
        check_publishable(manifest.validation)
        folder = slug_folder(published.slug, published.variant, to)
        newest = read_current(store, folder)
        if newest is not None:
            _refuse_withdrawn(store, folder, newest[0], manifest.key, "promote")
        number = advance(
            store,
            folder,
            manifest_digest=manifest.digest,
            key=manifest.key,
            source=selection.entry.source,
        )
    return manifest, number


def rollback(
    store: Store, selection: Selection, *, number: int | None = None
) -> tuple[Manifest, int]:
    """Make an earlier number of a channel current again, as its next number.

    Args:
        store: Store of the channel.
        selection: Current conversion of the channel.
        number: Number to bring back; None: the one before the current, or after a rollback the
            one before the number that it brought back; what was withdrawn is passed over.

    Returns:
        The manifest of what is current now, and its number.

    Raises:
        RequestError: there is no such number, or its conversion was collected or withdrawn.
        PublishConflictError: another writer moved the channel meanwhile.
        ArtifactError: the conversion is damaged, or the store does not answer.
    """
    published = selection.published
    wanted = number if number is not None else _find_previous(store, selection)
    if wanted is None:
        raise RequestError(
            f"{published.folder}: rollback expected something before number {published.number}, "
            "got nothing. `tracefleet log` shows the channel's numbers."
        )
    earlier = select_number(store, selection, wanted, "rollback")
    key = earlier.entry.key
    _refuse_withdrawn(store, published.folder, published.number, key, "rollback")
    return bring_back(store, published, earlier, "rolled back")


def _find_previous(store: ReadableStore, selection: Selection) -> int | None:
    """Return the number that a rollback restores, past those whose conversions were withdrawn."""
    folder, wanted = selection.published.folder, selection.entry.previous
    while wanted is not None and (there := list_between(store, folder, 0, wanted)):
        entry = read_entry(store, folder, there[0])
        if find_withdrawal(store, folder, selection.number, entry.key) is None:
            return there[0]
        # An entry that somebody wrote by hand must not lead round and round.
        wanted = min(entry.previous or 0, there[0] - 1)
    return None


def _refuse_withdrawn(store: ReadableStore, folder: str, number: int, key: str, what: str) -> None:
    found: Withdrawal | None = find_withdrawal(store, folder, number, key)
    if found is not None:
        raise RequestError(
            f"{folder}: {what} expected a conversion that was not withdrawn there, got "
            f"{key[:12]}, withdrawn by number {found.number}: {found.reason}. If it is right all "
            f"the same: `tracefleet reinstate --number {found.number}` on that channel."
        )
