"""Run one step in a child process that is thrown away.

A segfault, an out-of-memory kill or a hang costs that step alone: it becomes a
``ConversionCrashedError`` with the signal and the last lines the child wrote, and the memory goes
back to the machine. Used for every step that loads a model; parents hold no model.

Children come from a fork server that has torch and transformers imported (``tasks.preload``), so
that a fresh process costs about 20 ms. A torch operation can't be interrupted (Prefect's timeouts
do not reach into it): here a deadline and a memory limit act on the whole process group.
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
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from tasks.errors import ConversionCrashedError, ConversionError, first_line

logger = logging.getLogger(__name__)
R = TypeVar("R")
_POLL_SECONDS = 0.2
_TAIL_LINES = 20
_MESSAGE_CHARACTERS = 500
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _NEVER = -1, -3, 1 << 30  # mallopt(3)
_to_parent: connection.Connection | None = None
_starting = threading.Lock()
_stopping = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one child may take.

    Attributes:
        timeout: wall seconds before the child's process group is killed.
        memory: resident bytes of the child's process group before it is killed; None: no limit.
        threads: torch threads in the child; 0: one for each core that this process may use.
    """

    timeout: float = 3600.0
    memory: int | None = None
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[R]):
    """What a child returned, and what it took.

    Attributes:
        value: the function's result.
        seconds: wall time, start of the child included.
        peak_bytes: largest resident size that the child saw of itself.
    """

    value: R
    seconds: float
    peak_bytes: int


def say(message: str) -> None:
    """Report progress: to the parent's log from inside a child, to this log otherwise."""
    if _to_parent is None:
        logger.info(message)
    else:
        # Short enough for the pipe to take it in one piece (PIPE_BUF).
        _to_parent.send(("progress", message[:_MESSAGE_CHARACTERS]))


def warm_up() -> None:
    """Start the fork server now, so that its imports overlap with other work."""
    _context()
    from multiprocessing import forkserver

    with _starting, _no_main():
        forkserver.ensure_running()


def stop() -> None:
    """End every child that a thread of this process waits for; for a process that is ending."""
    _stopping.set()


def run(
    function: Callable[..., R],
    *arguments: Any,
    limits: Limits,
    log: Path,
    step: str,
) -> Outcome[R]:
    """Call a module-level function in a fresh child and return its result.

    Args:
        function: importable by name; takes and returns plain data and paths, never a module.
        arguments: pickled to the child.
        limits: time, memory, threads.
        log: file that receives what the child writes to stdout and stderr.
        step: what the child does, for messages: ``trace``, ``validate``.

    Raises:
        ConversionCrashedError: the child died, hung, outgrew its memory or raised something
            that is no ``ConversionError``.
        ConversionError: whatever typed error the child raised.
    """
    started = time.monotonic()
    receiver, sender = _context().Pipe(duplex=False)
    log.touch()
    process = _context().Process(
        target=_child_main, args=(sender, str(log), step, limits.threads, function, arguments)
    )
    with _starting, _no_main():
        process.start()
    sender.close()
    try:
        value, peak = _await_result(process, receiver, limits, log, step)
    finally:
        _kill_group(process)
        receiver.close()
    return Outcome(value=value, seconds=time.monotonic() - started, peak_bytes=peak)


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.preload"])
    return context


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Keep multiprocessing from importing the parent's ``__main__`` again in every child.

    Under a Prefect worker that module is Prefect's engine: seconds of imports that no child needs.
    """
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name, None) for name in ("__spec__", "__file__")}
    main.__spec__ = None
    if hasattr(main, "__file__"):
        del main.__file__
    try:
        yield
    finally:
        for name, value in kept.items():
            if name == "__spec__" or value is not None:
                setattr(main, name, value)


def _await_result(
    process: ForkServerProcess,
    receiver: connection.Connection,
    limits: Limits,
    log: Path,
    step: str,
) -> tuple[Any, int]:
    deadline = time.monotonic() + limits.timeout
    while True:
        watched: list[Any] = [process.sentinel] if receiver.closed else [receiver, process.sentinel]
        ready = connection.wait(watched, timeout=_POLL_SECONDS)
        if receiver in ready:
            kind, text = _receive(receiver)
            if kind == "done":
                return _read_result(log, step)
            if kind == "progress":
                logger.info(text)
        if process.sentinel in ready and receiver not in ready:
            process.join()
            raise _crashed(step, _exit_reason(process.exitcode), log)
        if _stopping.is_set():
            raise _crashed(step, "an end of its parent", log)
        if time.monotonic() > deadline:
            raise _crashed(step, f"timeout after {limits.timeout:g} s", log)
        if limits.memory is not None and (used := _resident(process.pid)) > limits.memory:
            reason = f"memory limit: {used / 1e6:.0f} MB used of {limits.memory / 1e6:.0f} MB"
            raise _crashed(step, reason, log)


def _receive(receiver: connection.Connection) -> tuple[str, str]:
    """Return the next message; the pipe of a dead child is closed, so that it waits no more."""
    try:
        kind, text = receiver.recv()
    except EOFError:
        receiver.close()
        return "end", ""
    return kind, text


def _read_result(log: Path, step: str) -> tuple[Any, int]:
    """Read what the child left beside its log: a value with its peak, or a typed error."""
    try:
        outcome = pickle.loads(_result_path(log).read_bytes())  # noqa: S301  our own child's
    except Exception as error:
        raise _crashed(step, f"a result that can't be read: {error}", log) from error
    if isinstance(outcome, ConversionError):
        raise outcome
    value, peak = outcome
    return value, peak


def _result_path(log: Path) -> Path:
    return log.with_name(f"{log.name}.result")


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often the kernel's out-of-memory killer)" if name == "SIGKILL" else ""
        return f"signal {name}{hint}"
    return f"exit code {code} without a result"


def _crashed(step: str, reason: str, log: Path) -> ConversionCrashedError:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    return ConversionCrashedError(
        f"{step}: expected the child process to return a result, got {reason}. Nothing was "
        f"published. Last lines it wrote:\n{tail or '(none)'}\nRaise the request's timeout or "
        "memory limit if the checkpoint is large; otherwise report the lines above.",
        reason=reason,
        log_tail=tail,
    )


def _resident(pid: int | None) -> int:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family)
    except psutil.NoSuchProcess:
        return 0


def _kill_group(process: ForkServerProcess) -> None:
    """End the child and whatever it started; harmless when it is gone already."""
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()


def _child_main(
    sender: connection.Connection,
    log: str,
    step: str,
    threads: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    global _to_parent
    _to_parent = sender
    _isolate(log)
    outcome = _outcome(step, Path(log), threads, function, arguments)
    # Results go through a file: a pipe that is cut in the middle of one would stall the parent.
    _result_path(Path(log)).write_bytes(pickle.dumps(outcome))
    sender.send(("done", ""))
    sender.close()


def _outcome(
    step: str, log: Path, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, int] | ConversionError:
    import resource

    import torch

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    try:
        value = function(*arguments)
    except ConversionError as error:
        return error
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        return _crashed(step, f"{type(error).__name__}: {first_line(error)}", log)
    return value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _isolate(log: str) -> None:
    """Own process group, own log, and no life without the parent."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    _keep_freed_memory()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _keep_freed_memory() -> None:
    """Let glibc reuse a freed activation instead of giving it back and faulting it in again.

    The child is thrown away soon, and its peak is the same: what is given back is wanted again in
    the next layer.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _NEVER)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def _die_with_parent() -> None:
    """A killed worker must not leave a child behind that nobody waits for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
