"""A real Triton server on loopback, from the wheel ``nvidia-pytriton``, with a stand-in backend.

The wheel has ``tritonserver`` and its Python backend. Triton takes a folder ``pytorch`` with a
``model.py`` for a backend of that name, so that configurations written for the PyTorch backend run
as they are: the stand-in calls ``torch.jit.load`` on ``model.pt``, as the backend does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.s3_servers import free_port

_WHEEL, _NUMPY = "nvidia-pytriton==0.7.0", "numpy<2"  # its interpreter was built for numpy 1
_SECONDS = 180.0
STAND_IN = """
import json
import pathlib

import torch
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = pathlib.Path(args["model_repository"], args["model_version"])
        self.model = torch.jit.load(folder / "model.pt").eval()
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [one["name"] for one in config["output"]]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = [triton.get_input_tensor_by_name(request, name) for name in self.inputs]
        tensors = [torch.from_numpy(one.as_numpy().copy()) for one in given]
        try:
            with torch.no_grad(), torch.jit.optimized_execution(False):
                found = self.model(*tensors)
        except Exception as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        pairs = zip(self.outputs, found)
        made = [triton.Tensor(name, one.contiguous().numpy()) for name, one in pairs]
        return triton.InferenceResponse(output_tensors=made)
"""


def install_server(folder: Path) -> Path:
    """Install the wheel into a folder, once for a test run; skips where it can't be.

    Returns:
        The environment that its Python backend runs in; the server's package lies in it.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("nvidia-pytriton has a wheel for Linux x86-64 alone")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python3*")) / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    pip += ["--target", str(packages)]
    done = subprocess.run([*pip, _WHEEL, _NUMPY], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{_WHEEL} can't be installed here: {done.stderr.strip()[-200:]}")
    # torch and all the rest are this environment's.
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    _make_backends(folder, packages / "pytriton" / "tritonserver")
    return folder


def _make_backends(folder: Path, server: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    for program in (server / "bin" / "tritonserver", stub):
        program.chmod(0o755)
    backends = folder / "backends"
    (backends / "pytorch").mkdir(parents=True)
    (backends / "pytorch" / "model.py").write_text(STAND_IN)
    shutil.copytree(server / "backends" / "python", backends / "python")
    # A link: its libraries are found beside the file itself.
    (backends / "python" / stub.name).symlink_to(stub)


class Server:
    """A running server.

    Attributes:
        url: its address.
    """

    def __init__(self, url: str, log: Path) -> None:
        self.url, self._log = url, log

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return what the server answers to a GET, or with a body to a POST; None: an empty answer.

        Raises:
            urllib.error.HTTPError: it refuses.
        """
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}/{path}", data=data, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def is_ready(self) -> bool:
        """Whether every model is loaded and warm."""
        with suppress(OSError):
            self.ask("v2/health/ready")
            return True
        return False

    def read_log(self) -> str:
        """Return what it has said."""
        return self._log.read_text()


@contextmanager
def serving(environment: Path, repository: Path, *options: str) -> Iterator[Server]:
    """Serve a model repository until the block ends."""
    (packages,) = (environment / "lib").glob("python3*/site-packages")
    ports = {name: free_port() for name in ("http", "grpc", "metrics")}
    arguments = [f"--model-repository={repository}", f"--backend-directory={environment}/backends"]
    for name, port in ports.items():
        arguments += [f"--{name}-port={port}", f"--{name}-address=127.0.0.1"]
    libraries = f"{packages}/nvidia_pytriton.libs:{sysconfig.get_config_var('LIBDIR')}"
    variables = {
        "PATH": f"{environment}/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": libraries,
        "OMP_NUM_THREADS": "1",
    }
    log = environment / f"server-{ports['http']}.log"
    program = packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    with log.open("wb") as told:
        process = subprocess.Popen(
            [program, *arguments, "--disable-auto-complete-config", *options],
            env={**os.environ, **variables},
            stdout=told,
            stderr=told,
        )
    server = Server(f"http://127.0.0.1:{ports['http']}", log)
    try:
        end = time.monotonic() + _SECONDS
        while not server.is_ready():
            assert process.poll() is None, server.read_log()[-3000:]
            assert time.monotonic() < end, server.read_log()[-3000:]
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(60)
