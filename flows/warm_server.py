"""The warm server: it has imported what a flow run needs, and forks a run for every client.

Started by ``flows.warm`` when there is none. It computes nothing and has one thread, so that a fork
of it is as good as a fresh process. It lives as long as runs come: idle for a quarter of an hour
(``TRACEFLEET_WARM_IDLE_SECONDS``), with its code changed on disk, or asked by a newer server when
there are too many, it takes no more runs and ends after its last one.

A client sends its standard streams and a request, and hears ``ready``. It answers with a zero byte:
from then on there is a run, whose end it hears (``exit CODE``). Further bytes are signals for the
run. When a client is gone its run is killed; when the server is gone the kernel kills the runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from flows import warm_key
from flows.warm import GO
from flows.warm_fork import Client, Request

_TICK_SECONDS = 15.0
_REQUEST_SECONDS = 10.0
_REQUEST_BYTES = 16 << 20


class Server:
    """One thread that waits for clients, their signals and the ends of their runs."""

    def __init__(
        self, base: Path, listener: socket.socket, lock: int, stamp: str, preload: ModuleType
    ) -> None:
        self._base, self._lock, self._stamp, self._preload = base, lock, stamp, preload
        self._selector = selectors.DefaultSelector()
        self._clients: set[Client] = set()
        self._used = time.monotonic()
        self._idle = float(os.environ.get("TRACEFLEET_WARM_IDLE_SECONDS", "900"))
        self._tick = min(_TICK_SECONDS, self._idle)
        self._checked = time.monotonic()
        self._listener: socket.socket | None = listener
        self._inode = base.with_suffix(".socket").stat().st_ino
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def serve(self) -> Request | None:
        """Serve until this server is over (None), or until this process is a fork (its request)."""
        while self._listener is not None or self._clients:
            for key, _ in self._selector.select(self._tick):
                handler, *client = key.data if isinstance(key.data, tuple) else (key.data,)
                if client and client[0] not in self._clients:
                    continue  # its other descriptor was read in the same round
                with contextlib.suppress(OSError):  # one client's trouble is not everyone's
                    if (request := handler(*client)) is not None:
                        return request  # type: ignore[no-any-return]
            self._look_around()
        return None

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        if warm_key.peer_user(connection) != os.geteuid():
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection=connection)
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, (self._read, client))

    def _read(self, client: Client) -> Request | None:
        try:
            data, streams, _, _ = socket.recv_fds(
                client.connection, 1 << 16, 3, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError:
            data, streams = b"", []
        client.streams += streams
        if not data:
            self._gone(client)
        elif client.request is None:
            client.received += data
            self._understand(client)
        elif client.pid:
            for number in data:
                with contextlib.suppress(ProcessLookupError):  # it is ending already
                    signal.pidfd_send_signal(client.watch, number)
        elif data == GO:
            return self._fork(client)
        else:
            self._drop(client)
        return None

    def _understand(self, client: Client) -> None:
        """Read a request once all of it is there."""
        received = client.received
        length = struct.unpack("!I", received[:4])[0] if len(received) >= 4 else 0
        if length > _REQUEST_BYTES or len(received) > 4 + length > 4:
            self._refuse(client, "a request that is no request")
        elif len(received) == 4 + length > 4:
            try:
                asked = json.loads(received[4:])
                if asked.get("retire"):
                    self._retire()
                    self._drop(client)
                else:
                    self._agree(client, asked)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._refuse(client, f"a request that can't be read: {error!r}")

    def _agree(self, client: Client, asked: dict[str, Any]) -> None:
        client.request = Request(
            cwd=str(asked["cwd"]),
            environment={str(name): str(value) for name, value in asked["environment"].items()},
            ignored=tuple(int(number) for number in asked["ignored"]),
            streams=tuple(client.streams),
        )
        if (problem := self._problem(client)) is not None:
            self._refuse(client, problem)
        else:
            client.say("ready")

    def _problem(self, client: Client) -> str | None:
        if len(client.streams) != 3:
            return f"expected three streams, got {len(client.streams)}"
        return threads_problem()

    def _fork(self, client: Client) -> Request | None:
        """Make the run; this returns twice, in the run with its request."""
        assert client.request is not None
        client.request.server = os.getpid()
        try:
            if hook := getattr(self._preload, "before_fork", None):
                hook()
            if (problem := self._problem(client)) is not None:
                raise OSError(problem)
            client.pid = os.fork()
        except Exception as error:
            self._refuse(client, f"no fork: {error}")
            return None
        if client.pid == 0:
            try:
                self._leave(client)
            except BaseException:
                os._exit(70)  # never a second server
            return client.request
        self._watch(client)
        return None

    def _watch(self, client: Client) -> None:
        for descriptor in client.streams:
            os.close(descriptor)
        client.streams = []
        client.say(f"started {client.pid}")
        try:
            client.watch = os.pidfd_open(client.pid)
            self._selector.register(client.watch, selectors.EVENT_READ, (self._ended, client))
        except OSError:  # too many files are open here; a run that nobody watches must not be
            os.kill(client.pid, signal.SIGKILL)
            self._ended(client)

    def _leave(self, client: Client) -> None:
        """In the fork: let go of everything that is the server's, but for the run's streams."""
        client.streams = []
        for other in self._clients:
            other.close()
        self._selector.close()
        if self._listener is not None:
            self._listener.close()
        os.close(self._lock)

    def _ended(self, client: Client) -> None:
        _, status = os.waitpid(client.pid, 0)
        client.say(f"exit {os.waitstatus_to_exitcode(status)}")
        self._drop(client)

    def _gone(self, client: Client) -> None:
        """A client is gone: nobody stands for its run any more."""
        if not client.pid:
            self._drop(client)
            return
        self._selector.unregister(client.connection)
        for kill in (os.killpg, os.kill):  # the group is there as soon as the run has made it
            with contextlib.suppress(ProcessLookupError):
                kill(client.pid, signal.SIGKILL)

    def _refuse(self, client: Client, reason: str) -> None:
        client.say(f"refused {reason}")
        self._drop(client)

    def _drop(self, client: Client) -> None:
        for descriptor in (client.connection, client.watch):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(descriptor)
        client.close()
        self._clients.discard(client)
        self._used = time.monotonic()

    def _look_around(self) -> None:
        """Now and then: is this server still wanted?"""
        now = time.monotonic()
        for client in list(self._clients):
            if not client.pid and now - client.since > _REQUEST_SECONDS:
                self._refuse(client, "a client that took too long")
        if not self._clients and now - self._used > self._idle:
            self._retire()
        if now - self._checked > self._tick:
            self._checked = now
            if self._stamp != warm_key.code() or not self._found():
                self._retire()

    def _found(self) -> bool:
        """Whether the socket's file is still this server's."""
        with contextlib.suppress(OSError):
            return self._base.with_suffix(".socket").stat().st_ino == self._inode
        return False

    def _retire(self) -> None:
        """Take no more runs, and give the next server of this name its place."""
        if self._listener is None:
            return
        self._selector.unregister(self._listener)
        if self._found():
            self._base.with_suffix(".socket").unlink()
        self._listener.close()
        self._listener = None
        for suffix in (".log", ".lock"):
            self._base.with_suffix(suffix).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = os.open(os.devnull, os.O_RDONLY)


def threads_problem() -> str | None:
    """Return why this process can't be forked: a lock that a thread holds stays locked for ever."""
    threads = max(threading.active_count(), len(list(Path("/proc/self/task").iterdir())))
    return None if threads == 1 else f"the server has {threads} threads and can't be forked"
