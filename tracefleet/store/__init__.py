"""Stores: a root URL with conversions, channels and reports below it.

The front doors are ``open_store`` for readers and ``open_writable`` for publishers; ``base``
defines the guarantees of every store.
"""

from tracefleet.store.base import ReadableStore, Store, Stored, Upload
from tracefleet.store.open import open_existing, open_store, open_writable

__all__ = [
    "ReadableStore",
    "Store",
    "Stored",
    "Upload",
    "open_existing",
    "open_store",
    "open_writable",
]
