"""What runs inside a child process: isolation, the call itself, and how its result gets out.

The other side is ``tasks.child``. Kept apart so that steps which report their progress import none
of the parent's machinery.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tasks.errors import ConversionCrashedError, ConversionError, first_line, settle_lasting

logger = logging.getLogger(__name__)
_TAIL_LINES = 20
_MESSAGE_CHARACTERS = 500
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _NEVER = -1, -3, 1 << 30  # mallopt(3)
_to_parent: connection.Connection | None = None


def report_progress(message: str) -> None:
    """Report progress: to the parent's log from inside a child, to this log otherwise."""
    if _to_parent is None:
        logger.info(message)
    else:
        # Short enough for the pipe to take it in one piece (PIPE_BUF).
        _to_parent.send(("progress", message[:_MESSAGE_CHARACTERS]))


def run_child(
    sender: connection.Connection,
    log: str,
    step: str,
    threads: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Call a function and leave its result beside the log; the whole life of a child."""
    global _to_parent
    _to_parent = sender
    _isolate(log)
    outcome = _call(step, Path(log), threads, function, arguments)
    # Results go through a file: a pipe that is cut in the middle of one would stall the parent.
    result_path(Path(log)).write_bytes(pickle.dumps(outcome))
    sender.send(("done", ""))
    sender.close()


def result_path(log: Path) -> Path:
    """Return the file of a child's pickled result."""
    return log.with_name(f"{log.name}.result")


def crash_error(step: str, reason: str, log: Path) -> ConversionCrashedError:
    """Return the error of a child that returned no result, with the last lines of its log."""
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    return ConversionCrashedError(
        f"{step}: expected the child process to return a result, got {reason}. Nothing was "
        f"published. Last lines it wrote:\n{tail or '(none)'}\nRaise the request's timeout or "
        "memory limit if the checkpoint is large; otherwise report the lines above.",
        reason=reason,
        log_tail=tail,
    )


def _call(
    step: str, log: Path, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, int] | ConversionError:
    """Return the function's value with this process's peak memory, or a typed error."""
    import resource

    import torch

    torch.set_num_threads(threads or _count_threads())
    try:
        value = function(*arguments)
    except ConversionError as error:
        settle_lasting(error)
        return error
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        return crash_error(step, f"{type(error).__name__}: {first_line(error)}", log)
    return value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _count_threads() -> int:
    """Return how many threads the environment allows, else one for each usable core."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if first.isdigit() and int(first) > 0:
        return int(first)
    return len(os.sched_getaffinity(0))


def _isolate(log: str) -> None:
    """Give this process its own group and log, and end it with its parent."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    _keep_freed_memory()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _keep_freed_memory() -> None:
    """Let glibc reuse freed activations instead of returning and faulting them in again."""
    # The child is thrown away soon and its peak is the same: the next layer needs as much again.
    with contextlib.suppress(AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _NEVER)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def _die_with_parent() -> None:
    """Kill this process's group once the parent is gone, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
