"""Record in a store that the hub knows a source by another name too, so that readers find it by it.

A hub answers ``gpt2`` with ``openai-community/gpt2``; the conversion is published under the latter.
"""

from __future__ import annotations

import logging

from tasks.fetch.source import Resolved
from tracefleet.names import alias_bytes, alias_path
from tracefleet.store import Store

logger = logging.getLogger(__name__)


def record_alias(store: Store, found: Resolved) -> None:
    """Write down the name that a checkpoint was asked for by, if it is not the source's own.

    Raises:
        StoreError: the store can't be read or written.
    """
    if found.alias is None:
        return
    path, data = alias_path(found.alias), alias_bytes(found.alias, found.source)
    try:
        known = store.read(path) == data
    except FileNotFoundError:
        known = False
    if not known:
        # Over and not new: the hub may give a name to another repository.
        store.put_over(path, data)
    logger.info("%s: published as %s, and found by both", found.alias, found.source)
