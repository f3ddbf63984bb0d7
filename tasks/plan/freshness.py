"""Decide whether a channel points to what a request asks for; used by ``tasks.plan.fleet``.

Equal keys take one small read. Otherwise the current conversion's manifest shows which part of the
key differs: commit, toolchain, lengths, recipe or options; there is no other part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.plan.concurrently import map_concurrently
from tasks.publish.find import CANDIDATE_CHANNEL, find_candidate, find_published
from tasks.publish.identity import RECIPE, Identity
from tasks.publish.point import find_rolled_back_number
from tasks.publish.withdraw import find_withdrawal
from tracefleet.channel import (
    Published,
    channel_folder,
    find_variants,
    read_current,
    read_entry,
    source_slug,
)
from tracefleet.errors import ManifestError, WithdrawnError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import JIT, Toolchain
from tracefleet.published import Selection, load_manifest
from tracefleet.store import ReadableStore

State = Literal["fresh", "stale", "missing", "invalid", "refused"]

#: Of what is published, when somebody else moved its channel: nothing has to be converted.
MOVED_AWAY = "published, but the channel points to another conversion"
#: From this number of sources on, the whole store is listed before single sources are.
_MANY = 20
#: That listing ends after this many channels a source: the store holds mostly other sources.
_CHANNELS_A_SOURCE = 10


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """State of a channel; the attributes are those of ``tasks.plan.fleet.PlanRow``."""

    state: State
    why: tuple[str, ...] = ()
    key: str | None
    number: int | None = None


def channel_of(wanted: Identity, channel: str) -> str:
    """Return the folder of the channel that should point to a conversion."""
    return channel_folder(wanted.source, wanted.variant, channel)


def newest_numbers(store: ReadableStore, sources: Iterable[str]) -> dict[str, int]:
    """Return the newest number of every channel of these sources, by the channel's folder.

    Raises:
        StoreError: the store can't be listed.
    """
    slugs = sorted({source_slug(source) for source in sources})
    found: dict[str, int] = {}
    left = slugs
    if len(slugs) >= _MANY:
        found, left = _list_whole(store, slugs)
    listings = map_concurrently(
        left,
        lambda slug: _map_numbers(find_variants(store, slug)),
        url=lambda _: store.url,
        what="sources listed",
    )
    for _, numbers in listings:
        found |= numbers
    return found


def _list_whole(store: ReadableStore, slugs: list[str]) -> tuple[dict[str, int], list[str]]:
    """Return what a bounded listing of all sources holds, and the slugs that it did not reach."""
    limit = _CHANNELS_A_SOURCE * len(slugs)
    channels = list(itertools.islice(find_variants(store), limit))
    if len(channels) < limit:
        return _map_numbers(channels), []
    # Paths are sorted with the slash behind a slug. The last slug may have more channels.
    last = f"{channels[-1].slug}/"
    return _map_numbers(channels), [slug for slug in slugs if f"{slug}/" >= last]


def _map_numbers(channels: Iterable[Published]) -> dict[str, int]:
    return {one.folder: one.number for one in channels}


def judge_name(store: ReadableStore, wanted: Identity, found: Judgement, folder: str) -> Judgement:
    """Return the judgement of a request whose conversion is fresh, and has a name as well.

    Args:
        store: Store of the channels.
        wanted: Identity that they should point to.
        found: Judgement of the source's channel.
        folder: Folder of the name's channel.

    Raises:
        ManifestError: the newest entry is malformed.
    """
    name, newest = folder.split("/")[1], read_current(store, folder)
    if newest is None:
        return dataclasses.replace(found, state="stale", why=(f"name {name} is new", *found.why))
    number, entry = newest
    if (entry.key, entry.source) == (found.key, wanted.source) or found.key is None:
        return found
    # A run leaves a name that an operator moved, as it leaves the source's own channel.
    rolled_back = find_rolled_back_number(store, folder, number, entry, found.key)
    if rolled_back or find_withdrawal(store, folder, number, found.key):
        return found
    why = f"name {name} points to another conversion, of {entry.source}"
    return dataclasses.replace(found, state="stale", why=(why, *found.why))


def judge(store: ReadableStore, wanted: Identity, channel: str, number: int | None) -> Judgement:
    """Return whether a channel points to the wanted conversion, and if not why not.

    Args:
        store: Store of the channel.
        wanted: Identity that the channel should point to.
        channel: Folder of the channel.
        number: Newest number of the channel; None: nothing is published in it.

    Raises:
        ArtifactError: the channel's entry or a manifest is damaged, or the store does not answer.
        WithdrawnError: the channel's conversion was withdrawn, and a run would leave it so.
        NumericsMismatchError: a conversion is published that was not validated.
    """
    key = wanted.key if wanted.toolchain else None
    if number is None:
        why = ("never published", *_note_candidate(store, wanted))
        return Judgement(state="missing", why=why, key=key)
    entry = read_entry(store, channel, number)
    _, slug, label, name = channel.split("/")
    published = Published(slug, label, name, number)
    selection = Selection(published=published, entry=entry)
    if entry.key == key:
        return _settle(selection, key)
    return _compare(store, wanted, selection)


def _note_candidate(store: ReadableStore, wanted: Identity) -> tuple[str, ...]:
    """Return a note if a candidate of the same commit and lengths waits for a device."""
    if wanted.variant.backend == JIT:
        return ()
    newest = read_current(store, channel_of(wanted, CANDIDATE_CHANNEL))
    if newest is None or newest[1].withdrawn is not None:
        return ()
    found = find_candidate(store, wanted.source, newest[1].key)
    if found is None or (found.commit, found.lengths) != (wanted.commit, wanted.lengths):
        return ()
    return ("compiled into channel candidate, waits for a device",)


def _settle(current: Selection, key: str | None, why: tuple[str, ...] = ()) -> Judgement:
    """Return the judgement that a run would leave the channel as it is.

    Raises:
        WithdrawnError: readers refuse what it points to.
    """
    reason = current.entry.withdrawn
    if reason is not None:
        raise WithdrawnError(
            f"{current.published.folder}: expected a conversion that readers open, got number "
            f"{current.number}, which withdraws {current.entry.key[:12]}: {reason}. A run leaves "
            "it so: convert with other versions or lengths, roll the channel back, or `python -m "
            "flows reinstate`.",
            reason=reason,
        )
    return Judgement(state="fresh", why=why, key=key, number=current.number)


def _compare(store: ReadableStore, wanted: Identity, published: Selection) -> Judgement:
    """Compare the current conversion's manifest with the wanted identity."""
    manifest = _load_checked_manifest(store, published)
    # Only workers of the backend know their toolchain: assume the one of their last conversion.
    toolchain = wanted.toolchain or manifest.toolchain
    key = dataclasses.replace(wanted, toolchain=toolchain).key
    number, log = published.number, published.published.folder
    notes = () if wanted.toolchain else (describe_unchecked(wanted.variant.backend),)
    if key == manifest.key:
        return _settle(published, key, notes)
    rolled_back = find_rolled_back_number(store, log, number, published.entry, key)
    if rolled_back:
        return _settle(published, key, (f"rolled back from number {rolled_back}", *notes))
    why = (*_find_differences(manifest, wanted, toolchain), *notes)
    if find_published(store, wanted.source, key) is not None:
        # A run would leave it withdrawn: nothing is to be done either.
        withdrawal = find_withdrawal(store, log, number, key)
        if withdrawal is not None:
            reason = f"withdrawn by number {withdrawal.number}: {withdrawal.reason}"
            return _settle(published, key, (reason, *notes))
        why = (MOVED_AWAY, *why)
    # A worker with another toolchain will publish under another key.
    known = key if wanted.toolchain else None
    return Judgement(state="stale", why=why, key=known, number=number)


def describe_unchecked(backend: str) -> str:
    """Say that the toolchain was taken for that of the last run of a backend's workers."""
    return f"toolchain not checked: no {backend} here"


def _load_checked_manifest(store: ReadableStore, published: Selection) -> Manifest:
    manifest = load_manifest(store, published, allow_withdrawn=True)
    key = Identity.of(manifest).key
    if key != manifest.key:
        raise ManifestError(
            f"{store.url}/{published.manifest_path}: key expected {manifest.key}, but its contents "
            f"give {key}. It was not written by tracefleet; convert the checkpoint again."
        )
    return manifest


def _find_differences(manifest: Manifest, wanted: Identity, toolchain: Toolchain) -> Iterator[str]:
    """Yield the parts of the key that differ: at least one if the keys do."""
    if manifest.commit != wanted.commit:
        yield "new commit"
    old, new = dataclasses.asdict(manifest.toolchain), dataclasses.asdict(toolchain)
    if old != new:
        yield f"new toolchain: {_describe_changes(old, new)}"
    if manifest.lengths != wanted.lengths:
        before, after = _format_lengths(manifest.lengths), _format_lengths(wanted.lengths)
        yield f"new lengths: {before} -> {after}"
    if manifest.recipe != RECIPE:
        yield f"new recipe: {manifest.recipe} -> {RECIPE}"
    if manifest.options != wanted.options:
        yield f"new options: {_describe_changes(manifest.options, wanted.options)}"


def _describe_changes(old: Mapping[str, str | None], new: Mapping[str, str | None]) -> str:
    changes = []
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            changes.append(f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}")
    return ", ".join(changes)


def _format_lengths(lengths: tuple[int, ...]) -> str:
    return ",".join(str(length) for length in lengths)
