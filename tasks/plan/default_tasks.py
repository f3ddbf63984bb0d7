"""Find what checkpoints' own files say where requests do not, for ``tasks.plan.fleet``.

Most tasks are in a table. Others need transformers, so a child process looks them up, as in a
conversion; one child for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tasks import child
from tasks.errors import ConversionCrashedError, ConversionError, first_line, settle_lasting
from tasks.fetch.checkpoint import Resolved, fetch_description
from tasks.model.default_lengths import default_lengths
from tasks.model.heads import default_task
from tasks.model.named_task import named_task
from tasks.plan.concurrently import catching_errors, map_concurrently

#: Starting the child takes some seconds, each checkpoint in it some milliseconds.
_CHILD_SECONDS = 600.0


def describe(checkpoints: Iterable[Resolved]) -> dict[Resolved, Path | Exception]:
    """Return a folder with each checkpoint's files but its weights, or an error."""
    return dict(
        map_concurrently(
            checkpoints,
            catching_errors(fetch_description),
            url=lambda one: one.source,
            what="checkpoints described",
        )
    )


def find_tasks(described: Mapping[Resolved, Path | Exception]) -> dict[Resolved, str | Exception]:
    """Return each described checkpoint's task, or the error that hides it."""
    found: dict[Resolved, str | Exception] = {}
    left: dict[Resolved, Path] = {}
    for checkpoint, folder in described.items():
        known = _look_up(folder)
        if isinstance(folder, Path) and known is None:
            left[checkpoint] = folder
        elif known is not None:
            found[checkpoint] = known
    if left:
        found.update(zip(left, _name_in_child(list(left.values())), strict=True))
    return found


def _look_up(folder: Path | Exception) -> str | Exception | None:
    if isinstance(folder, Exception):
        return folder
    try:
        return named_task(folder)
    except ConversionError as error:
        return error


def find_lengths(folder: Path | Exception, task: str) -> tuple[int, ...] | Exception:
    """Return the standard lengths of a checkpoint by default, or the error that hides them."""
    if isinstance(folder, Exception):
        return folder
    try:
        return default_lengths(folder, task).lengths
    except ConversionError as error:
        return error


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
        settle_lasting(error)
        return error
    except Exception as error:  # a library's own error may not unpickle in the parent
        return ConversionCrashedError(
            f"task: expected {folder} to name one, got {type(error).__name__}: "
            f"{first_line(error)}. Name the task in the request."
        )
