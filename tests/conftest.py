"""Shared fixtures: tiny checkpoints, an empty cache, and the sample checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.hub_server import Hub, start


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


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real all-MiniLM-L6-v2 checkpoint; downloaded once, digest checked."""
    from examples.sample import ensure_sample

    return ensure_sample()
