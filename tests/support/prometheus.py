"""Prometheus on loopback for the length of a test, where the machine has it (Debian's package)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.s3_servers import free_port

_CONFIG = Path(__file__).parent.parent.parent / "infra" / "prometheus.yml"
_START_SECONDS = 30.0


class Prometheus:
    """A server that scrapes one target once a second."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an instant query gives, a row for each series.

        Raises:
            httpx.HTTPStatusError: the expression is wrong.
        """
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus | None]:
    """Run a server of its own on our configuration; yield None where there is no Prometheus."""
    binary = shutil.which("prometheus")
    if binary is None:
        yield None
        return
    port, config = free_port(), folder / "prometheus.yml"
    wanted = yaml.safe_load(_CONFIG.read_text("utf-8"))
    (job,) = wanted["scrape_configs"]
    job |= {"scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
    config.write_text(yaml.safe_dump(wanted))
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    options.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen([binary, *options], stdout=log, stderr=log)
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        _wait_for_scrape(found, server)
        yield found
    finally:
        server.terminate()
        server.wait()


def _wait_for_scrape(found: Prometheus, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if any(row["value"][1] == "1" for row in found.query("up")):
                return
        time.sleep(0.3)
    raise RuntimeError("Prometheus did not scrape its target")
