"""Which torch opens a bundle: an older one is refused before anything is read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tracefleet
from tests.support.reader_support import SOURCE, path_in, publish
from tracefleet import BackendUnavailableError
from tracefleet.manifest import BUNDLE_PATH
from tracefleet.opens_with import OPENS_WITH, allows
from tracefleet.store.folder import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


@pytest.fixture
def never_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        pytest.fail("torch saw an archive that it is too old for")

    monkeypatch.setattr(torch.jit, "load", load)


@pytest.mark.parametrize(
    ("requirement", "installed", "expected"),
    [
        ("torch>=2.6", "2.6.0+cu124", True),
        ("torch>=2.6", "2.13.0", True),
        ("torch>=2.6", "3.0.0", True),
        ("torch>=2.6", "2.5.1", False),
        ("torch>=2.13", "2.6.0", False),
        ("torch>=2.6", "1.13.1", False),
        (None, "2.6.0a0+git1234", True),
        (None, "2.5.0a0+872d972e41", False),
        ("torch>=2.6", "parrot", True),
    ],
)
def test_versions_are_compared_by_numbers(requirement: str, installed: str, expected: bool):
    assert allows(requirement, installed) is expected


@pytest.mark.usefixtures("never_load")
def test_an_older_torch_is_refused_before_anything_is_read(store: FileStore):
    publish(store, opens_with="torch>=99.1")
    with pytest.raises(BackendUnavailableError, match=r"expected torch>=99\.1, got torch 2"):
        tracefleet.open(store, SOURCE)


@pytest.mark.usefixtures("never_load")
def test_a_manifest_that_says_nothing_asks_for_the_oldest_one_that_was_tried(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    assert publish(store).opens_with is None
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(BackendUnavailableError, match=f"expected {OPENS_WITH}, got torch 2.5.1"):
        tracefleet.open(store, SOURCE)


def test_opening_gives_no_warning(store: FileStore):
    publish(store, opens_with=OPENS_WITH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tracefleet.open(store, SOURCE)
        assert model([[1, 2, 3]])["last_hidden_state"].shape == (1, 3, 4)
    # Without the reader's own filter the same bytes do: torch calls the format deprecated.
    with pytest.warns(Warning, match="torch.jit.load"):
        torch.jit.load(path_in(store, model.manifest, BUNDLE_PATH))
