"""Mistakes of a request or a fleet file, in one form: field, what was expected, what was got.

``tasks.request.conversion`` and ``tasks.fleet.spec`` collect them, so that a person sees all at
once.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import ValidationError

# A value may be a whole document: aliases in YAML make huge ones of a few lines.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 2
# For kinds of pydantic's errors whose own words speak of Python.
_WORDS = {"too_short": "at least one", "dict_type": "a mapping", "tuple_type": "a list"}


class Mistake(NamedTuple):
    """What is wrong about one field: what was expected, what was got and often the next step."""

    field: str
    says: str

    def __str__(self) -> str:
        return f"{self.field}: {self.says}"

    @property
    def top(self) -> str:
        """The request's field, where ``field`` leads further into its value."""
        return self.field.partition(".")[0]


def mistakes(error: ValidationError, known: Iterable[str]) -> list[Mistake]:
    """Return pydantic's refusal in our words, one mistake for each wrong value.

    Args:
        error: of a model's validation.
        known: the fields that the model has.
    """
    known = list(known)
    return [_mistake(problem, known) for problem in error.errors()]


def unknown_field(field: str, known: Iterable[str]) -> Mistake:
    """Return the mistake of a name that is no field, with the one that was most likely meant."""
    known = list(known)
    close = difflib.get_close_matches(field, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}."
    return Mistake(field, f"expected a field that exists, got {shown(field)}; {hint}")


def shown(value: object) -> str:
    """Return a value for an error message, shortened."""
    return "nothing" if value is None else _SHORT.repr(value)


def _mistake(problem: Any, known: list[str]) -> Mistake:
    field = ".".join(str(part) for part in problem["loc"]) or "request"
    kind, got = problem["type"], shown(problem["input"])
    if kind == "extra_forbidden":
        return unknown_field(field, known)
    if kind == "missing":
        return Mistake(field, "expected a value, got none")
    if kind == "string_type":
        return Mistake(field, f"expected text, got {got}; write it in quotes")
    if kind == "value_error":  # our own checks say it all, and may name the field or the value
        says = problem["msg"].removeprefix("Value error, ").removeprefix(f"{field}: ")
        return Mistake(field, says.removeprefix(f"{problem['input']}: "))
    if kind in _WORDS:
        return Mistake(field, f"expected {_WORDS[kind]}, got {got}")
    expected = problem["msg"].removeprefix("Input should be ")
    # What follows says why pydantic could not convert it; the value itself says it better.
    expected = expected.partition(", unable")[0].partition(", got")[0]
    return Mistake(field, f"expected {expected}, got {got}")
