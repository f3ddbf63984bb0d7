"""Find what is published: channels by name, source or alias, and what they point to.

Nothing is checked yet; ``tracefleet.published`` does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracefleet.channel import (
    ChannelEntry,
    Published,
    entry_path,
    find_variants,
    parse_label,
    read_entry,
    source_slug,
)
from tracefleet.errors import NoSuchVariantError
from tracefleet.manifest import MANIFEST
from tracefleet.manifest_types import FileEntry
from tracefleet.names import find_alias, is_name, slugs_of
from tracefleet.store import ReadableStore

#: How many of a store's sources an error lists.
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The current conversion of one channel, not checked yet.

    Attributes:
        published: the source's slug or the name, the variant's label, the channel and its newest
            number.
        entry: entry at that number.
    """

    published: Published
    entry: ChannelEntry

    @property
    def number(self) -> int:
        """The channel's current number."""
        return self.published.number

    @property
    def slug(self) -> str:
        """Slug of the conversion's source, which a name's entry states."""
        source = self.entry.source
        return self.published.slug if source is None else source_slug(source)

    @property
    def name(self) -> str | None:
        """The name that it was selected by; None: by its source."""
        return None if self.entry.source is None else self.published.slug

    @property
    def folder(self) -> str:
        """The conversion's folder in the store."""
        return f"conversions/{self.slug}/{self.entry.key}"

    @property
    def manifest_path(self) -> str:
        """The manifest's path in the store, if the conversion was validated."""
        return f"{self.folder}/{MANIFEST}"

    def path_of(self, file: FileEntry) -> str:
        """Return a file's path in the store."""
        return f"{self.folder}/{file.path}"


def find(
    store: ReadableStore,
    source: str | Path | None = None,
    *,
    task: str | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    channel: str | None = None,
    after: str = "",
) -> Iterator[Published]:
    """Yield every published channel that fits the arguments; None fits everything.

    The store is listed lazily, a thousand channels at a time; ``after`` is a `Published.folder`.
    Of what ``source`` may stand for (a name, then a source in its spellings, then an alias), the
    first with a fitting channel is used.
    """
    wanted = {"task": task, "backend": backend, "dtype": dtype, "batch": batch}
    for slug in _find_slugs(store, source, after):
        found = find_variants(store, slug, after=after)
        fitting = (one for one in found if _fits(one, channel, wanted))
        first = next(fitting, None)
        if first is not None:
            yield first
            yield from fitting
            return


def _find_slugs(
    store: ReadableStore, source: str | Path | None, after: str
) -> Iterator[str | None]:
    if source is None:
        yield None
        return
    slugs = slugs_of(source)
    # A page continues with the spelling of the page before it.
    yield from [slug for slug in slugs if after.startswith(f"channels/{slug}/")] or slugs
    alias = find_alias(store, source)
    if alias is not None:
        yield source_slug(alias)


def _fits(published: Published, channel: str | None, wanted: dict[str, Any]) -> bool:
    if channel not in (None, published.channel):
        return False
    variant = parse_label(published.variant)
    return all(value in (None, getattr(variant, name)) for name, value in wanted.items())


def resolve(store: ReadableStore, published: Published) -> Selection:
    """Return the selection that a channel's newest number points to.

    Raises:
        ManifestError: the channel's entry is malformed.
    """
    entry = read_entry(store, published.folder, published.number)
    if entry.withdrawn is not None:
        # Without a network too the conversion must not be opened any more from here on.
        store.cache_selection({entry_path(published.folder, published.number): entry.to_bytes()})
    return Selection(published=published, entry=entry)


def find_only_source(store: ReadableStore, **wanted: Any) -> str:
    """Return the slug of the one source whose conversions fit the arguments of `find`.

    A copy of a single channel may hold a name alone; then it is that name.

    Raises:
        NoSuchVariantError: there are several, or none; the message lists them.
    """
    names: dict[str, dict[str, None]] = {}
    for published in find(store, **wanted):
        # A name is another address of a source, which has a slug of its own in most stores.
        own = not is_name(published.slug)
        slug = published.slug if own else resolve(store, published).slug
        names.setdefault(slug, {})
        names[slug][published.slug] = None
        if len(names) > _SHOWN:
            break
    slugs = list(names)
    if len(slugs) == 1 and slugs[0] not in names[slugs[0]]:
        slugs = list(names[slugs[0]])
    if len(slugs) == 1:
        return slugs[0]
    filters = ", ".join(f"{name}={value}" for name, value in wanted.items() if value is not None)
    if not slugs:
        raise NoSuchVariantError(
            f"{store.url}: nothing that fits is published ({filters or 'no filters'}). See "
            "`tracefleet list`."
        )
    shown = [*slugs[:_SHOWN], "…"] if len(slugs) > _SHOWN else slugs
    raise NoSuchVariantError(
        f"{store.url}: expected a name or a source, since conversions of several are published for "
        f"{filters or 'any task'}: {', '.join(shown)}. Give one of them."
    )
