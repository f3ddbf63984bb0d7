"""Errors of a compiler with their causes, and its folder kept for people to look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.backends.triage import triage
from tasks.errors import ConversionError

#: Number of failed compilations' folders that are kept for people to look at.
_KEPT_FAILURES = 10


@contextmanager
def triaging_errors(
    what: str, log: Path, workdir: Path | None = None, kept: Path | None = None
) -> Iterator[None]:
    """Raise any failure as a typed error with its cause, and keep the compiler's folder."""
    try:
        yield
    except ConversionError:  # has its cause already
        raise
    except Exception as error:
        found = None if workdir is None or kept is None else _keep(workdir, kept)
        raise triage(error, what, log, kept=found) from error


def _keep(workdir: Path, kept: Path) -> Path | None:
    """Move a failed compiler's folder to where a person can look at it; None: it is empty."""
    if not any(workdir.iterdir()):
        return None
    kept.mkdir(parents=True, exist_ok=True)
    target = kept / f"{workdir.parent.name}-{workdir.name}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(workdir, target)
    older = sorted(kept.iterdir(), key=lambda folder: folder.stat().st_mtime)[:-_KEPT_FAILURES]
    for folder in older:
        shutil.rmtree(folder, ignore_errors=True)
    return target
