"""What several commands do with their arguments: choose a conversion, and describe one in a row."""

from __future__ import annotations

import argparse
from typing import Any

from tracefleet.manifest import Manifest
from tracefleet.published import Selection, select
from tracefleet.store import ReadableStore, open_existing


def read_filters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that choose among a source's conversions."""
    names = ("task", "backend", "dtype", "batch", "channel")
    return {name: getattr(arguments, name) for name in names}


def select_one(arguments: argparse.Namespace) -> tuple[ReadableStore, Selection]:
    """Return the store, and the one conversion that fits."""
    store = open_existing(arguments.store)
    return store, select(store, arguments.source, **read_filters(arguments))


def describe_row(selection: Selection, manifest: Manifest) -> dict[str, Any]:
    """Return one row of ``tracefleet list``."""
    return {
        "source": manifest.source,
        "name": selection.name,
        "variant": manifest.variant.label,
        "channel": selection.published.channel,
        "seq": selection.number,
        "lengths": list(manifest.lengths),
        "verdict": manifest.validation.verdict,
        "size": sum(file.size for file in manifest.published),
        "key": manifest.key,
        "withdrawn": selection.entry.withdrawn,
    }
