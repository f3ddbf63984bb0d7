"""Shared fixtures: tiny checkpoints, an empty cache, S3 servers, and the sample checkpoint."""

from __future__ import annotations

import gc
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import s3_servers, tiny
from tests.support.hub_server import Hub, start
from tests.support.order import SLOW, place
from tests.support.s3_servers import S3Server
from tests.support.triton_server import install_server
from tracefleet.store import s3_client

s3_servers.share_service_data()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow files and let the longest begin first."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: place(item.path.stem))


def pytest_collection_finish() -> None:
    """Keep what was imported out of garbage collections: a full one took 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def checkpoint(_saved: Path) -> Callable[[str], Path]:
    """Return the folder of a tiny checkpoint; read only, shared by all tests."""
    return lambda name: tiny.save(name, _saved)


@pytest.fixture
def own_checkpoint(_saved: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a private copy of a tiny checkpoint, to be damaged."""

    def copy(name: str) -> Path:
        target = tmp_path / "checkpoints" / name
        shutil.copytree(tiny.save(name, _saved), target)
        return target

    return copy


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's caches."""
    monkeypatch.setenv("TRACEFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A small hub on loopback that HF_ENDPOINT points to."""
    hub = Hub()
    server = start(hub)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session", autouse=True)
def _no_aws_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads the user's AWS settings, or asks this machine for credentials."""
    none = str(tmp_path_factory.getbasetemp() / "no-aws-settings")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", none)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", none)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Swift, for all tests together: keep to a prefix of your own, or empty it."""
    with s3_servers.swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """moto's server, for all tests together: keep to a prefix of your own, or empty it."""
    with s3_servers.moto() as server:
        yield server


@pytest.fixture(scope="session")
def triton_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of a real Triton server, for all tests together."""
    return install_server(tmp_path_factory.mktemp("pytriton") / "environment")


@pytest.fixture
def aws_env(monkeypatch: pytest.MonkeyPatch) -> Callable[[S3Server], S3Server]:
    """Point the standard AWS environment at a server."""

    def point(server: S3Server) -> S3Server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        return server

    return point


@pytest.fixture
def store_url(
    request: pytest.FixtureRequest, tmp_path: Path, aws_env: Callable[[S3Server], S3Server]
) -> str:
    """An empty store on what the test names (indirectly): file, swift or moto."""
    if request.param == "file":
        return str(tmp_path / "store")
    server = aws_env(request.getfixturevalue(f"{request.param}_server"))
    return f"s3://{server.bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in the smallest parts that S3 takes: small files go in several."""
    monkeypatch.setattr(s3_client, "PART_BYTES", 5 << 20)


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real all-MiniLM-L6-v2 checkpoint; downloaded once, digest checked."""
    from examples.sample import ensure_sample

    return ensure_sample()
