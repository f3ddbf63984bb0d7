"""Placeholder."""

from __future__ import annotations

from typing import Any

from tasks.samples.errors import NoSamples


def process_media(*a: Any) -> dict[str, Any]:
    raise NoSamples("not there yet")
