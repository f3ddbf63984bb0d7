"""Stores: a root URL under which conversions, channels and reports lie.

The front door is ``open_store``; ``base`` says what every store promises.
"""

from tracefleet.store.base import Store, Stored, Upload
from tracefleet.store.open import open_store

__all__ = ["Store", "Stored", "Upload", "open_store"]
