"""Point channels to a published conversion: its source's first, then that of a name, if it has one.

A name is another address of a conversion: the same channel under a slug of its own, whose entries
say the source. A crash between the two channels is completed by a repeat of the request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from tasks.publish.claim import claim_conversion
from tasks.publish.find import find_candidate, find_manifest
from tasks.publish.guard import refuse_publishing
from tasks.publish.withdraw import Withdrawal, find_withdrawal
from tracefleet.channel import (
    ChannelEntry,
    append,
    channel_folder,
    conversion_folder,
    read_current,
    read_entry,
    slug_folder,
    source_slug,
)
from tracefleet.channel_numbers import MOST_LOST, list_between, refuse_races
from tracefleet.errors import DigestMismatchError, StoreUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.names import check_name
from tracefleet.store import ReadableStore, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a channel stands towards a conversion.

    Attributes:
        number: Current number of the channel's log.
        rolled_back_number: Set if the channel was rolled back from the conversion, and so points
            to another one: the highest number that holds it.
        withdrawal: Set if the conversion was withdrawn from the channel, and left so.
        moved_from: Other source whose conversion a name stood for until this run moved it.
    """

    number: int
    rolled_back_number: int | None = None
    withdrawal: Withdrawal | None = None
    moved_from: str | None = None

    @property
    def points(self) -> bool:
        """Whether readers of the channel get the conversion."""
        return self.rolled_back_number is None and self.withdrawal is None


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Address of a published conversion.

    Attributes:
        url: URL of the conversion's folder.
        manifest_digest: sha256 of the manifest's bytes.
        channel: Channel that points to the conversion.
        number: Current number of the channel's log.
        rolled_back_number: As in `Standing`.
        withdrawal: Set if the conversion was withdrawn from the channel, and left so.
        name: Name that it was to be published under; None: none.
        named: Where the name's channel stands; None: it was left, as the source's is no longer at
            this conversion.
    """

    url: str
    manifest_digest: str
    channel: str
    number: int
    rolled_back_number: int | None = None
    withdrawal: Withdrawal | None = None
    name: str | None = None
    named: Standing | None = None

    @property
    def address(self) -> str | None:
        """Name that readers open the conversion by; None: they open it by its source."""
        return self.name if self.named is not None and self.named.points else None


@dataclass(frozen=True, kw_only=True)
class _Log:
    """A channel: its folder, and the source that its entries state if it is a name's."""

    folder: str
    source: str | None = None


def point_channel(
    store: Store, manifest: Manifest, *, channel: str, name: str | None = None
) -> Publication:
    """Make a channel point to a published conversion, and that of a name; else write nothing.

    A conversion that was rolled back or withdrawn stays so: a repeat of a request is no decision.

    Raises:
        DigestMismatchError: the channel names another manifest for this key: one was edited.
        RequestError: the channel is guarded, and would have to move.
        StoreUnavailableError: the conversion is being collected, or was a moment ago.
    """
    logs = _list_logs(manifest, channel, name)
    standings = _find_standings(store, logs, manifest)
    if standings is None:
        refuse_publishing(store, channel)
        with claim_conversion(store, source_slug(manifest.source), manifest.key):
            _check_there(store, manifest)
            standings = _move_all(store, logs, manifest, repeat=True)
    return _describe(store, manifest, channel, name, standings)


def move_channels(
    store: Store, manifest: Manifest, channel: str, name: str | None = None
) -> Publication:
    """Write the next numbers of the channels of a conversion that the caller has claimed.

    Raises:
        RequestError: the channel is guarded.
    """
    refuse_publishing(store, channel)
    logs = _list_logs(manifest, channel, name)
    standings = _move_all(store, logs, manifest, repeat=False)
    return _describe(store, manifest, channel, name, standings)


def _check_there(store: ReadableStore, manifest: Manifest) -> None:
    # Only when it is claimed is it safe from the collector: it may have gone since it was found.
    if find_manifest(store, manifest.source, manifest.key, manifest.file_name) is None:
        raise StoreUnavailableError(
            f"{store.url}/{conversion_folder(manifest.source, manifest.key)}: expected the "
            "conversion that was found a moment ago, but gc has collected it. Run again."
        )


def _describe(
    store: ReadableStore,
    manifest: Manifest,
    channel: str,
    name: str | None,
    standings: list[Standing],
) -> Publication:
    own, *named = standings
    return Publication(
        url=f"{store.url}/{conversion_folder(manifest.source, manifest.key)}",
        manifest_digest=manifest.digest,
        channel=channel,
        number=own.number,
        rolled_back_number=own.rolled_back_number,
        withdrawal=own.withdrawal,
        name=name,
        named=named[0] if named else None,
    )


def _list_logs(manifest: Manifest, channel: str, name: str | None) -> list[_Log]:
    logs = [_Log(folder=channel_folder(manifest.source, manifest.variant, channel))]
    if name is not None:
        folder = slug_folder(check_name(name), manifest.variant.label, channel)
        logs.append(_Log(folder=folder, source=manifest.source))
    return logs


def _find_standings(
    store: ReadableStore, logs: list[_Log], manifest: Manifest
) -> list[Standing] | None:
    """Return where channels stand that are to be left as they are; None: one is to be moved."""
    found: list[Standing] = []
    for log in logs:
        newest = read_current(store, log.folder)
        standing = newest and _find_standing(store, log, manifest, newest, repeat=True)
        if not standing:
            return None
        found.append(standing)
        if not standing.points:
            break
    return found


def _find_standing(
    store: ReadableStore,
    log: _Log,
    manifest: Manifest,
    newest: tuple[int, ChannelEntry],
    *,
    repeat: bool,
) -> Standing | None:
    """Return where a channel stands that is to be left as it is; None: it is to be moved."""
    number, entry = newest
    if _points_to(store, log, entry, manifest):
        withdrawal = Withdrawal(number, entry.withdrawn) if entry.withdrawn else None
        return _leave(log, manifest, Standing(number=number, withdrawal=withdrawal))
    withdrawal = find_withdrawal(store, log.folder, number, manifest.key) if repeat else None
    if withdrawal is not None:
        return _leave(log, manifest, Standing(number=number, withdrawal=withdrawal))
    passed = find_rolled_back_number(store, log.folder, number, entry, manifest.key)
    if passed is not None:
        return _leave(log, manifest, Standing(number=number, rolled_back_number=passed))
    return None


def _move_all(
    store: Store, logs: list[_Log], manifest: Manifest, *, repeat: bool
) -> list[Standing]:
    """Move channel after channel, up to one that is left at another conversion."""
    # What was rolled back or withdrawn must not come back by a name that is new.
    moved: list[Standing] = []
    for log in logs:
        moved.append(_move(store, log, manifest, repeat=repeat))
        if not moved[-1].points:
            break
    return moved


def _leave(log: _Log, manifest: Manifest, standing: Standing) -> Standing:
    if not standing.points:
        did = "withdrawn" if standing.withdrawal else "rolled back"
        logger.warning("%s was %s from %s: left so", manifest.key[:12], did, log.folder)
    return standing


def _move(store: Store, log: _Log, manifest: Manifest, *, repeat: bool) -> Standing:
    """Write the channel's next number; decide again if another writer took it."""
    for _ in range(MOST_LOST):
        newest = read_current(store, log.folder)
        if newest is not None:
            standing = _find_standing(store, log, manifest, newest, repeat=repeat)
            if standing is not None:
                return standing
        number = newest[0] if newest else None
        following = append(
            store,
            log.folder,
            after=number,
            manifest_digest=manifest.digest,
            key=manifest.key,
            previous=number,
            source=log.source,
        )
        if following is not None:
            return _note_source(log, newest, Standing(number=following))
    raise refuse_races(log.folder)


def _note_source(
    log: _Log, before: tuple[int, ChannelEntry] | None, standing: Standing
) -> Standing:
    """Add the other source that a name stood for, if it did."""
    if before is None or before[1].source == log.source:
        return standing
    logger.warning("%s stood for %s until now", log.folder, before[1].source)
    return replace(standing, moved_from=before[1].source)


def _points_to(store: ReadableStore, log: _Log, entry: ChannelEntry, manifest: Manifest) -> bool:
    """Return whether a channel's entry names this conversion, and not its candidate.

    Raises:
        DigestMismatchError: the entry has the key and the manifest of neither.
    """
    # Two sources with the same files have the same key.
    if entry.key != manifest.key or entry.source != log.source:
        return False
    if entry.manifest == manifest.digest:
        return True
    # A candidate has the key of the conversion that it becomes, and a manifest of its own.
    candidate = find_candidate(store, manifest.source, manifest.key)
    if candidate is not None and candidate.digest == entry.manifest:
        return False
    path = f"{conversion_folder(manifest.source, manifest.key)}/{manifest.file_name}"
    raise DigestMismatchError(path, expected=entry.manifest, got=manifest.digest)


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
    for passed in list_between(store, log, newest.previous or 0, number - 1):
        if read_entry(store, log, passed).key == key:
            return passed
    return None
