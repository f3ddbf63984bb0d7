"""Start a warm server: the one process that imports, so that its runs need not.

``flows.warm`` starts it with the lock that says who serves. It says so when it listens; whatever
keeps it from that is the last line that it writes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from flows import warm_key
from flows.warm_fork import become
from flows.warm_server import Server, threads_problem

_MOST = 3  # servers of a user that go on living idle; each holds some 400 MB, its fork server's


def main(arguments: Sequence[str]) -> None:
    """Import, listen, say so, serve; in a fork: be the run."""
    base, lock, up, stamp, module, *preload = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; its clients tell their runs
    modules = [importlib.import_module(name) for name in preload]
    hooks = modules[-1] if modules else ModuleType("nothing")
    if start := getattr(hooks, "before_fork", None):
        start()
    _settle()
    if warm_key.code() != stamp:
        raise SystemExit("the code changed while the server imported it")
    if (problem := threads_problem()) is not None:
        print(problem, file=sys.stderr, flush=True)
        os._exit(1)  # not waiting for them
    listener = _listen(Path(base).with_suffix(".socket"))
    server = Server(Path(base), listener, int(lock), stamp, hooks)
    os.write(int(up), b"u")
    os.close(int(up))
    _retire_others(Path(base))
    request = server.serve()
    if request is not None:
        become(request, module, getattr(hooks, "after_fork", None))


def _listen(path: Path) -> socket.socket:
    """Listen where the lock says that nobody else does: what is there is a dead server's."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(128)
    listener.setblocking(False)
    return listener


def _retire_others(base: Path) -> None:
    """Ask the servers that were started longest ago to end after their runs, if there are many."""
    others = [path for path in base.parent.glob("*.socket") if path.stem != base.name]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[_MOST - 1 :]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(path))
                body = json.dumps({"retire": True}).encode()
                connection.sendall(struct.pack("!I", len(body)) + body)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # died without a word
        except OSError:
            continue


def _settle() -> None:
    """Fork once for nothing: OpenBLAS ends its threads before a fork and needs none here again."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
