"""What lists and patterns make of one entry of a fleet file: drafts of its requests, by names.

``tasks.fleet.entries`` checks the drafts.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import RequestError
from tasks.fetch.checkpoint import normalise_source
from tasks.request.mistakes import Mistake, shorten

#: Fields that may be a list of values; so may ``lengths``, whose value is a list already.
LISTED = ("source", "revision", "task", "backend", "dtype", "batch")
VARYING = (*LISTED, "lengths")

#: Returns the sources that match a pattern; None: it is no pattern.
Finder = Callable[[str], list[str] | None]
#: A field, one of its values, and how a request's name has it.
_Choice = tuple[str, Any, str]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One request of an entry, not checked yet.

    Attributes:
        name: Name of the entry, with the values that make the request one of several.
        fields: Fields of the request.
    """

    name: str
    fields: dict[str, Any]


@dataclass(kw_only=True)
class Expansion:
    """What an entry's lists and patterns make of it.

    Attributes:
        drafts: Its requests, not checked yet.
        wrong: Mistakes in its lists, but for the following.
        repeated: Values that stand twice in a list.
        unlisted: Sources that are none, or patterns that could not be looked up, and why.
    """

    drafts: list[Draft] = field(default_factory=list)
    wrong: list[Mistake] = field(default_factory=list)
    repeated: list[Mistake] = field(default_factory=list)
    unlisted: dict[str, Exception] = field(default_factory=dict)

    @property
    def mistakes(self) -> list[Mistake]:
        """Return every mistake; what the network does is none."""
        found = [*self.wrong, *self.repeated]
        for source, error in self.unlisted.items():
            if isinstance(error, RequestError):
                message = str(error).removeprefix("source: ").removeprefix(f"{source}: ")
                found.append(Mistake("source", message))
        return found


def expand(entry: str, fields: Mapping[str, Any], find: Finder) -> Expansion:
    """Return an entry's drafts, and the mistakes in its lists.

    A wrong value in a list is left out, and so is a field without any right one: all others can
    still be checked.

    Args:
        entry: Name of the entry.
        fields: Its fields over the defaults.
        find: Looks up patterns over sources.
    """
    fields, found = dict(fields), Expansion()
    choices: list[list[_Choice]] = []
    for name in VARYING:
        before = len(found.mistakes) + len(found.unlisted)
        values = _list_values(name, fields.get(name), find, found)
        if not values and len(found.mistakes) + len(found.unlisted) > before:
            del fields[name]
        elif values is not None:
            choices.append(_label_values(name, values))
    found.drafts = [_make_draft(entry, fields, one) for one in itertools.product(*choices)]
    return found


def _make_draft(entry: str, fields: Mapping[str, Any], chosen: Sequence[_Choice]) -> Draft:
    own = {**fields, **{name: value for name, value, _ in chosen}}
    channel = own.get("channel")
    if isinstance(channel, str):
        own["channel"] = _fill_channel(channel, own)
    if not chosen:
        return Draft(name=entry, fields=own)
    labels = " ".join(label for _, _, label in chosen)
    return Draft(name=f"{entry}/{labels}", fields=own)


def _fill_channel(channel: str, fields: Mapping[str, Any]) -> str:
    """Put the request's own values for ``{lengths}`` and ``{revision}`` into a channel."""
    # Neither is part of a variant: an entry with several would move one channel several times.
    for name in ("lengths", "revision"):
        if f"{{{name}}}" in channel:
            text = _label(name, fields.get(name)).lower()
            channel = channel.replace(f"{{{name}}}", re.sub("[^a-z0-9]+", "-", text).strip("-"))
    return channel


def _list_values(name: str, value: Any, find: Finder, found: Expansion) -> list[Any] | None:
    """Return the values that a field multiplies its entry by; None: it has a single one."""
    if name == "source":
        return _list_sources(value, find, found)
    listed = isinstance(value, list | tuple)
    if name == "lengths" and listed:
        sets = [isinstance(part, list | tuple) for part in value]
        if any(sets) and not all(sets):
            got = f"got a mixture: {shorten(value)}"
            found.wrong.append(Mistake(name, f"expected whole numbers, or lists of them, {got}"))
            return None
        listed = any(sets)
    return _find_distinct(name, value, found) if listed else None


def _list_sources(value: Any, find: Finder, found: Expansion) -> list[Any] | None:
    several = isinstance(value, list | tuple)
    named: list[str] = []
    listed: list[str] = []
    for source in value if several else [value]:
        try:
            matching = find(source) if isinstance(source, str) else None
            if matching is not None:
                listed += map(normalise_source, matching)
            elif several:
                named.append(_normalise(source))
            else:
                return None
        except Exception as error:
            found.unlisted[source if isinstance(source, str) else shorten(source)] = error
    if named or not value:
        named = _find_distinct("source", named, found)
    # Patterns may overlap each other and the sources that are named: no mistake.
    return list(dict.fromkeys(named + listed))


def _normalise(source: object) -> str:
    if not isinstance(source, str | Path):
        raise RequestError(f"expected text, got {shorten(source)}; write it in quotes")
    return normalise_source(source)


def _find_distinct(name: str, values: Sequence[Any], found: Expansion) -> list[Any]:
    if not values:
        found.wrong.append(Mistake(name, "expected at least one value, got an empty list"))
    distinct: list[Any] = []
    for value in values:  # no set: a value may be a list
        if value in distinct:
            message = f"expected each value once, got {shorten(value)} again"
            found.repeated.append(Mistake(name, message))
        else:
            distinct.append(value)
    return distinct


def _label_values(name: str, values: Sequence[Any]) -> list[_Choice]:
    if name == "source":
        labels = _label_sources([str(value) for value in values])
    else:
        labels = [_label(name, value) for value in values]
    return [(name, value, label) for value, label in zip(values, labels, strict=True)]


def _label(name: str, value: Any) -> str:
    """Return a field's value as a request's name has it."""
    if name == "lengths" and value is not None:
        return "-".join(map(str, value)) if isinstance(value, list | tuple) else ""
    if name == "batch":
        return f"b{value}"
    # Brackets: no branch or tag has any.
    return "(default)" if value is None else str(value)


def _label_sources(sources: Sequence[str]) -> list[str]:
    """Return the last part of each source, and as much more as tells it from the others."""
    parts = [_split_source(source) for source in sources]
    ends: Counter[tuple[str, ...]] = Counter()
    for part in parts:
        ends.update(part[-size:] for size in range(1, len(part) + 1))
    return [_find_label(source, part, ends) for source, part in zip(sources, parts, strict=True)]


def _split_source(source: str) -> tuple[str, ...]:
    rest = source.partition("://")[2]
    name, at, revision = rest.partition("@") if source.startswith("hf://") else (rest, "", "")
    *head, last = name.lstrip("/").split("/")
    return (*head, last + at + revision)


def _find_label(source: str, parts: tuple[str, ...], ends: Counter[tuple[str, ...]]) -> str:
    for size in range(1, len(parts) + 1):
        if ends[parts[-size:]] == 1:
            return "/".join(parts[-size:])
    return source
