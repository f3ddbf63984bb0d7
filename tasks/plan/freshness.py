"""Is what a channel points to still what is wanted? Used by ``tasks.plan.fleet``.

Equal keys settle it with one small read. Otherwise the current conversion's manifest says which
part of the key differs: commit, toolchain, lengths, recipe or options; there is no other part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.plan.concurrently import map_concurrently
from tasks.publish.conversion import find_rolled_back_number
from tasks.publish.find import CANDIDATE_CHANNEL, find_candidate, find_published
from tasks.publish.identity import RECIPE, Identity
from tracefleet.channel import (
    Published,
    channel_folder,
    current,
    find_variants,
    read_entry,
    source_slug,
)
from tracefleet.errors import ManifestError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import JIT, Toolchain
from tracefleet.published import Selection, load_manifest
from tracefleet.store import ReadableStore

State = Literal["fresh", "stale", "missing", "invalid"]

#: From so many sources on, a listing of the whole store is tried before one of each source.
_MANY = 20
#: It is given up after so many channels for each of them: then the store is mostly others'.
_CHANNELS_A_SOURCE = 10


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """State of a channel; the attributes are those of ``tasks.plan.fleet.PlanRow``."""

    state: State
    why: tuple[str, ...] = ()
    key: str | None
    number: int | None = None


def channel_of(wanted: Identity, channel: str) -> str:
    """Return the folder of the channel that shall point to a conversion."""
    return channel_folder(wanted.source, wanted.variant, channel)


def newest_numbers(store: ReadableStore, sources: Iterable[str]) -> dict[str, int]:
    """Return the newest number of every channel of these sources, by the channel's folder.

    Raises:
        StoreError: the store can't be listed.
    """
    slugs = sorted({source_slug(source) for source in sources})
    found, left = _list_whole(store, slugs) if len(slugs) >= _MANY else ({}, slugs)
    listings = map_concurrently(
        left,
        lambda slug: _numbers(find_variants(store, slug)),
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
        return _numbers(channels), []
    # In the order of paths a slug ends with a slash; the last one may have more channels.
    last = f"{channels[-1].slug}/"
    return _numbers(channels), [slug for slug in slugs if f"{slug}/" >= last]


def _numbers(channels: Iterable[Published]) -> dict[str, int]:
    return {one.folder: one.number for one in channels}


def judge(store: ReadableStore, wanted: Identity, channel: str, number: int | None) -> Judgement:
    """Return whether a channel points to what is wanted, and if not why not.

    Args:
        store: ReadableStore of the channel.
        wanted: What the channel should point to.
        channel: Folder of the channel.
        number: The channel's newest number; None: nothing is published in it.

    Raises:
        ArtifactError: the channel's entry or a manifest is damaged, or the store does not answer.
        NumericsMismatchError: a conversion is published that was not validated.
    """
    key = wanted.key if wanted.toolchain else None
    if number is None:
        return Judgement(state="missing", why=("never published", *_waits(store, wanted)), key=key)
    entry = read_entry(store, channel, number)
    if entry.key == key:
        return Judgement(state="fresh", key=key, number=number)
    _, slug, label, name = channel.split("/")
    published = Published(slug, label, name, number)
    return _compare(store, wanted, Selection(published=published, entry=entry))


def _waits(store: ReadableStore, wanted: Identity) -> tuple[str, ...]:
    """Say if a candidate of the same commit and lengths waits for a device to validate it."""
    if wanted.variant.backend == JIT:
        return ()
    newest = current(store, channel_of(wanted, CANDIDATE_CHANNEL))
    found = find_candidate(store, wanted.source, newest[1].key) if newest else None
    if found is None or (found.commit, found.lengths) != (wanted.commit, wanted.lengths):
        return ()
    return ("compiled into channel candidate, waits for a device",)


def _compare(store: ReadableStore, wanted: Identity, published: Selection) -> Judgement:
    """Ask the current conversion's manifest what differs."""
    manifest = _checked_manifest(store, published)
    toolchain = wanted.toolchain or manifest.toolchain
    key = dataclasses.replace(wanted, toolchain=toolchain).key
    number, log = published.number, published.published.folder
    # Workers of the backend know their own toolchain: here that of their last work has to do.
    blind = f"toolchain not checked: no {wanted.variant.backend} here"
    notes = () if wanted.toolchain else (blind,)
    if key == manifest.key:
        return Judgement(state="fresh", why=notes, key=key, number=number)
    if withdrawn := find_rolled_back_number(store, log, number, published.entry, key):
        why = (f"rolled back from number {withdrawn}", *notes)
        return Judgement(state="fresh", why=why, key=key, number=number)
    why = (*_differences(manifest, wanted, toolchain), *notes)
    if find_published(store, wanted.source, key) is not None:
        why = ("published, but the channel points to another conversion", *why)
    # A worker with another toolchain will publish under another key.
    known = key if wanted.toolchain else None
    return Judgement(state="stale", why=why, key=known, number=number)


def _checked_manifest(store: ReadableStore, published: Selection) -> Manifest:
    manifest = load_manifest(store, published)
    if (key := Identity.of(manifest).key) != manifest.key:
        raise ManifestError(
            f"{store.url}/{published.manifest_path}: key expected {manifest.key}, but its contents "
            f"give {key}. It was not written by tracefleet; convert the checkpoint again."
        )
    return manifest


def _differences(manifest: Manifest, wanted: Identity, toolchain: Toolchain) -> Iterator[str]:
    """Yield what a key is made of and differs; equal keys have none, others at least one."""
    if manifest.commit != wanted.commit:
        yield "new commit"
    if changes := _changes(dataclasses.asdict(manifest.toolchain), dataclasses.asdict(toolchain)):
        yield f"new toolchain: {changes}"
    if manifest.lengths != wanted.lengths:
        yield f"new lengths: {_listed(manifest.lengths)} -> {_listed(wanted.lengths)}"
    if manifest.recipe != RECIPE:
        yield f"new recipe: {manifest.recipe} -> {RECIPE}"
    if changes := _changes(manifest.options, wanted.options):
        yield f"new options: {changes}"


def _changes(old: Mapping[str, str | None], new: Mapping[str, str | None]) -> str:
    names = sorted({name for name in (*old, *new) if old.get(name) != new.get(name)})
    return ", ".join(f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in names)


def _listed(lengths: tuple[int, ...]) -> str:
    return ",".join(str(length) for length in lengths)
