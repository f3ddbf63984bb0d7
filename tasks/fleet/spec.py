"""A fleet: many requests, from one file of shared defaults and named entries.

``FleetSpec`` is the input of the command line, the fleet flow and its Prefect run form.
``tasks.fleet.text`` reads the text, ``tasks.fleet.patterns`` looks up patterns and
``tasks.fleet.entries`` makes requests of one entry; all mistakes are reported together here.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.errors import RequestError
from tasks.fleet.entries import CheckedEntry, Finder, check_entry, expand
from tasks.fleet.patterns import match_sources
from tasks.fleet.text import parse, read_text
from tasks.request.conversion import ConversionRequest
from tasks.request.mistakes import Mistake, describe_mistakes, shorten
from tracefleet.channel import check_channel
from tracefleet.store import open_store

#: Fields that limit a request's processes and change nothing about its result.
LIMITS = ("timeout_seconds", "memory_limit_mb", "threads")

_LOOKS_LIKE = "a mapping of fields such as `source: hf://org/name`"
# Fields that defaults lack to be a request that can be checked.
_FILLING = {"source": "hf://org/name"}


class FleetSpec(BaseModel):
    """Many requests: shared defaults and named entries, read from YAML or JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: dict[str, Any] = Field(
        default_factory=dict, description="Request fields that every entry starts from."
    )
    entries: dict[str, Any] = Field(
        min_length=1,
        description="Name of an entry -> its request's fields. Lists and patterns multiply it.",
    )
    guarded: tuple[str, ...] = Field(
        default=(),
        description="Channels that take only what a person confirms: see `tracefleet promote`.",
    )

    @field_validator("guarded")
    @classmethod
    def _check_guarded(cls, channels: tuple[str, ...]) -> tuple[str, ...]:
        for channel in channels:
            check_channel(channel)
        return channels

    def requests(self) -> dict[str, ConversionRequest]:
        """Return every request by name; an entry that is multiplied gives ``entry/values``.

        Raises:
            RequestError: there are mistakes; the message has a line for each. Errors of the
                network while a pattern is looked up keep their library's type.
        """
        find = functools.cache(match_sources)
        mistakes = self._check_defaults(find)
        reported: set[str] = set()
        for mistake in mistakes:
            reported |= {mistake.field, mistake.top}
        wrong = [f"defaults.{mistake}" for mistake in mistakes]
        made: dict[str, tuple[str, ConversionRequest]] = {}
        for entry, own in self.entries.items():
            checked = self._check_entry(entry, own, find, reported)
            for mistake in checked.wrong:
                wrong.append(f"{entry}.{mistake}" if mistake.field else f"{entry}{mistake}")
            # Without the wrong defaults these are not the requests that were meant.
            if not checked.wrong and not reported:
                wrong += _add(made, entry, checked.requests)
        wrong += find_collisions(made)
        wrong += _find_guarded(made, self.guarded)
        if wrong:
            raise _refusal("fleet file", wrong)
        return {name: request for name, (_, request) in made.items()}

    def request_fields(self, name: str) -> dict[str, Any]:
        """Return one request's fields, unchecked, for a caller that overrides some of them.

        Other entries are neither checked nor looked up.

        Raises:
            RequestError: no request has this name.
        """
        names = list(self.entries)
        for entry, own in self.entries.items():
            if isinstance(own, dict) and (name == entry or name.startswith(f"{entry}/")):
                drafts, wrong = expand(entry, {**self.defaults, **own}, match_sources)
                if wrong:
                    raise _refusal("fleet file", [f"{entry}.{mistake}" for mistake in wrong])
                names = [draft.name for draft in drafts]
                if name in names:
                    return drafts[names.index(name)].fields
        raise RequestError(f"--entry: expected one of {', '.join(names)}, got {name!r}")

    def with_store(self, store: str | None) -> FleetSpec:
        """Return the fleet with all its requests in another store; None: unchanged."""
        if store is None:
            return self
        entries: dict[str, Any] = {}
        for entry, own in self.entries.items():
            entries[entry] = own
            if isinstance(own, dict):  # else the check reports it
                entries[entry] = {name: value for name, value in own.items() if name != "store"}
        defaults = {**self.defaults, "store": store}
        return FleetSpec(defaults=defaults, entries=entries, guarded=self.guarded)

    def _check_defaults(self, find: Finder) -> list[Mistake]:
        fields = {**_FILLING, **self.defaults}
        if fields.get("accept_tolerance_risk", False) is False:
            fields["accept_tolerance_risk"] = True  # rtol's ceiling depends on each entry's dtype
        return check_entry("", fields, find).wrong

    def _check_entry(self, entry: str, own: Any, find: Finder, reported: set[str]) -> CheckedEntry:
        if not isinstance(own, dict):
            return CheckedEntry(wrong=[Mistake("", f"expected {_LOOKS_LIKE}, got {shorten(own)}")])
        right = {name: value for name, value in self.defaults.items() if name not in reported}
        return check_entry(entry, {**right, **own}, find, reported - own.keys())


def read_fleet(where: str | Path) -> FleetSpec:
    """Read a fleet file (YAML, of which JSON is a part).

    This checks the text and its outline; ``FleetSpec.requests`` checks the fields.

    Args:
        where: Path, or ``file://`` or ``s3://`` URL.

    Raises:
        RequestError: the file is missing, is no YAML, has a name twice, or has no entries. Errors
            of the network keep their library's type.
    """
    text = read_text(where)
    try:
        raw, wrong = parse(text)
    except ValueError as error:
        raise RequestError(f"fleet file {where}: expected YAML, got: {error}") from error
    if not isinstance(raw, dict):
        got = "an empty file" if raw is None else shorten(raw)
        raise RequestError(f"fleet file {where}: expected defaults and entries, got {got}")
    try:
        spec = FleetSpec.model_validate({k: v for k, v in raw.items() if isinstance(k, str)})
    except ValidationError as error:
        outline = describe_mistakes(error, FleetSpec.model_fields)
        # `parse` has found a name that is no text already, with its line.
        wrong += [mistake for mistake in outline if not mistake.field.endswith("[key]")]
    if wrong:
        raise _refusal(f"fleet file {where}", [str(mistake) for mistake in wrong])
    return spec


def _refusal(where: str, wrong: list[str]) -> RequestError:
    """Return an error that reports all mistakes, one line each."""
    return RequestError("\n".join((f"{where}: expected no mistakes, got {len(wrong)}:", *wrong)))


def find_collisions(made: Mapping[str, tuple[str, ConversionRequest]]) -> list[str]:
    """Return a line for each pair of entries that would move the same channel.

    Args:
        made: Requests by name, each with its entry.
    """
    # Two spellings of one store are the same store.
    find_url = functools.cache(lambda url: open_store(url).url)
    movers: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, (_, request) in made.items():
        for address in _list_addresses(request):
            movers[(address, *_find_variant(request), find_url(request.store))].append(name)
    lines: dict[tuple[str, str], str] = {}
    for (address, *_), (first, *others) in movers.items():
        for other in others:
            pair = (made[first][0], made[other][0])
            lines.setdefault(pair, _describe_collision(made, first, other, address))
    return list(lines.values())


def _find_guarded(
    made: Mapping[str, tuple[str, ConversionRequest]], guarded: Sequence[str]
) -> list[str]:
    """Return a line for each request that would publish into a channel that the file guards."""
    return [
        f"{entry}.channel: expected one that the file does not guard, got {request.channel!r} of "
        f"{name!r}; publish into another channel and promote from there"
        for name, (entry, request) in made.items()
        if request.channel in guarded
    ]


def _list_addresses(request: ConversionRequest) -> list[str]:
    """Return the source, and the name that the conversion is published under, if it has one."""
    source = request.source
    if source.startswith("hf://"):
        source = source.partition("@")[0]  # a channel's folder has no revision
    return [source] if request.publish_as is None else [source, request.publish_as]


def _find_variant(request: ConversionRequest) -> tuple[Any, ...]:
    return request.task, request.backend, request.dtype, request.batch, request.channel


def _describe_collision(
    made: Mapping[str, tuple[str, ConversionRequest]], first: str, other: str, address: str
) -> str:
    (_, one), (entry, two) = made[first], made[other]
    if "://" not in address:
        return (
            f"{entry}.publish_as: expected a name that no other request moves, got {address!r} of "
            f"{other!r}, which {first!r} moves too (same task, backend, dtype, batch, channel and "
            "store); give one of them another name or channel"
        )
    if one.model_dump(exclude={*LIMITS}) == two.model_dump(exclude={*LIMITS}):
        return (
            f"{entry}.source: expected each conversion once, got {other!r}, which requests the "
            f"same as {first!r}; remove one of them"
        )
    return (
        f"{entry}.channel: expected a channel that no other request moves, got {two.channel!r} of "
        f"{other!r}, which {first!r} moves too (same source, task, backend, dtype, batch and "
        f"store); give one of them another channel, such as {two.channel}-2, or write "
        "{lengths} or {revision} into it"
    )


def _add(
    made: dict[str, tuple[str, ConversionRequest]],
    entry: str,
    requests: Mapping[str, ConversionRequest],
) -> list[str]:
    """Add an entry's requests to those that are made; return a line for each name given twice."""
    wrong = []
    for name, request in requests.items():
        if name in made:
            wrong.append(
                f"{entry}: expected names that no other entry gives, got {name!r}, which entry "
                f"{made[name][0]!r} gives too; rename one of them"
            )
        else:
            made[name] = (entry, request)
    return wrong
