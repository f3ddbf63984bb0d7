"""Addresses of conversions: the names that they are published under, and aliases of sources.

A name is a slug of its own in ``channels/``, whose entries say the source. It never looks like a
source's slug, which ends in eight hex digits. An alias is another name that the hub has for a
source (``gpt2`` of ``openai-community/gpt2``). Readers look for a name first, then for a source,
then for an alias; publishers call ``check_name``.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tracefleet.canonical import canonical_json
from tracefleet.channel import source_slug
from tracefleet.decode import decode
from tracefleet.errors import ManifestError
from tracefleet.source import spellings
from tracefleet.store import ReadableStore

_LONGEST = 80
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_SOURCE_SLUG = re.compile(r"[a-z0-9_-][a-z0-9._-]*-[0-9a-f]{8}")
_SCHEMES = ("hf", "file", "s3")


@dataclass(frozen=True, kw_only=True)
class _Alias:
    alias: str
    source: str


def check_name(name: str) -> str:
    """Return a name that a conversion can be published under.

    Raises:
        ValueError: it can't be one; says what can.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ValueError(
            f"name: expected at most {_LONGEST} lower-case letters, digits and inner hyphens, dots "
            f"and underscores, such as support-classifier, got {name!r}"
        )
    if _SOURCE_SLUG.fullmatch(name):
        raise ValueError(
            "name: expected one that does not end in a hyphen and eight hex digits, as the slugs "
            f"of sources do, got {name!r}. Add a word to it."
        )
    if name in _SCHEMES:
        raise ValueError(f"name: expected none of the schemes {', '.join(_SCHEMES)}, got {name!r}")
    return name


def is_name(slug: str) -> bool:
    """Whether a folder of ``channels/`` is a name's and no source's."""
    try:
        return check_name(slug) == slug
    except ValueError:
        return False


def slugs_of(name: str | Path) -> list[str]:
    """Return the slugs that an address may stand for: a name, a slug, then sources.

    Args:
        name: a name, a source in any of its forms, or a slug.
    """
    slugs = [source_slug(spelling) for spelling in spellings(name)]
    text = os.fspath(name)
    if isinstance(name, str) and (is_name(text) or _SOURCE_SLUG.fullmatch(text)):
        return [text, *slugs]
    return slugs


def alias_path(alias: str) -> str:
    """Return the file that says which source an alias stands for."""
    return f"aliases/{source_slug(alias)}.json"


def alias_bytes(alias: str, source: str) -> bytes:
    """Return the content of that file."""
    return canonical_json({"alias": alias, "source": source})


def find_alias(store: ReadableStore, name: str | Path) -> str | None:
    """Return the source that a name is an alias of; None: it is none.

    Raises:
        ManifestError: the alias is malformed, or was written for another name.
    """
    for spelling in spellings(name):
        if spelling.startswith("hf://"):
            try:
                data = store.read(alias_path(spelling))
            except FileNotFoundError:
                continue
            source = _parse_alias(data, spelling)
            store.cache_selection({alias_path(spelling): data})
            return source
    return None


def _parse_alias(data: bytes, expected: str) -> str:
    where = alias_path(expected)
    try:
        found = decode(_Alias, json.loads(data), where=where)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: expected JSON, got {error}; remove the file.") from error
    if found.alias != expected or not found.source.startswith("hf://"):
        raise ManifestError(
            f"{where}: expected {expected} to stand for a source on the hub, got {found}. The file "
            "was moved or edited; remove it."
        )
    return found.source
