"""List the published conversions in the message for a selection that fits none or several.

Called by ``tracefleet.published.select``.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from tracefleet.channel import Published, find_variants, parse_label
from tracefleet.names import slugs_of
from tracefleet.source import spellings
from tracefleet.store import ReadableStore

#: How many of a store's sources an error lists.
_CHOICES_SHOWN = 20


def list_choices(
    store: ReadableStore, source: str | Path, fitting: list[Published], filters: str
) -> str:
    """Return the message for a selection that fits none or several.

    Args:
        store: store that was searched.
        source: name or slug that was searched for.
        fitting: channels that fit.
        filters: the selection's other arguments, as text.
    """
    if len(fitting) > 1:
        labels = ", ".join(one.variant for one in fitting)
        return (
            f"{source}: expected one variant for {filters}, got {len(fitting)}: {labels}. "
            f"Add {' or '.join(find_differences(fitting))}."
        )
    slugs = slugs_of(source)
    found = itertools.chain.from_iterable(find_variants(store, slug) for slug in slugs)
    labels = ", ".join(f"{one.variant} (channel {one.channel})" for one in found)
    if labels:
        return f"{source}: nothing published for {filters}; {store.url} holds {labels}."
    return (
        f"{source}: no conversion is published in {store.url} ({_explain_reading(source)}; looked "
        f"for {', '.join(slugs)}); it holds {_list_some_slugs(store)}. Convert the source first, "
        "or give one of those."
    )


def find_differences(fitting: list[Published]) -> list[str]:
    """Return the arguments of a selection in which channels differ."""
    variants = [parse_label(one.variant) for one in fitting]
    names = []
    for name in ("task", "backend", "dtype", "batch"):
        values = {getattr(variant, name) for variant in variants}
        if len(values) > 1:
            names.append(name)
    return names


def _list_some_slugs(store: ReadableStore) -> str:
    # One more than is shown: a store may have a hundred thousand channels.
    some = list(itertools.islice(find_variants(store), _CHOICES_SHOWN + 1))
    if not some:
        return "nothing at all"
    slugs = sorted({one.slug for one in some[:_CHOICES_SHOWN]})
    if len(some) > _CHOICES_SHOWN:
        slugs.append("…")
    return ", ".join(slugs)


def _explain_reading(source: str | Path) -> str:
    return f"read as {' or '.join(spellings(source)[:2])}"
