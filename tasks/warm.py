"""Use a fork server that another process started: for runs that are forks (``flows.warm_server``).

multiprocessing lets a forked process use its parent's fork server, but for one thing: it asks the
kernel about its child before every use, and here the server is a sibling. ``tasks.child`` knows
nothing of this.
"""

from __future__ import annotations

import os
import select
import sys
from multiprocessing import forkserver, process, resource_tracker
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent


class _Sibling:
    """The adopted server, watched through a descriptor that tells when it ends."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._watch = os.pidfd_open(server._forkserver_pid)
        self._adopted = True
        self._own = server.ensure_running

    def ensure_running(self) -> None:
        """Keep to the adopted server while it lives and has this run's code."""
        if self._adopted:
            if self._serves():
                resource_tracker.ensure_running()
                return
            self._leave()
        self._own()

    def _serves(self) -> bool:
        alive = not select.select([self._watch], [], [], 0)[0]
        tasks = sys.modules.get("tasks")
        file = getattr(tasks, "__file__", None)
        return alive and (file is None or Path(file).resolve().parent == _HERE)

    def _leave(self) -> None:
        """Forget it, so that multiprocessing starts a server of this process's own."""
        self._adopted = False
        os.close(self._watch)
        os.close(self._server._forkserver_alive_fd)
        self._server._forkserver_alive_fd = None
        self._server._forkserver_address = self._server._forkserver_pid = None


def adopt_server() -> bool:
    """Take over the fork server of the process that this one was forked from.

    Children are then forked from it, die with this process, and meet the same limits as ever. When
    it has died, or when this run's code is elsewhere, this process starts its own.

    Returns:
        False where there is no server to adopt.
    """
    # Forks of one process must not know each other's key.
    process.current_process().authkey = os.urandom(32)
    server: Any = forkserver._forkserver
    if server._forkserver_pid is None:
        return False
    try:
        sibling = _Sibling(server)
    except ProcessLookupError:
        return False
    # The method for its own calls, the function for everybody else's.
    server.ensure_running = forkserver.ensure_running = sibling.ensure_running
    return True
