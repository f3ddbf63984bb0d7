"""The time, as every flow tells it."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(timezone.utc)  # noqa: UP017  Inf1's Python 3.10 has no datetime.UTC
