"""Decode plain JSON data into frozen dataclasses, strictly.

Used for manifests and channel entries, which come from outside: an unknown, missing or mistyped
field is refused with its path, never ignored.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from tracefleet.errors import ManifestError

T = TypeVar("T")


def decode(kind: type[T], value: Any, *, where: str) -> T:
    """Return ``value`` as an instance of the dataclass ``kind``.

    Args:
        kind: a dataclass whose fields are scalars, tuples, ``dict[str, X]``, optionals or
            dataclasses again.
        value: parsed JSON.
        where: name of the value for messages.

    Raises:
        ManifestError: the value does not have exactly that shape.
    """
    return typing.cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None:
            return None
        inner = next(a for a in arguments if a is not type(None))
        return _decode(inner, value, where)
    if origin is tuple:
        _expect(isinstance(value, list), where, "a list", value)
        return tuple(_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        return {k: _decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and type(value) is int:
        return value  # kept as an int, so that writing it again gives the same bytes
    _expect(type(value) is kind, where, kind.__name__, value)
    _expect(kind is not float or math.isfinite(value), where, "a finite number", value)
    return value


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, "an object", value)
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    unknown, missing = sorted(value.keys() - names), sorted(names - value.keys())
    if unknown or missing:
        raise ManifestError(
            f"{where}: unknown fields {unknown}, missing fields {missing}; expected exactly "
            f"{sorted(names)}. It was edited, or written by another version of tracefleet."
        )
    fields = {name: _decode(hints[name], value[name], f"{where}.{name}") for name in sorted(names)}
    return kind(**fields)


def _expect(holds: bool, where: str, expected: str, got: Any) -> None:
    if not holds:
        raise ManifestError(f"{where}: expected {expected}, got {got!r}")
