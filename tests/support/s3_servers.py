"""Real S3 servers for the tests, each a process of its own on loopback.

``swift`` is the one we hand to newcomers: it checks signatures and checksums and keeps what it
stores. ``moto`` imitates what only AWS has, such as lifecycle rules, and checks neither; its
conditional writes are made atomic (``tests.support.moto_atomic``).
"""

from __future__ import annotations

import functools
import http.client
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from botocore.loaders import JSONFileLoader, Loader

ROOT = Path(__file__).parent.parent.parent
BUCKET = "tracefleet"
REGION = "us-east-1"
_DELETED_AT_ONCE = 1000  # S3's limit
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


class _ReadOnce(JSONFileLoader):
    """Botocore's descriptions of services, each parsed once in this process.

    Each session reads S3's again, most of the time that a store takes to connect; tests connect a
    thousand times.
    """

    load_file = staticmethod(functools.cache(JSONFileLoader().load_file))


def share_service_data() -> None:
    """Let all sessions of botocore share what they read."""
    Loader.FILE_LOADER_CLASS = _ReadOnce


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where a server is and how to sign in."""

    name: str
    url: str
    access_key: str
    secret_key: str
    region: str = REGION
    bucket: str = BUCKET

    def env(self) -> dict[str, str]:
        """The standard AWS variables that lead to this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def client(self, **config: Any) -> Any:
        """A boto3 client; ``config`` goes to ``botocore.config.Config``. Without retries."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(**({"retries": {"total_max_attempts": 1}} | config)),
        )

    def at(self, url: str) -> S3Server:
        """The same server through a proxy at ``url``."""
        return replace(self, url=url)


@contextmanager
def swift(folder: Path, *, port: int = 0) -> Iterator[S3Server]:
    """Run infra.s3_server over ``folder``, signed in with the very lines that it prints."""
    command = ["-m", "infra.s3_server", "--folder", str(folder), "--port", str(port)]
    with _running([*command, "--bucket", BUCKET]) as (process, log):
        exports = _exports(process, log)
        yield S3Server(
            name="swift",
            url=exports["AWS_ENDPOINT_URL"],
            access_key=exports["AWS_ACCESS_KEY_ID"],
            secret_key=exports["AWS_SECRET_ACCESS_KEY"],
            region=exports["AWS_DEFAULT_REGION"],
        )


@contextmanager
def moto(module: str = "moto_atomic") -> Iterator[S3Server]:
    """Run moto's server, or one around it; it forgets everything when it ends."""
    port = free_port()
    command = ["-m", f"tests.support.{module}", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command) as (process, log):
        _wait_until_it_answers(port, process, log)
        url = f"http://127.0.0.1:{port}"
        server = S3Server(name="moto", url=url, access_key="key", secret_key="secret")
        server.client().create_bucket(Bucket=server.bucket)
        yield server


def objects(client: Any, bucket: str = BUCKET, prefix: str = "") -> dict[str, bytes]:
    """Every object below ``prefix``, with its bytes."""
    return {
        key: client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in _keys(client, bucket, prefix)
    }


def uploads(client: Any, bucket: str = BUCKET, prefix: str = "") -> list[str]:
    """The keys of the multipart uploads that were begun and neither completed nor aborted."""
    return [upload["Key"] for upload in _uploads(client, bucket, prefix)]


def empty(client: Any, bucket: str = BUCKET, prefix: str = "") -> None:
    """Remove every object and every unfinished upload below ``prefix``."""
    for upload in list(_uploads(client, bucket, prefix)):
        client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    keys = [{"Key": key} for key in _keys(client, bucket, prefix)]
    for start in range(0, len(keys), _DELETED_AT_ONCE):
        batch = {"Objects": keys[start : start + _DELETED_AT_ONCE], "Quiet": True}
        assert "Errors" not in client.delete_objects(Bucket=bucket, Delete=batch)


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _keys(client: Any, bucket: str, prefix: str) -> Iterator[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return (item["Key"] for page in pages for item in page.get("Contents", []))


def _uploads(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    return (upload for page in pages for upload in page.get("Uploads", []))


@contextmanager
def _running(arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run Python with ``arguments`` and end it, by its pid, whatever happens."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            yield process, log
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _exports(process: subprocess.Popen[str], log: IO[str]) -> dict[str, str]:
    """Read the ``export NAME=VALUE`` lines; the region's is the last."""
    assert process.stdout
    watchdog = threading.Timer(_START_SECONDS, process.kill)
    watchdog.start()
    found: dict[str, str] = {}
    try:
        for line in process.stdout:
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                found[name] = value
            if "AWS_DEFAULT_REGION" in found:
                return found
    finally:
        watchdog.cancel()
    raise _failed(process, log)


def _wait_until_it_answers(port: int, process: subprocess.Popen[str], log: IO[str]) -> None:
    until = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.05)
        else:
            return
        finally:
            connection.close()
    raise _failed(process, log)


def _failed(process: subprocess.Popen[str], log: IO[str]) -> RuntimeError:
    log.seek(0)
    return RuntimeError(f"{process.args!r} did not start:\n{log.read()}")
