"""Withdraw a published conversion, so that readers refuse it, and bring it back.

Nothing is overwritten: both write the channel's next number. A withdrawal holds for one conversion
in one channel until it is reinstated there by hand; a repeat of its request does not undo it.
``withdraw_everywhere`` writes one in each channel that points to the conversion, names' too.
Called by ``tracefleet withdraw``, ``reinstate`` and ``validate --current --withdraw``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tasks.errors import PublishConflictError, RequestError
from tasks.publish.claim import claim_conversion
from tasks.publish.find import check_publishable
from tasks.publish.guard import require_confirmed
from tracefleet.channel import (
    LONGEST_REASON,
    Published,
    append,
    check_reason,
    find_variants,
    read_current,
    read_entry,
)
from tracefleet.channel_numbers import list_between
from tracefleet.errors import ManifestError, StoreError, StoreUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.names import is_name
from tracefleet.published import Selection, load_manifest, resolve
from tracefleet.store import ReadableStore, Store


class Withdrawal(NamedTuple):
    """A number of a channel that withdraws a conversion, and why."""

    number: int
    reason: str


def find_withdrawal(store: ReadableStore, folder: str, number: int, key: str) -> Withdrawal | None:
    """Return how a conversion was withdrawn from a channel; None: it was not, or is reinstated.

    Args:
        store: Store of the channel.
        folder: Folder of the channel.
        number: Current number of the channel.
        key: Conversion key.
    """
    for earlier in list_between(store, folder, 0, number):
        entry = read_entry(store, folder, earlier)
        if entry.key == key:
            return Withdrawal(earlier, entry.withdrawn) if entry.withdrawn else None
    return None


def withdraw(store: Store, selection: Selection, reason: str) -> Withdrawal:
    """Withdraw what a channel points to; do nothing if it is withdrawn already.

    Args:
        store: Store of the channel.
        selection: Current conversion of the channel; its files may be damaged.
        reason: One line for those whose reader refuses it.

    Returns:
        The number that withdraws it, and the reason that stands there.

    Raises:
        RequestError: The reason can't be written.
        PublishConflictError: Another writer moved the channel meanwhile.
    """
    published, entry = selection.published, selection.entry
    if entry.withdrawn is not None:
        return Withdrawal(published.number, entry.withdrawn)
    try:
        check_reason(reason)
    except ValueError as error:
        raise RequestError(str(error)) from None
    following = append(
        store,
        published.folder,
        after=published.number,
        manifest_digest=entry.manifest,
        key=entry.key,
        previous=entry.previous,
        withdrawn=reason,
        source=entry.source,
    )
    if following is None:
        # A try whose response got lost, or somebody else with the same finding.
        newest = read_current(store, published.folder)
        if newest and newest[1].key == entry.key and newest[1].withdrawn is not None:
            return Withdrawal(newest[0], newest[1].withdrawn)
    return Withdrawal(check_moved(published, following, "withdrawn"), reason)


def withdraw_everywhere(
    store: Store, selection: Selection, reason: str
) -> dict[Published, Withdrawal]:
    """Withdraw what a channel points to from it, and from each other one that points to it.

    Those are the other channels of its source, and those of names. A run that dies or loses a race
    on the way is completed by a repeat.

    Returns:
        The withdrawals by channel, that of the selection first.

    Raises:
        StoreError: a channel could not be written, a guarded one for example; it is withdrawn from
            all others.
    """
    done: dict[Published, Withdrawal] = {}
    failures: list[str] = []
    for one in (selection, *find_same(store, selection)):
        try:
            done[one.published] = withdraw(store, one, reason)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            failures.append(f"{one.published.folder}: {error}")
    if failures:
        raise StoreError(
            f"{selection.folder}: expected to be withdrawn from every channel, got "
            f"{len(failures)} that still point to it: {'; '.join(failures)}. Withdraw it there "
            "with the rights that they take."
        )
    return done


def find_same(store: ReadableStore, selection: Selection) -> Iterator[Selection]:
    """Yield what other channels point to the same conversion, of its source and of names."""
    names = [slug for slug in store.names("channels") if is_name(slug)]
    for slug in dict.fromkeys([selection.slug, *names]):
        for published in find_variants(store, slug):
            same_log = published.folder == selection.published.folder
            if published.variant == selection.published.variant and not same_log:
                other = resolve(store, published)
                if other.folder == selection.folder:
                    yield other


def fit_reason(text: str) -> str:
    """Return a text as a reason: one line of printable characters, not too long."""
    plain = "".join(map(_make_printable, " ".join(text.split())))
    return plain if len(plain) <= LONGEST_REASON else f"{plain[: LONGEST_REASON - 1]}…"


def _make_printable(sign: str) -> str:
    return sign if sign.isprintable() else "?"


def reinstate(
    store: Store, selection: Selection, *, number: int | None = None, confirmed: bool = False
) -> tuple[Manifest, int]:
    """Make a withdrawn conversion current again, as the channel's next number.

    Args:
        store: Store of the channel.
        selection: Current conversion of the channel.
        number: Number whose conversion is to come back; None: the current one.
        confirmed: Whether a person has said so, as a guarded channel requires.

    Returns:
        The conversion's manifest, and its new number.

    Raises:
        RequestError: There is no such number, its conversion is not withdrawn or not there, or the
            channel is guarded and nobody has confirmed it.
        PublishConflictError: Another writer moved the channel meanwhile.
        ArtifactError: The conversion is damaged, or the store does not answer.
    """
    channel = selection.published.channel
    require_confirmed(store, channel, "reinstate", confirmed=confirmed)
    wanted = selection.number if number is None else number
    earlier = select_number(store, selection, wanted, "reinstate")
    folder, key = earlier.published.folder, earlier.entry.key
    if find_withdrawal(store, folder, selection.number, key) is None:
        raise RequestError(
            f"{folder}: reinstate expected a number whose conversion was withdrawn, got "
            f"{earlier.number}. `tracefleet rollback --number {earlier.number}` brings back "
            "what was not."
        )
    return bring_back(store, selection.published, earlier, "reinstated")


def select_number(store: ReadableStore, selection: Selection, number: int, what: str) -> Selection:
    """Return what a channel pointed to at one of its numbers.

    Raises:
        RequestError: The channel has no such number; ``what`` was to be done with it.
    """
    published = selection.published
    if not 0 < number <= published.number:
        raise RequestError(
            f"{published.folder}: {what} expected a number from 1 to {published.number}, got "
            f"{number}"
        )
    entry = read_entry(store, published.folder, number)
    return Selection(published=published._replace(number=number), entry=entry)


def bring_back(
    store: Store, current: Published, earlier: Selection, what: str
) -> tuple[Manifest, int]:
    """Write an earlier number's conversion as the number that follows the current one.

    Raises:
        RequestError: Its conversion was collected.
        PublishConflictError: Another writer moved the channel meanwhile; nothing was ``what``.
    """
    with claim_conversion(store, earlier.slug, earlier.entry.key):
        manifest = _load(store, earlier)
        check_publishable(manifest.validation)
        # `append` and not `advance`: what lost a race must not undo the other writer.
        following = append(
            store,
            current.folder,
            after=current.number,
            manifest_digest=manifest.digest,
            key=manifest.key,
            previous=earlier.entry.previous,
            source=earlier.entry.source,
        )
    return manifest, check_moved(current, following, what)


def check_moved(current: Published, following: int | None, what: str) -> int:
    """Return the number that was written.

    Raises:
        PublishConflictError: It was not, because another writer took it.
    """
    if following is None:
        raise PublishConflictError(
            f"{current.folder}: expected number {current.number} to be current still, but "
            f"another writer published meanwhile. Nothing was {what}; look at the channel "
            "(`tracefleet show`) and run again if it is still wanted."
        )
    return following


def _load(store: ReadableStore, selection: Selection) -> Manifest:
    try:
        return load_manifest(store, selection, allow_withdrawn=True)
    except ManifestError as error:
        raise RequestError(
            f"{selection.published.folder}: number {selection.number} can't come back: {error}"
        ) from error
