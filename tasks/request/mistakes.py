"""Mistakes in a request or a fleet file, in one form: field, what was expected, what was got.

``tasks.request.conversion`` and ``tasks.fleet.spec`` collect them, so that a person sees all of
them together.
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
# For kinds of errors in which pydantic uses the names of Python's types.
_WORDS = {"too_short": "at least one", "dict_type": "a mapping", "tuple_type": "a list"}


class Mistake(NamedTuple):
    """A mistake in one field: what was expected, what was got, and often the next step.

    Attributes:
        field: Name of the field, with dots where it leads into the field's value.
        message: Message about it.
    """

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"

    @property
    def top(self) -> str:
        """Name of the request's field, without what leads into its value."""
        return self.field.partition(".")[0]


def describe_mistakes(error: ValidationError, known: Iterable[str]) -> list[Mistake]:
    """Return pydantic's errors in our words, one mistake for each wrong value.

    Args:
        error: Error of a model's validation.
        known: Names of the model's fields.
    """
    known = list(known)
    return [_describe_mistake(problem, known) for problem in error.errors()]


def describe_unknown_field(field: str, known: Iterable[str]) -> Mistake:
    """Return the mistake of a name that is no field, with the field that is most like it."""
    known = list(known)
    close = difflib.get_close_matches(field, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}."
    return Mistake(field, f"expected a field that exists, got {shorten(field)}; {hint}")


def shorten(value: object) -> str:
    """Return a value for an error message, shortened."""
    return "nothing" if value is None else _SHORT.repr(value)


def _describe_mistake(problem: Any, known: list[str]) -> Mistake:
    field = ".".join(str(part) for part in problem["loc"]) or "request"
    kind, got = problem["type"], shorten(problem["input"])
    if kind == "extra_forbidden":
        return describe_unknown_field(field, known)
    if kind == "missing":
        return Mistake(field, "expected a value, got none")
    if kind == "string_type":
        return Mistake(field, f"expected text, got {got}; write it in quotes")
    if kind == "value_error":  # messages of our own checks may begin with the field or the value
        message = problem["msg"].removeprefix("Value error, ").removeprefix(f"{field}: ")
        return Mistake(field, message.removeprefix(f"{problem['input']}: "))
    if kind in _WORDS:
        return Mistake(field, f"expected {_WORDS[kind]}, got {got}")
    expected = problem["msg"].removeprefix("Input should be ")
    # The rest is why pydantic could not convert the value; the value itself shows it better.
    expected = expected.partition(", unable")[0].partition(", got")[0]
    return Mistake(field, f"expected {expected}, got {got}")
