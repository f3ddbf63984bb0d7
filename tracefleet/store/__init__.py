"""Stores: a root URL under which conversions, channels and reports lie.

The front doors are ``open_store`` for readers and ``open_writable`` for publishers; ``base`` says
what every store promises.
"""

from tracefleet.store.base import ReadableStore, Store, Stored, Upload
from tracefleet.store.open import open_store, open_writable

__all__ = ["ReadableStore", "Store", "Stored", "Upload", "open_store", "open_writable"]
