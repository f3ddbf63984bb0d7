"""Find the tasks that checkpoints' own files name, for ``tasks.plan.fleet``.

This imports transformers, so a child process does it, as in a conversion; one child for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from tasks import child
from tasks.errors import ConversionCrashedError, ConversionError, first_line
from tasks.fetch.checkpoint import Resolved, fetch_description
from tasks.model.heads import default_task
from tasks.plan.concurrently import catching_errors, map_concurrently

#: Starting the child takes some seconds, each checkpoint in it some milliseconds.
_CHILD_SECONDS = 600.0


def find_tasks(checkpoints: Iterable[Resolved]) -> dict[Resolved, str | Exception]:
    """Return each checkpoint's task, or the error that hides it; weights are not fetched."""
    described = map_concurrently(
        checkpoints,
        catching_errors(fetch_description),
        url=lambda one: one.source,
        what="checkpoints described",
    )
    found: dict[Resolved, str | Exception] = {}
    folders: dict[Resolved, Path] = {}
    for checkpoint, described_in in described:
        if isinstance(described_in, Exception):
            found[checkpoint] = described_in
        else:
            folders[checkpoint] = described_in
    if folders:
        named = _name_in_child(list(folders.values()))
        found.update(zip(folders, named, strict=True))
    return found


def _name_in_child(folders: list[Path]) -> list[str | Exception]:
    limits = child.Limits(timeout=_CHILD_SECONDS, threads=1)
    with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
        log = Path(work) / "tasks.log"
        try:
            return child.run(name_tasks, folders, limits=limits, log=log, step="task").value
        except ConversionError as error:
            if len(folders) == 1:
                return [error]
    # One of them broke the child; halving finds it, so that the others get their tasks.
    half = len(folders) // 2
    return [*_name_in_child(folders[:half]), *_name_in_child(folders[half:])]


def name_tasks(folders: list[Path]) -> list[str | Exception]:
    """Return the task that each folder's files name, or an error; a child runs this."""
    return [_name_task(folder) for folder in folders]


def _name_task(folder: Path) -> str | Exception:
    try:
        return default_task(folder)
    except ConversionError as error:
        return error
    except Exception as error:  # a library's own error may not unpickle in the parent
        return ConversionCrashedError(
            f"task: expected {folder} to name one, got {type(error).__name__}: "
            f"{first_line(error)}. Name the task in the request."
        )
