"""A real Prefect server with real workers, each a process group of its own on loopback.

The server keeps what it knows when it is restarted: in PostgreSQL where the machine has it, else
in SQLite. Workers run what ``infra/prefect.yaml`` deploys, as on a real host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.s3_servers import free_port

ROOT = Path(__file__).parent.parent.parent
_BIN = Path(sys.executable).parent
_START_SECONDS = 180.0
#: Between two questions: the server works for each.
_POLL_SECONDS = 0.5
#: Most runs in one answer (Prefect's ``PREFECT_API_DEFAULT_LIMIT``).
_PAGE = 200


class Platform:
    """A Prefect server, its workers, and the command line that talks to it."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.env = {
            **os.environ,
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "TRACEFLEET_CACHE": str(folder / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "COLUMNS": "200",
        }
        if database is not None:
            self.env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
        (folder / "tmp").mkdir()
        self._client = httpx.Client(base_url=self.url, timeout=30)
        self._since: str | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []
        self.jit: subprocess.Popen[bytes] | None = None

    def start_server(self) -> None:
        """Start the server, for the first time or again, and wait until it answers."""
        command = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self._server = self._start("server", command, counted=False)
        self.wait(self._answers, _START_SECONDS)

    def stop_server(self) -> None:
        """Stop the server as an operator does."""
        assert self._server is not None
        self._server.terminate()
        self._server.wait(30)

    def start_worker(self, pool: str, *, limit: int = 2, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker of a pool, on a host of its own so to speak, whose variables are given."""
        name = f"{pool}-{len(self._workers)}"
        arguments = ("--pool", pool, "--type", "process", "--limit", str(limit), "--name", name)
        worker = self._start(name, ("prefect", "worker", "start", *arguments), env)
        self._workers.append(worker)
        return worker

    def lose(self, worker: subprocess.Popen[bytes]) -> None:
        """Lose the host of a worker: everything on it is gone at once."""
        family = [psutil.Process(worker.pid)]
        family += family[0].children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        worker.wait()

    def stop(self) -> None:
        """End everything that was started."""
        for process in (*self._workers, self._server):
            if process is not None and process.poll() is None:
                self.lose(process)
        self._client.close()

    def run(self, *command: str, timeout: float = 480) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment to its end."""
        return subprocess.run(
            [str(_BIN / command[0]), *command[1:]],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command beside the test; it is killed if the test leaves it behind."""
        process = subprocess.Popen(
            [str(_BIN / command[0]), *command[1:]],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return what the API answers, to a GET or with a body to a POST."""
        method = "GET" if body is None else "POST"
        answer = self._client.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json()

    def cancel(self, run: str) -> None:
        """Cancel a run as `prefect flow-run cancel` does, which takes seconds to start."""
        state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        self.ask(f"flow_runs/{run}/set_state", state)

    def conversions(self, store: str) -> list[dict[str, Any]]:
        """Return every run of convert-checkpoint into a store, oldest first."""
        runs = self._runs("convert-checkpoint")
        return [run for run in runs if run["parameters"]["request"]["store"] == store]

    def batches(self, store: str) -> list[dict[str, Any]]:
        """Return every run of convert-batch into a store, oldest first."""
        runs = self._runs("convert-batch")
        return [run for run in runs if run["parameters"]["entries"][0]["request"]["store"] == store]

    def _runs(self, flow: str) -> list[dict[str, Any]]:
        wanted: dict[str, Any] = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}
        if self._since is not None:
            wanted["flow_runs"] = {"expected_start_time": {"after_": self._since}}
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", wanted)
        while len(found) % _PAGE == 0 and (
            page := self.ask("flow_runs/filter", {**wanted, "offset": len(found)})
        ):
            found += page
        return found

    def batch_of(self, conversion: str) -> str:
        """Return the identifier of the batch run that a conversion's run belongs to."""
        task = self.ask(f"flow_runs/{conversion}")["parent_task_run_id"]
        return str(self.ask(f"task_runs/{task}")["flow_run_id"])

    def wait(
        self, until: Callable[[], Any], seconds: float = 120, *, every: float = _POLL_SECONDS
    ) -> Any:
        """Return the first true answer, or fail."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if answer := until():
                return answer
            time.sleep(every)
        logs = "\n".join(self._tail(path) for path in sorted(self.folder.glob("*.log")))
        raise AssertionError(f"not within {seconds} s: {until}\n{logs}")

    def forget(self) -> None:
        """Pass over all runs until now, and remove what those that were killed left behind."""
        self._since = datetime.now(UTC).isoformat()
        for left in (self.folder / "tmp").glob("tracefleet-*"):
            shutil.rmtree(left, ignore_errors=True)

    def traced(self) -> psutil.Process | None:
        """Return a child that is tracing at this moment: its log is its standard output."""
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                log = Path(f"/proc/{process.pid}/fd/1").readlink()
                if log.name == "trace.log" and log.is_relative_to(self.folder / "tmp"):
                    return process
        return None

    def process_of(self, run: str) -> psutil.Process:
        """Return the process of a flow run, which its worker started."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
                    return process
        raise AssertionError(f"no process runs {run}")

    def _start(
        self,
        name: str,
        command: tuple[str, ...],
        env: dict[str, str] | None = None,
        *,
        counted: bool = True,
    ) -> subprocess.Popen[bytes]:
        variables = {**self.env, **(env or {})}
        if not counted:  # none of our code runs in it, and coverage costs it a third
            variables = {k: v for k, v in variables.items() if not k.startswith("COVERAGE_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [str(_BIN / command[0]), *command[1:]],
                cwd=self.folder,
                env=variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # A shell's background job has SIGINT ignored, and a worker forwards SIGTERM as it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, self._tail(self.folder / "server.log")
        try:
            return bool(self.ask("health"))
        except httpx.HTTPError:
            return False

    @staticmethod
    def _tail(path: Path) -> str:
        return f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-15:])
