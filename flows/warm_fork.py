"""A client of the warm server, and how a fork becomes its run (see ``flows.warm_server``).

What a fresh process would have from its parent, it gets from the client; what it would have from
its own start, it makes anew. From there on it is ``python -m prefect.engine``, exit handlers and
all.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from flows import warm_modules
from flows.warm import FORWARDED

_PR_SET_PDEATHSIG = 1


@dataclass(kw_only=True)
class Request:
    """What a client asks for.

    Attributes:
        cwd: the run's working directory.
        environment: all of the run's environment.
        ignored: signals that the run ignores from its start, as its worker has it.
        streams: its standard input, output and error.
        server: the process that the run is forked from.
    """

    cwd: str
    environment: dict[str, str]
    ignored: tuple[int, ...]
    streams: tuple[int, ...]
    server: int = 0


@dataclass(eq=False, kw_only=True)
class Client:
    """One connection, and the run that it stands for once there is one."""

    connection: socket.socket
    since: float = field(default_factory=time.monotonic)
    received: bytearray = field(default_factory=bytearray)
    streams: list[int] = field(default_factory=list)
    request: Request | None = None
    pid: int = 0
    watch: int = -1

    def say(self, line: str) -> None:
        """Tell the client what became of its request."""
        with contextlib.suppress(OSError):  # a client that is gone is seen when it is read
            self.connection.send(f"{line}\n".encode())

    def close(self) -> None:
        """Let go of all that is the client's."""
        self.connection.close()
        for descriptor in [*self.streams, *([self.watch] if self.watch >= 0 else [])]:
            os.close(descriptor)
        self.streams, self.watch = [], -1


def become(request: Request, module: str, after_fork: Callable[[], object] | None) -> None:
    """Be the run: returns, raises and exits as the module does when it is the main one."""
    os.setsid()
    _die_with(request.server)
    _take(request.streams)
    for number in FORWARDED:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request.ignored else default)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.path[0] = request.cwd  # as `python -m` does
    if (drawn := sys.modules.get("numpy.random")) is not None:
        drawn.seed()  # `random` sees to itself after a fork, and nothing was drawn from torch
    if after_fork is not None:
        after_fork()
    warm_modules.look_up_again()
    _run(module)


def _die_with(server: int) -> None:
    """Leave no run behind that nobody watches: the kernel kills it when the server ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os.kill(os.getpid(), signal.SIGKILL)


def _take(streams: tuple[int, ...]) -> None:
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)


def _run(module: str) -> None:
    # The engine is imported by other modules too, as in every run; runpy finds that remarkable.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
