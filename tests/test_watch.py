"""Hot reload: one conversion serves until the next one is ready, and refused ones never serve."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracefleet
from tests.support.reader_support import SOURCE, VOCABULARY, flip_byte, path_in, publish
from tests.support.reader_support import _saved as save
from tracefleet import Change, NoSuchVariantError, StoreUnavailableError
from tracefleet.channel import advance, channel_folder
from tracefleet.store.folder import FileStore

_SOON = 0.02


class _Constant(torch.nn.Module):
    """Answers with its own number in every output."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor(float(number)))
        self.table = torch.nn.Embedding(VOCABULARY, 64)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.zeros(ids.size(0), ids.size(1), 4) + self.number
        return hidden, torch.zeros(ids.size(0), 4) + self.number


def _publish(store: FileStore, number: int) -> tracefleet.Manifest:
    return publish(store, bundle=save(_Constant(number)), recipe=number)


def _publish_damaged(store: FileStore, number: int) -> None:
    """Let the channel point to a conversion with a wrong byte, as nobody ever saw it whole."""
    bundle = save(_Constant(number))
    manifest = publish(store, bundle=bundle, recipe=number, channel="staging")
    flip_byte(path_in(store, manifest, "model/1/model.pt"))
    latest = channel_folder(SOURCE, manifest.variant, "latest")
    advance(store, latest, manifest_digest=manifest.digest, key=manifest.key)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = FileStore(root=tmp_path / "store")
    _publish(store, 1)
    return store


@pytest.fixture
def watched(store: FileStore) -> Iterator[tracefleet.WatchedModel]:
    with tracefleet.watch(store, SOURCE, every=3600) as model:
        yield model


def _wait(until: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(_SOON)


def _wait_for(model: tracefleet.WatchedModel, number: int) -> None:
    _wait(lambda: model.number == number)


def _answer(model: Any) -> float:
    outputs = model([[1, 2, 3]])
    (answer,) = set(np.concatenate([outputs[0].ravel(), outputs[1].ravel()]).tolist())
    return float(answer)


def test_the_next_conversion_serves_once_the_channel_has_moved(store, watched):
    assert watched.look() is None
    first = watched.model
    manifest = _publish(store, 2)
    assert _answer(watched) == 1
    assert watched.look() == Change(number=2, key=manifest.key)
    assert (_answer(watched), watched.number, watched.manifest) == (2, 2, manifest)
    assert _answer(first) == 1
    assert watched.look() is None


def test_a_refused_one_never_serves_and_is_told_once(store, watched, caplog):
    seen: list[Change] = []
    watched.on_change = seen.append
    _publish_damaged(store, 2)
    watched.look()
    assert _answer(watched) == 1
    assert watched.number == 1
    assert watched.look() is None
    (change,) = seen
    assert change.number == 2
    assert "DigestMismatchError" in str(change.refused)
    assert caplog.text.count("number 2 is refused") == 1
    _publish(store, 3)
    watched.look()
    assert _answer(watched) == 3
    assert [one.refused for one in seen[1:]] == [None]


def test_under_load_no_call_fails_and_none_is_mixed(store):
    failures: list[BaseException] = []
    answers: list[list[float]] = [[] for _ in range(4)]
    stop = threading.Event()
    with tracefleet.watch(store, SOURCE, every=_SOON) as model:

        def call(mine: list[float]) -> None:
            try:
                while not stop.is_set():
                    mine.append(_answer(model))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=call, args=(mine,), daemon=True) for mine in answers]
        for thread in threads:
            thread.start()
        try:
            for number in (2, 3):
                _publish(store, number)
                _wait_for(model, number)
            _publish_damaged(store, 4)
            _publish(store, 5)
            _wait_for(model, 5)
            _wait(lambda: all(mine and mine[-1] == 5 for mine in answers))
        finally:
            stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    for mine in answers:
        assert mine == sorted(mine)
        assert set(mine) <= {1.0, 2.0, 3.0, 5.0}


def test_a_store_that_is_away_costs_no_call(store, monkeypatch, caplog):
    with tracefleet.watch(store, SOURCE, every=_SOON) as model:
        with monkeypatch.context() as away:

            def refuse(*_: Any, **__: Any) -> None:
                raise StoreUnavailableError("away")

            away.setattr("tracefleet.reader.watch.select", refuse)
            _wait(lambda: "tried again: StoreUnavailableError" in caplog.text)
            assert _answer(model) == 1
        _publish(store, 2)
        _wait(lambda: model.number == 2)


def test_a_store_that_goes_away_while_the_next_one_is_read_is_asked_again(
    store, watched, monkeypatch
):
    _publish(store, 2)
    with monkeypatch.context() as away:

        def refuse(*_: Any, **__: Any) -> None:
            raise StoreUnavailableError("away")

        away.setattr("tracefleet.reader.watch.open_selected", refuse)
        with pytest.raises(StoreUnavailableError):
            watched.look()
    assert _answer(watched) == 1
    watched.look()
    assert _answer(watched) == 2


def test_a_stream_stays_with_its_conversion(store, watched):
    rows = watched.stream([[1], [2], [3]], window=1)
    assert next(rows)[1][0] == 1
    _publish(store, 2)
    watched.look()
    assert [one[1][0] for one in rows] == [1, 1]
    assert _answer(watched) == 2


def test_metrics_go_on_with_the_next_one(store, watched):
    runs: list[tracefleet.Run] = []
    watched.model.on_run = runs.append
    _publish(store, 2)
    watched.look()
    watched([[1, 2]])
    assert len(runs) == 1


def test_closing_ends_the_thread(store):
    model = tracefleet.watch(store, SOURCE, every=3600)
    model.close()
    assert not any(thread.name == "tracefleet.watch" for thread in threading.enumerate())
    assert _answer(model) == 1


def test_what_makes_no_sense_is_refused_before_anything_is_watched(store):
    with pytest.raises(ValueError, match="every: expected more than 0 seconds, got 0"):
        tracefleet.watch(store, SOURCE, every=0)
    with pytest.raises(NoSuchVariantError):
        tracefleet.watch(store, "hf://acme/other")
    assert not any(thread.name == "tracefleet.watch" for thread in threading.enumerate())
