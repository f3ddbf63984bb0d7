"""A fleet: many requests, from one file of shared defaults and named entries.

``FleetSpec`` is what the command line, the fleet flow and its Prefect run form take. Text is read
by ``tasks.fleet.text``, patterns are looked up by ``tasks.fleet.patterns``, and one entry becomes
requests in ``tasks.fleet.entries``; here they come together, with all mistakes at once.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import RequestError
from tasks.fleet.entries import Checked, Finder, check, expand
from tasks.fleet.patterns import matches
from tasks.fleet.text import parse, read_text
from tasks.request.conversion import ConversionRequest
from tasks.request.mistakes import Mistake, mistakes, shown
from tracefleet.store import open_store

#: What a request may take, which changes nothing about what it makes.
LIMITS = ("timeout_seconds", "memory_limit_mb", "threads")

_LOOKS_LIKE = "a mapping of fields such as `source: hf://org/name`"
# What defaults alone lack to be a request.
_FILLING = {"source": "hf://org/name", "lengths": [1]}


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

    def requests(self) -> dict[str, ConversionRequest]:
        """Return every request by name; an entry that is multiplied gives ``entry/values``.

        Raises:
            RequestError: something is wrong; all of it is told, one line for each mistake. What
                the network does wrong while a pattern is looked up keeps its library's type.
        """
        find = functools.cache(matches)
        defaults = self._check_defaults(find)
        told = {name for mistake in defaults for name in (mistake.field, mistake.top)}
        wrong = [f"defaults.{mistake}" for mistake in defaults]
        made: dict[str, tuple[str, ConversionRequest]] = {}
        for entry, own in self.entries.items():
            checked = self._check_entry(entry, own, find, told)
            wrong += [f"{entry}{'.' if one.field else ''}{one}" for one in checked.wrong]
            if not checked.wrong and not told:
                wrong += _add(made, entry, checked.requests)
        if wrong := wrong + collisions(made):
            raise refusal("fleet file", wrong)
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
                drafts, wrong = expand(entry, {**self.defaults, **own}, functools.cache(matches))
                if wrong:
                    raise refusal("fleet file", [f"{entry}.{one}" for one in wrong])
                names = [draft.name for draft in drafts]
                if name in names:
                    return drafts[names.index(name)].fields
        raise RequestError(f"--entry: expected one of {', '.join(names)}, got {name!r}")

    def with_store(self, store: str | None) -> FleetSpec:
        """Return the fleet with all its requests in another store; None: as it is."""
        if store is None:
            return self
        entries = {
            entry: {k: v for k, v in own.items() if k != "store"} if isinstance(own, dict) else own
            for entry, own in self.entries.items()
        }
        return FleetSpec(defaults={**self.defaults, "store": store}, entries=entries)

    def _check_defaults(self, find: Finder) -> list[Mistake]:
        fields = {**_FILLING, **self.defaults}
        if fields.get("accept_tolerance_risk", False) is False:
            fields["accept_tolerance_risk"] = True  # rtol's ceiling depends on each entry's dtype
        return check("", fields, find).wrong

    def _check_entry(self, entry: str, own: Any, find: Finder, told: set[str]) -> Checked:
        if not isinstance(own, dict):
            return Checked(wrong=[Mistake("", f"expected {_LOOKS_LIKE}, got {shown(own)}")])
        sound = {name: value for name, value in self.defaults.items() if name not in told}
        return check(entry, {**sound, **own}, find, told - own.keys())


def read_fleet(where: str | Path) -> FleetSpec:
    """Read a fleet file (YAML, of which JSON is a part).

    Fields are checked by ``FleetSpec.requests``; here it is the text and its outline.

    Args:
        where: a path, or a ``file://`` or ``s3://`` URL.

    Raises:
        RequestError: the file is missing, no YAML, says something twice, or has no entries. What
            the network does wrong keeps its library's type.
    """
    text = read_text(where)
    try:
        raw, wrong = parse(text)
    except ValueError as error:
        raise RequestError(f"fleet file {where}: expected YAML, got: {error}") from error
    if not isinstance(raw, dict):
        got = "an empty file" if raw is None else shown(raw)
        raise RequestError(f"fleet file {where}: expected defaults and entries, got {got}")
    try:
        spec = FleetSpec.model_validate({k: v for k, v in raw.items() if isinstance(k, str)})
    except ValidationError as error:
        outline = mistakes(error, FleetSpec.model_fields)
        # A name that is no text was found with its line already.
        wrong += [one for one in outline if not one.field.endswith("[key]")]
    if wrong:
        raise refusal(f"fleet file {where}", [str(mistake) for mistake in wrong])
    return spec


def refusal(where: str, wrong: list[str]) -> RequestError:
    """Return the error that tells all mistakes, one line each."""
    return RequestError("\n".join((f"{where}: expected no mistakes, got {len(wrong)}:", *wrong)))


def collisions(made: Mapping[str, tuple[str, ConversionRequest]]) -> list[str]:
    """Return a line for each two entries that would move one channel.

    Args:
        made: requests by name, each with its entry.
    """
    store = functools.cache(lambda url: open_store(url).url)
    movers: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, (_, request) in made.items():
        movers[(*_variant(request), request.channel, store(request.store))].append(name)
    told: dict[tuple[str, str], str] = {}
    for first, *others in movers.values():
        for other in others:
            told.setdefault((made[first][0], made[other][0]), _collision(made, first, other))
    return list(told.values())


def _variant(request: ConversionRequest) -> tuple[Any, ...]:
    source = request.source
    if source.startswith("hf://"):
        source = source.partition("@")[0]  # a channel's folder knows no revision
    return source, request.task, request.backend, request.dtype, request.batch


def _collision(made: Mapping[str, tuple[str, ConversionRequest]], first: str, other: str) -> str:
    (_, one), (entry, two) = made[first], made[other]
    if one.model_dump(exclude={*LIMITS}) == two.model_dump(exclude={*LIMITS}):
        return (
            f"{entry}.source: expected each conversion once, got {other!r}, which asks for what "
            f"{first!r} asks for; remove one of them"
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
    """Add an entry's requests, and return what is wrong about their names."""
    twice = [name for name in requests if name in made]
    made.update({name: (entry, request) for name, request in requests.items() if name not in made})
    return [
        f"{entry}: expected names that no other entry gives, got {name!r}, which entry "
        f"{made[name][0]!r} gives too; rename one of them"
        for name in twice
    ]
