"""A fleet: many requests, from one file of shared defaults and named entries.

``FleetSpec`` is the input of the command line, the fleet flow and its Prefect run form.
``tasks.fleet.text`` reads the text, ``tasks.fleet.patterns`` looks up patterns,
``tasks.fleet.entries`` makes requests of one entry, ``tasks.fleet.collisions`` finds entries that
contradict each other; all mistakes of a file are reported together here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.errors import RequestError
from tasks.fleet.collisions import add_requests, find_collisions
from tasks.fleet.entries import Asked, CheckedEntry, check_entry
from tasks.fleet.expand import Finder, expand
from tasks.fleet.patterns import Patterns, match_sources
from tasks.fleet.text import parse, read_text
from tasks.request.conversion import ConversionRequest
from tasks.request.mistakes import Mistake, describe_mistakes, shorten
from tracefleet.channel import check_channel

_LOOKS_LIKE = "a mapping of fields such as `source: hf://org/name`"
# Fields that defaults lack to be a request that can be checked.
_FILLING = {"source": "hf://org/name"}


@dataclass(kw_only=True)
class _Checked:
    """A whole fleet, checked.

    Attributes:
        made: Requests by name, each with its entry.
        mistakes: A line for every mistake.
        refused: Whether one of them concerns more than an entry.
    """

    mistakes: list[str]
    refused: bool
    made: dict[str, tuple[str, Asked]] = field(default_factory=dict)

    @property
    def right(self) -> dict[str, tuple[str, ConversionRequest]]:
        """What was made that is a request."""
        found: dict[str, tuple[str, ConversionRequest]] = {}
        for name, (entry, request) in self.made.items():
            if isinstance(request, ConversionRequest):
                found[name] = entry, request
        return found

    def refuse(self, mistakes: list[str]) -> None:
        """Add mistakes that concern more than an entry."""
        self.mistakes += mistakes
        self.refused |= bool(mistakes)


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
        """Return every request by name, of a fleet with nothing wrong in it.

        Raises:
            RequestError: something is wrong; the message has a line for each mistake. Errors of
                the network while a pattern is looked up keep their library's type.
        """
        found = self._check(Patterns())
        if found.mistakes:
            raise _refusal("fleet file", found.mistakes)
        for _, request in found.made.values():
            if isinstance(request, Exception):
                raise request
        return {name: request for name, (_, request) in found.right.items()}

    def expand(self, find: Finder) -> dict[str, Asked]:
        """Return every request by name; an entry that is multiplied gives ``entry/values``.

        What is wrong with an entry by itself, or can't be looked up, stands for its request, as
        an error: it costs that entry alone.

        Args:
            find: Looks up patterns over sources.

        Raises:
            RequestError: the file can't be meant: wrong defaults, something twice, two requests
                that would move one channel. The message has a line for every mistake in it.
        """
        found = self._check(find)
        if found.refused:
            raise _refusal("fleet file", found.mistakes)
        return {name: request for name, (_, request) in found.made.items()}

    @property
    def home(self) -> str:
        """Store of the first entry as it is written, which need not be right."""
        fields = [own for own in self.entries.values() if isinstance(own, dict)]
        default = self.defaults.get("store", ConversionRequest.model_fields["store"].default)
        return str(fields[0].get("store", default) if fields else default)

    def _check(self, find: Finder) -> _Checked:
        mistakes = self._check_defaults(find)
        reported: set[str] = set()
        for mistake in mistakes:
            reported |= {mistake.field, mistake.top}
        lines = [f"defaults.{mistake}" for mistake in mistakes]
        found = _Checked(mistakes=lines, refused=bool(lines))
        for entry, own in self.entries.items():
            checked = self._check_entry(entry, own, find, reported)
            for mistake in checked.wrong:
                line = f"{entry}.{mistake}" if mistake.field else f"{entry}{mistake}"
                found.mistakes.append(line)
            found.refused |= bool(checked.repeated)
            # Without the wrong defaults these are not the requests that were meant.
            if not reported:
                asked: dict[str, Asked] = {**checked.requests, **checked.broken}
                found.refuse(add_requests(found.made, entry, asked))
        found.refuse(find_collisions(found.right))
        found.refuse(_find_guarded(found.right, self.guarded))
        return found

    def request_fields(self, name: str) -> dict[str, Any]:
        """Return one request's fields, unchecked, for a caller that overrides some of them.

        Other entries are neither checked nor looked up.

        Raises:
            RequestError: no request has this name.
        """
        names = list(self.entries)
        for entry, own in self.entries.items():
            if isinstance(own, dict) and (name == entry or name.startswith(f"{entry}/")):
                found = expand(entry, {**self.defaults, **own}, match_sources)
                for error in found.unlisted.values():
                    if not isinstance(error, RequestError):
                        raise error
                if wrong := found.mistakes:
                    raise _refusal("fleet file", [f"{entry}.{mistake}" for mistake in wrong])
                names = [draft.name for draft in found.drafts]
                if name in names:
                    return found.drafts[names.index(name)].fields
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
            mistake = Mistake("", f"expected {_LOOKS_LIKE}, got {shorten(own)}")
            error = RequestError(f"{entry}{mistake}")
            return CheckedEntry(wrong=[mistake], broken={entry: error})
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
