"""One entry of a fleet file becomes requests: lists and patterns multiply it.

``tasks.fleet.spec`` calls ``check`` for each entry, and for the defaults.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.errors import RequestError
from tasks.fetch.checkpoint import normalise_source
from tasks.request.conversion import ConversionRequest
from tasks.request.mistakes import Mistake, mistakes, shown, unknown_field

#: Fields that may be a list of values; so may ``lengths``, whose value is a list already.
LISTED = ("source", "revision", "task", "backend", "dtype", "batch")
VARYING = (*LISTED, "lengths")

#: Returns the sources that a pattern stands for; None: it is a source by itself.
Finder = Callable[[str], list[str] | None]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One request of an entry, not checked yet.

    Attributes:
        name: the entry's, with the values that make it one of several.
        fields: the request's fields.
    """

    name: str
    fields: dict[str, Any]


@dataclass(kw_only=True)
class Checked:
    """What an entry came to.

    Attributes:
        requests: by name; complete only if nothing is wrong.
        wrong: the entry's mistakes, each once.
    """

    requests: dict[str, ConversionRequest] = field(default_factory=dict)
    wrong: list[Mistake] = field(default_factory=list)


def check(
    entry: str, fields: Mapping[str, Any], find: Finder, excused: Collection[str] = ()
) -> Checked:
    """Return an entry's requests, or all that is wrong about it.

    Args:
        entry: its name.
        fields: its fields over the defaults.
        find: looks up patterns over sources.
        excused: fields whose mistakes are told elsewhere.
    """
    known = ConversionRequest.model_fields
    unknown = [unknown_field(str(name), known) for name in fields if name not in known]
    drafts, wrong = expand(entry, {k: v for k, v in fields.items() if k in known}, find)
    left_out = {mistake.top for mistake in wrong} - drafts[0].fields.keys()
    excused = {*excused, *left_out}
    checked = Checked()
    for draft in drafts:
        try:
            checked.requests[draft.name] = ConversionRequest.model_validate(draft.fields)
        except ValidationError as error:
            wrong += [one for one in mistakes(error, known) if one.top not in excused]
    checked.wrong = list(dict.fromkeys(unknown + wrong))
    return checked


def expand(
    entry: str, fields: Mapping[str, Any], find: Finder
) -> tuple[list[Draft], list[Mistake]]:
    """Return an entry's drafts, and what is wrong about its lists.

    What is wrong in a list is left out, and a field of which nothing is left, so that all others
    can still be checked.
    """
    fields, wrong = dict(fields), list[Mistake]()
    choices: list[list[tuple[str, Any, str]]] = []
    for name in VARYING:
        values, found = _values(name, fields.get(name), find)
        wrong += found
        if found and not values:
            del fields[name]
        elif values is not None:
            labels = _source_labels(values) if name == "source" else map(_label(name), values)
            choices.append([(name, *pair) for pair in zip(values, labels, strict=True)])
    return [_draft(entry, fields, chosen) for chosen in itertools.product(*choices)], wrong


def _draft(entry: str, fields: Mapping[str, Any], chosen: Sequence[tuple[str, Any, str]]) -> Draft:
    own = {**fields, **{name: value for name, value, _ in chosen}}
    if isinstance(channel := own.get("channel"), str):
        own["channel"] = _filled(channel, own)
    labels = " ".join(label for _, _, label in chosen)
    return Draft(name=f"{entry}/{labels}" if chosen else entry, fields=own)


def _filled(channel: str, fields: Mapping[str, Any]) -> str:
    """Put ``{lengths}`` and ``{revision}`` into a channel: neither is part of a variant.

    Without that, an entry with several of them would move one channel several times.
    """
    for name in ("lengths", "revision"):
        if f"{{{name}}}" in channel:
            text = _label(name)(fields.get(name)).lower()
            channel = channel.replace(f"{{{name}}}", re.sub("[^a-z0-9]+", "-", text).strip("-"))
    return channel


def _values(name: str, value: Any, find: Finder) -> tuple[list[Any] | None, list[Mistake]]:
    """Return the values that a field multiplies its entry by; None: it has one."""
    if name == "source":
        return _sources(value, find)
    listed = isinstance(value, list | tuple)
    if name == "lengths" and listed:
        sets = [isinstance(part, list | tuple) for part in value]
        if any(sets) and not all(sets):
            says = f"expected whole numbers, or lists of them, got a mixture: {shown(value)}"
            return None, [Mistake(name, says)]
        listed = any(sets)
    return _distinct(name, value) if listed else (None, [])


def _sources(value: Any, find: Finder) -> tuple[list[Any] | None, list[Mistake]]:
    several = isinstance(value, list | tuple)
    named: list[str] = []
    found: list[str] = []
    wrong: list[Mistake] = []
    for source in value if several else [value]:
        try:
            fitting = find(source) if isinstance(source, str) else None
            if fitting is not None:
                found += map(normalise_source, fitting)
            elif several:
                named.append(_normalised(source))
            else:
                return None, []
        except RequestError as error:
            says = str(error).removeprefix("source: ").removeprefix(f"{source}: ")
            wrong.append(Mistake("source", says))
    named, more = _distinct("source", named) if named or not value else ([], [])
    # Patterns may overlap each other and the sources that are named.
    return [*named, *(one for one in dict.fromkeys(found) if one not in named)], wrong + more


def _normalised(source: object) -> str:
    if not isinstance(source, str | Path):
        raise RequestError(f"expected text, got {shown(source)}; write it in quotes")
    return normalise_source(source)


def _distinct(name: str, values: Sequence[Any]) -> tuple[list[Any], list[Mistake]]:
    if not values:
        return [], [Mistake(name, "expected at least one value, got an empty list")]
    once = [value for at, value in enumerate(values) if value not in values[:at]]
    twice = [value for at, value in enumerate(values) if value in values[:at]]
    return once, [Mistake(name, f"expected each value once, got {shown(v)} again") for v in twice]


def _label(name: str) -> Callable[[Any], str]:
    """Return how values of a field are written in a name."""
    if name == "lengths":
        return lambda value: "-".join(map(str, value if isinstance(value, list | tuple) else ()))
    if name == "batch":
        return lambda value: f"b{value}"
    # Brackets: no branch or tag has any.
    return lambda value: "(default)" if value is None else str(value)


def _source_labels(sources: Sequence[Any]) -> list[str]:
    """Return the last part of each source, and more of it where that is another's too."""
    parts = [_parts(str(source)) for source in sources]
    ends = Counter(part[-size:] for part in parts for size in range(1, len(part) + 1))
    return [_shortest(str(source), part, ends) for source, part in zip(sources, parts, strict=True)]


def _parts(source: str) -> tuple[str, ...]:
    rest = source.partition("://")[2]
    name, at, revision = rest.partition("@") if source.startswith("hf://") else (rest, "", "")
    *head, last = name.lstrip("/").split("/")
    return (*head, last + at + revision)


def _shortest(source: str, parts: tuple[str, ...], ends: Counter[tuple[str, ...]]) -> str:
    for size in range(1, len(parts) + 1):
        if ends[parts[-size:]] == 1:
            return "/".join(parts[-size:])
    return source
