"""Check one entry of a fleet file: the requests that it makes, and what is wrong with the others.

``tasks.fleet.spec`` calls ``check_entry`` for each entry, and for the defaults. What is wrong with
one value, source or entry costs that alone; a value that stands twice is a mistake of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tasks.errors import RequestError
from tasks.fleet.expand import Draft, Expansion, Finder, expand
from tasks.request.conversion import ConversionRequest
from tasks.request.mistakes import Mistake, describe_mistakes, describe_unknown_field

#: What a fleet asks for under a name: a request, or why there is none.
Asked = ConversionRequest | Exception


@dataclass(kw_only=True)
class CheckedEntry:
    """Requests and mistakes of one entry.

    Attributes:
        requests: Requests by name, those that are right.
        broken: What else the entry asks for, by the names that it would have: why it is no
            request. Errors of the network, from looking up a pattern, keep their library's type.
        wrong: Mistakes of the entry, each once.
        repeated: Those of them that nobody can have meant, so that the file is refused.
    """

    requests: dict[str, ConversionRequest] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    wrong: list[Mistake] = field(default_factory=list)
    repeated: list[Mistake] = field(default_factory=list)


def check_entry(
    entry: str, fields: Mapping[str, Any], find: Finder, excused: Collection[str] = ()
) -> CheckedEntry:
    """Return an entry's requests, and what is wrong with the others.

    Args:
        entry: Name of the entry.
        fields: Its fields over the defaults.
        find: Looks up patterns over sources.
        excused: Fields whose mistakes are reported elsewhere.
    """
    known = ConversionRequest.model_fields
    unknown = [describe_unknown_field(str(name), known) for name in fields if name not in known]
    found = expand(entry, {k: v for k, v in fields.items() if k in known}, find)
    checked = CheckedEntry(wrong=[*unknown, *found.mistakes], repeated=found.repeated)
    # A list with a mistake is reported; the field that it leaves out is not "missing" as well.
    concerned = {mistake.top for mistake in checked.wrong}
    if found.unlisted:
        concerned.add("source")
    left_out = concerned - found.drafts[0].fields.keys()
    _check_drafts(checked, found.drafts, {*excused, *left_out})
    if unknown or found.wrong:
        # What the whole entry asks for is not known.
        checked.requests, checked.broken = {}, {entry: _refuse(checked.wrong)}
    else:
        checked.broken |= _name_unlisted(entry, found)
    checked.wrong = list(dict.fromkeys(checked.wrong))
    return checked


def _check_drafts(checked: CheckedEntry, drafts: list[Draft], excused: set[str]) -> None:
    """Add the requests of the drafts that are right, and what is wrong with the others."""
    known = ConversionRequest.model_fields
    for draft in drafts:
        try:
            checked.requests[draft.name] = ConversionRequest.model_validate(draft.fields)
        except ValidationError as error:
            found = [one for one in describe_mistakes(error, known) if one.top not in excused]
            checked.wrong += found
            if found:
                checked.broken[draft.name] = _refuse(found)


def _refuse(mistakes: Iterable[Mistake]) -> RequestError:
    """Return one error for several mistakes, in one line."""
    return RequestError("; ".join(map(str, dict.fromkeys(mistakes))))


def _name_unlisted(entry: str, found: Expansion) -> dict[str, Exception]:
    """Return why sources of an entry could not be looked up, by the names of their rows."""
    alone = len(found.unlisted) == 1 and "source" not in found.drafts[0].fields
    named: dict[str, Exception] = {}
    for source, error in found.unlisted.items():
        named[entry if alone else f"{entry}/{source}"] = error
    return named
