"""Shared fixtures: tiny checkpoints, an empty cache, and the sample checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny


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


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real all-MiniLM-L6-v2 checkpoint; downloaded once, digest checked."""
    from examples.sample import ensure_sample

    return ensure_sample()
