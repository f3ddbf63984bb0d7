"""A store may be told which schema its manifests have at most: readers are upgraded first.

Consumers install the reader, and an older reader refuses a newer schema. ``schema.json`` at the
store's root holds the limit; without it the newest schema is written. What a limited store gets has
the limit among its options, and so a key of its own: once the limit is lifted it is stale.
"""

from __future__ import annotations

import json

from tasks.errors import RequestError
from tracefleet.canonical import canonical_json
from tracefleet.errors import StoreError
from tracefleet.manifest import SCHEMA
from tracefleet.store import ReadableStore, Store

LIMIT_PATH = "schema.json"
NEWEST = "newest"
#: The first schema whose channels have names.
NAMES_SCHEMA = 3
#: Schemas that this version can write; the first one has no place for an int8 model's accuracy.
WRITABLE = (2, SCHEMA)


def read_limit(store: ReadableStore) -> int:
    """Return the newest schema that a store's manifests may have.

    Raises:
        StoreError: the limit is damaged, or of a later version of tracefleet.
    """
    try:
        data = store.read(LIMIT_PATH)
    except FileNotFoundError:
        return SCHEMA
    try:
        limit = json.loads(data)["schema"]
    except (ValueError, KeyError, TypeError):
        limit = None
    if limit == NEWEST:
        return SCHEMA
    # A later version may limit its stores to a schema that this one can't write.
    if limit not in WRITABLE:
        raise StoreError(
            f"{store.url}/{LIMIT_PATH}: expected one of the schemas {_name_writable()}, got "
            f"{data[:80]!r}. Set it again with `tracefleet limit-schema`, or upgrade."
        )
    return int(limit)


def refuse_name(store: ReadableStore, limit: int, name: str | None) -> None:
    """Refuse a name in a store that is limited to a schema without names.

    Raises:
        RequestError: readers and collectors of that schema don't know what a name keeps.
    """
    if name is not None and limit < NAMES_SCHEMA:
        raise RequestError(
            f"name: expected none in {store.url}, which is limited to schema {limit}, got "
            f"{name!r}: readers of that schema can't open it, and their gc would not see what it "
            "keeps. Upgrade them and lift the limit (`tracefleet limit-schema`)."
        )


def write_limit(store: Store, schema: str) -> int:
    """Let a store's next manifests have at most this schema; published ones stay as they are.

    Args:
        store: Store to limit.
        schema: A schema's number, or ``newest``: no limit.

    Returns:
        The newest schema that is written from now on.

    Raises:
        StoreError: this version can't write the schema, or the store can't be written to.
    """
    if schema == NEWEST:
        # Written and not removed: publishers have no right to remove what is no claim of theirs.
        store.put_over(LIMIT_PATH, canonical_json({"schema": NEWEST}))
        return SCHEMA
    if schema not in map(str, WRITABLE):
        raise StoreError(f"schema: expected one of {_name_writable()}, or {NEWEST}, got {schema!r}")
    store.put_over(LIMIT_PATH, canonical_json({"schema": int(schema)}))
    return int(schema)


def _name_writable() -> str:
    return ", ".join(map(str, WRITABLE))
