"""Start a flow run warm: ``python -m flows.warm``, the command of a process worker's runs.

A cold run spends most of its time on imports. This command asks a server that has them done
(``flows.warm_server``; one for each environment and state of the code, started when there is none)
for a fork that becomes the run: with this process's environment, working directory and standard
streams. Then it stands for the run: it hands signals on, and ends as the run ends, by exit code or
by the same signal. Where it dies, the server ends the run.

It is an optimisation and never a reason to fail: whatever goes wrong before the run was forked is
one line on stderr and a cold start. After that a run is never started again. It is turned off by
``TRACEFLEET_WARM=off``. Standard library alone, so that it starts in some 40 ms.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from flows import warm_key
from flows.warm_key import WarmError

#: What runs, and what the server imports for it. Tests run other things.
PROGRAM = ["prefect.engine", "flows.warm_prefect"]
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
GO = b"\0"  # signal numbers share the wire with it, and there is no signal 0
_ANSWER_SECONDS = 20.0
_START_SECONDS = 180.0
_POLL_SECONDS = 0.05
# A server that can't start is tried again after this; until then runs start cold at once.
_RETRY_SECONDS = 60.0
_BOOT = (
    "import sys; root = sys.argv.pop(1); sys.path[0] = root; "
    "from flows.warm_boot import main; main(sys.argv[1:])"
)


def main(arguments: Sequence[str]) -> NoReturn:
    """Be the run: warm if that can be, cold otherwise."""
    program = list(arguments) or PROGRAM
    if os.environ.get("TRACEFLEET_WARM") == "off" or sys.platform != "linux":
        _cold(program)
    try:
        connection = _ask(program)
    except (OSError, WarmError, ValueError) as error:
        _cold(program, error)
    try:
        code = _run(connection)
    except WarmError as error:  # nothing else: there may be a run
        _cold(program, error)
    _end(code)


def _cold(program: list[str], reason: Exception | None = None) -> NoReturn:
    if reason is not None:
        print(f"warm start: {reason}; starting cold", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", program[0]]
    os.execv(sys.executable, command)  # noqa: S606  there is nothing to quote


def _ask(program: list[str]) -> socket.socket:
    """Return a connection to a server that has agreed to fork this run."""
    key = warm_key.identity(program, dict(os.environ))
    deadline = time.monotonic() + _START_SECONDS
    for _ in range(3):  # a server may end itself at the moment that it is asked
        connection = _connect(warm_key.folder() / key, program, deadline)
        with contextlib.suppress(ConnectionError):
            _send(connection)
            if (answer := _line(connection)) == "ready":
                return connection
            if answer:
                raise WarmError(answer)
        connection.close()
    raise WarmError("the server hung up three times")


def _connect(base: Path, program: list[str], deadline: float) -> socket.socket:
    while True:
        try:
            return _dial(base.with_suffix(".socket"))
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        with _lock(base.with_suffix(".lock")) as lock:
            # Whoever has the lock serves, or is about to.
            if lock is not None:
                _start(base, program, lock)
        if time.monotonic() > deadline:
            raise WarmError(f"no server after {_START_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def _dial(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(str(path))
        if (owner := warm_key.peer_user(connection)) != os.geteuid():
            raise WarmError(f"{path}: expected a server of user {os.geteuid()}, got one of {owner}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """Take the right to serve; None where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor if _taken(descriptor, path) else None
    finally:
        os.close(descriptor)


def _taken(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its server may have removed the file since it was opened: then it locks nothing.
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _start(base: Path, program: list[str], lock: int) -> None:
    """Start a server that inherits the lock, and wait until it listens."""
    import subprocess  # most runs find a server

    failed, log = base.with_suffix(".failed"), base.with_suffix(".log")
    if failed.exists() and time.time() - failed.stat().st_mtime < _RETRY_SECONDS:
        raise WarmError(f"the server could not start a moment ago ({_last_line(log)})")
    answer, up = os.pipe()
    with log.open("wb") as output:
        command = [sys.executable, "-c", _BOOT, str(warm_key.ROOT), str(base), str(lock), str(up)]
        subprocess.Popen(
            [*command, warm_key.code(), *program],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=warm_key.start_folder() or base.parent,
            env=warm_key.shared(dict(os.environ)),
            pass_fds=(lock, up),
            start_new_session=True,
        )
        os.close(up)
        if not select.select([answer], [], [], _START_SECONDS)[0]:
            raise WarmError(f"the server did not start in {_START_SECONDS:.0f} s")
        if os.read(answer, 1) != b"u":
            failed.touch()
            raise WarmError(f"the server could not start ({_last_line(log)})")
    os.close(answer)
    failed.unlink(missing_ok=True)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no word from it")


def _send(connection: socket.socket) -> None:
    """Send this process's standard streams, then what else a fork needs of it."""
    request = {
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
        "ignored": [int(n) for n in FORWARDED if signal.getsignal(n) is signal.SIG_IGN],
    }
    body = json.dumps(request).encode()
    socket.send_fds(connection, [struct.pack("!I", len(body))], [0, 1, 2])
    connection.sendall(body)


def _line(connection: socket.socket) -> str:
    """Return the server's next word; empty when it hung up."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (byte := connection.recv(1)):
            return ""
        line += byte
    return line.decode(errors="replace").strip()


def _run(connection: socket.socket) -> int:
    """Let the run begin, stand for it, and return how it ended: as ``Popen.returncode``."""
    connection.settimeout(None)
    asked: list[int] = []

    def forward(number: int, _frame: object) -> None:
        asked.append(number)
        with contextlib.suppress(OSError):
            connection.send(bytes([number]))

    # No signal between the handlers and GO: before GO there is nobody to hand it to.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    with contextlib.suppress(OSError):  # what became of it, the next line says
        connection.sendall(GO)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    return _follow(connection, asked)


def _follow(connection: socket.socket, asked: list[int]) -> int:
    run = 0
    while True:
        try:
            kind, _, text = _line(connection).partition(" ")
        except OSError:
            return _orphaned(run)
        if kind == "started":
            run = int(text)
        elif kind == "exit":
            return int(text)
        elif kind != "refused":
            return _orphaned(run)
        elif asked:  # it was told to end before there was a run
            return -asked[0]
        else:
            raise WarmError(text)


def _orphaned(run: int) -> int:
    """The kernel kills a run with its server; what the run started is killed here."""
    if run:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(run, signal.SIGKILL)
    print("warm start: the server died, the run too; it is not started again", file=sys.stderr)
    return 1


def _end(code: int) -> NoReturn:
    """End as the run did, so that the worker sees what it would have seen."""
    sys.stderr.flush()
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the run has left its own
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
