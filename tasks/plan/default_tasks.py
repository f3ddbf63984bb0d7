"""Which tasks many checkpoints were made for, as their own files say: for ``tasks.plan.fleet``.

Reading that imports transformers, so a child does it, as in a conversion; one child for all.
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
    """Return each checkpoint's task, or what refused to name one; weights are not fetched."""
    described = map_concurrently(
        checkpoints,
        catching_errors(fetch_description),
        url=lambda one: one.source,
        what="checkpoints described",
    )
    folders = dict(described)
    there = {one: folder for one, folder in folders.items() if isinstance(folder, Path)}
    refused = {one: folder for one, folder in folders.items() if isinstance(folder, Exception)}
    named = _in_child(list(there.values())) if there else []
    return {**refused, **dict(zip(there, named, strict=True))}


def _in_child(folders: list[Path]) -> list[str | Exception]:
    limits = child.Limits(timeout=_CHILD_SECONDS, threads=1)
    with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
        log = Path(work) / "tasks.log"
        try:
            return child.run(name_tasks, folders, limits=limits, log=log, step="task").value
        except ConversionError as error:
            if len(folders) == 1:
                return [error]
    # One of them broke the child: the others must not pay for it.
    half = len(folders) // 2
    return [*_in_child(folders[:half]), *_in_child(folders[half:])]


def name_tasks(folders: list[Path]) -> list[str | Exception]:
    """Return the task that each folder's files name, or what refused it; a child runs this."""
    return [_named(folder) for folder in folders]


def _named(folder: Path) -> str | Exception:
    try:
        return default_task(folder)
    except ConversionError as error:
        return error
    except Exception as error:  # a library's own may not survive the way to the parent
        return ConversionCrashedError(
            f"task: expected {folder} to name one, got {type(error).__name__}: "
            f"{first_line(error)}. Name the task in the request."
        )
