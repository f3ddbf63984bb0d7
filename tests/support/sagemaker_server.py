"""The server of SageMaker's containers on loopback: multi-model-server with sagemaker-inference.

A container starts it on ``/opt/ml/model`` with one worker process for each core; here it is one, on
a folder of its own. It runs on Java.
"""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_SECONDS = 90.0
_SETTINGS = """\
enable_envvars_config=true
decode_input_request=false
load_models=ALL
default_workers_per_model=1
default_service_handler=sagemaker_inference.default_handler_service
inference_address=http://127.0.0.1:{inference}
management_address=http://127.0.0.1:{management}
"""


class Server:
    """A running server.

    Attributes:
        port: its port on loopback.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port, self._log = port, log

    def invoke(self, body: bytes, kind: str = "application/json") -> tuple[int, str, bytes]:
        """Return status, reason and body of the answer to ``POST /invocations``."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.reason, answer.read()
        finally:
            connection.close()

    def read_log(self) -> str:
        """Return what it and its worker have said."""
        return self._log.read_text()


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[Server]:
    """Serve an unpacked archive until the block ends; ``folder`` is for the server's own files."""
    if shutil.which("java") is None:
        pytest.skip("multi-model-server needs Java")
    ports = {"inference": _find_port(), "management": _find_port()}
    settings = folder / "mms.properties"
    settings.write_text(_SETTINGS.format(**ports))
    programs = Path(sys.executable).parent
    command = [
        str(programs / "multi-model-server"),
        "--start",
        "--foreground",
        "--model-store",
        "/",
    ]
    command += ["--mms-config", str(settings), "--models", f"model={model}"]
    own = {"PYTHONPATH": str(model / "code"), "OMP_NUM_THREADS": "1", "TEMP": str(folder)}
    own["PATH"] = f"{programs}:{os.environ['PATH']}"
    log = folder / "mms.log"
    with log.open("wb") as told:
        process = subprocess.Popen(
            command, env={**os.environ, **own}, cwd=folder, stdout=told, stderr=told,
            start_new_session=True,
        )  # fmt: skip
    server = Server(ports["inference"], log)
    try:
        _wait(server, process)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def _find_port() -> int:
    """Return a free port below those that systems give by themselves, which the server refuses."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until the worker has answered; the port is open before."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, server.read_log()[-3000:]
        with suppress(OSError, http.client.HTTPException):
            if server.invoke(b'{"inputs": []}')[0] < 500:
                return
        time.sleep(0.2)
    raise AssertionError(server.read_log()[-3000:])
