"""PostgreSQL on loopback for the length of a test or a benchmark, where the machine has it.

Prefect's server on SQLite answers 503 and holds requests back for its whole timeout once several
flows write at the same time (prefect issues 18934 and 19771); on PostgreSQL it does not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.s3_servers import free_port

_USER = "postgres"  # its server refuses to run as root
_BINARIES = Path("/usr/lib/postgresql")
_START_SECONDS = 30.0


@contextmanager
def postgres() -> Iterator[str | None]:
    """Run a server of its own; yield Prefect's connection URL, None where there is no server."""
    binaries = sorted(_BINARIES.glob("*/bin/postgres"))
    if not binaries or os.geteuid() != 0:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/tmp") as data, _running(binaries[-1], data, port):
        yield f"postgresql+asyncpg://{_USER}@127.0.0.1:{port}/postgres"


@contextmanager
def _running(binary: Path, data: str, port: int) -> Iterator[None]:
    shutil.chown(data, _USER)
    user: dict[str, Any] = {"user": _USER, "group": _USER, "cwd": data}
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    make = [str(binary.with_name("initdb")), "-D", data, "-A", "trust", "--no-sync"]
    subprocess.run(make, check=True, **user, **silent)
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", data]
    command = [str(binary), "-D", data, "-p", str(port), *options]
    server: subprocess.Popen[bytes] = subprocess.Popen(command, **user, **silent)
    try:
        _wait_for(port, server)
        yield
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise RuntimeError("PostgreSQL did not start")
