"""The JSON Schema of a fleet file, for editors: ``tracefleet schema fleet``.

Derived from the request's own schema, so that a field is described once. It is kept beside the
example (``examples/fleet.schema.json``); a test tells when it has to be written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.backends.base import BACKENDS
from tasks.fleet.expand import LISTED
from tasks.fleet.spec import FleetSpec
from tasks.request.conversion import ConversionRequest
from tracefleet.heads import AUTO_CLASSES

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REQUEST = {"$ref": "#/$defs/request"}
# What the request checks with functions, as far as a schema can say it.
_NARROWED: dict[str, dict[str, Any]] = {
    "source": {"type": "string", "pattern": "^((hf|file|s3)://.|[./~]|[^:]+$)"},
    "task": {"enum": [*AUTO_CLASSES, None]},
    "backend": {"enum": [*BACKENDS]},
    "channel": {"type": "string", "pattern": r"^([a-z0-9]|\{(lengths|revision)\})"},
}
_MORE = {
    "source": "`*`, `?` and `[…]` in the last part stand for all that fit, one request each.",
    "channel": "`{lengths}` and `{revision}` stand for the request's own.",
    "lengths": "A list of lists is several sets, one request each.",
}
_LISTED = "A list of values: one request for each."


def fleet_schema() -> dict[str, Any]:
    """Return the schema of a fleet file, every field of an entry typed and described."""
    request = ConversionRequest.model_json_schema()
    fields = request["properties"]
    about = FleetSpec.model_json_schema()["properties"]
    entries = {"type": "object", "minProperties": 1, "additionalProperties": _REQUEST}
    return {
        "$schema": _DIALECT,
        "title": "tracefleet fleet file",
        "type": "object",
        "additionalProperties": False,
        "required": ["entries"],
        "properties": {
            "defaults": {"description": about["defaults"]["description"], **_REQUEST},
            "entries": {"description": about["entries"]["description"], **entries},
            "guarded": {"description": about["guarded"]["description"], **_channels()},
        },
        "$defs": {
            **request["$defs"],
            "request": {
                "type": "object",
                "additionalProperties": False,
                "properties": {name: _field(name, field) for name, field in fields.items()},
            },
        },
    }


def _field(name: str, field: Mapping[str, Any]) -> dict[str, Any]:
    one = {k: v for k, v in field.items() if k not in ("title", "description", "position")}
    default = one.pop("default", None)
    one = _NARROWED.get(name, one)
    told = [field["description"], _MORE.get(name), _LISTED if name in LISTED else None]
    if default is not None:
        told.append(f"Default: {str(default).lower() if default in (True, False) else default}.")
    described = {"description": " ".join(part for part in told if part)}
    if name == "lengths":
        return {**described, "anyOf": [_lengths(), {**_some(_lengths()), "uniqueItems": True}]}
    if name in LISTED:
        return {**described, "anyOf": [one, {**_some(one), "uniqueItems": True}]}
    return {**described, **one}


def _lengths() -> dict[str, Any]:
    return {**_some({"type": "integer", "minimum": 1}), "uniqueItems": True}


def _channels() -> dict[str, Any]:
    return {
        "type": "array",
        "items": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]*$"},
        "uniqueItems": True,
    }


def _some(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": dict(items)}
