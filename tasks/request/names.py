"""Names in a request as people write them; ``tasks.request.conversion`` calls ``read_name``."""

from __future__ import annotations

import functools
import logging

from tracefleet.spelling import read_backend, read_dtype, read_task

logger = logging.getLogger(__name__)
_READ = {"task": read_task, "backend": read_backend, "dtype": read_dtype}


def read_name(field: str, value: str) -> str:
    """Return what a name means, and say so where it was written in another way.

    Args:
        field: ``task``, ``backend`` or ``dtype``.
        value: as it was written.

    Raises:
        ValueError: there is no such name.
    """
    meant = _READ[field](value)
    if meant != value:
        _tell(f"{field} {value}: read as {meant}")
    return meant


@functools.cache
def _tell(line: str) -> None:
    """Say it once: a fleet's entries are read several times."""
    logger.info(line)
