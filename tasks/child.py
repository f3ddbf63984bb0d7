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
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from tasks.child_main import crash_error, result_path, run_child
from tasks.errors import ConversionError

logger = logging.getLogger(__name__)
R = TypeVar("R")
_POLL_SECONDS = 0.2
#: ``__main__`` is changed while a child starts: one thread at a time.
_starting = threading.Lock()
_stopping = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one child.

    Attributes:
        timeout: Wall seconds before the child's process group is killed.
        memory: Resident bytes of the child's process group before it is killed; None: no limit.
        threads: Torch threads in the child; 0: ``OMP_NUM_THREADS``, or one for each core that this
            process may use.
    """

    timeout: float = 3600.0
    memory: int | None = None
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[R]):
    """What a child returned, and the time and memory it used.

    Attributes:
        value: Result of the function.
        seconds: Wall time, start of the child included.
        peak_bytes: Largest resident size that the child measured of itself.
    """

    value: R
    seconds: float
    peak_bytes: int


def warm_up() -> None:
    """Start the fork server now, so that its imports overlap with other work."""
    _context()
    from multiprocessing import forkserver

    with _starting, _hiding_main():
        forkserver.ensure_running()


def share_cores(jobs: int) -> None:
    """Share the cores among conversions that run at the same time, unless the environment says.

    Two conversions with a thread for each core take longer than one after the other, most of all
    while idle threads spin (measured on two cores: twice the wall time, 2.6 times the CPU).

    Args:
        jobs: Conversions at a time; to be called before the first child starts.
    """
    if jobs > 1:
        cores = len(os.sched_getaffinity(0))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def stop() -> None:
    """End every child that a thread of this process waits for; called at shutdown."""
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
        function: Importable by name; takes and returns plain data and paths, never a module.
        arguments: Arguments of the function, pickled to the child.
        limits: Time, memory and threads.
        log: File that receives the child's stdout and stderr.
        step: Name of the step in messages: ``trace``, ``validate``.

    Raises:
        ConversionCrashedError: The child died, hung, exceeded its memory or raised something
            that is no ``ConversionError``.
        ConversionError: The typed error that the child raised.
    """
    started = time.monotonic()
    receiver, sender = _context().Pipe(duplex=False)
    log.touch()
    process = _context().Process(
        target=run_child, args=(sender, str(log), step, limits.threads, function, arguments)
    )
    with _starting, _hiding_main():
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
def _hiding_main() -> Iterator[None]:
    """Keep multiprocessing from importing the parent's ``__main__`` again in every child."""
    # Under a Prefect worker it is Prefect's engine: seconds of imports that no child needs.
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
            raise crash_error(step, _exit_reason(process.exitcode), log)
        if _stopping.is_set():
            raise crash_error(step, "shutdown of the parent process", log)
        if time.monotonic() > deadline:
            raise crash_error(step, f"timeout after {limits.timeout:g} s", log)
        if limits.memory is not None:
            used = _measure_resident(process.pid)
            if used > limits.memory:
                reason = f"memory limit: {used / 1e6:.0f} MB used of {limits.memory / 1e6:.0f} MB"
                raise crash_error(step, reason, log)


def _receive(receiver: connection.Connection) -> tuple[str, str]:
    """Return the next message, or ``end`` from a child that closed its pipe."""
    try:
        kind, text = receiver.recv()
    except EOFError:
        # A closed pipe counts as ready for ever: the loop would spin until the process is gone.
        receiver.close()
        return "end", ""
    return kind, text


def _read_result(log: Path, step: str) -> tuple[Any, int]:
    """Return the value and the peak that the child left beside its log, or raise its error."""
    try:
        outcome = pickle.loads(result_path(log).read_bytes())  # noqa: S301  our own child's
    except Exception as error:
        raise crash_error(step, f"a result that can't be read: {error}", log) from error
    if isinstance(outcome, ConversionError):
        raise outcome
    value, peak = outcome
    return value, peak


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often the kernel's out-of-memory killer)" if name == "SIGKILL" else ""
        return f"signal {name}{hint}"
    return f"exit code {code} without a result"


def _measure_resident(pid: int | None) -> int:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family)
    except psutil.NoSuchProcess:
        return 0


def _kill_group(process: ForkServerProcess) -> None:
    """Kill the child and all processes it started; harmless if it is gone already."""
    # The child leads its group (os.setsid): a compiler that it started is in it too.
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()
