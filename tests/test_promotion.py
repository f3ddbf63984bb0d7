"""What is checked before a conversion is promoted, and what a person is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from flows.convert import convert
from tasks.errors import NumericsMismatchError
from tasks.publish.channels import promote
from tasks.publish.guard import set_guarded
from tasks.publish.promotion import (
    check_here,
    describe_promotion,
    must_ask,
    points_there,
    require_right,
    select_promoted,
)
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case, build
from tracefleet.check import OTHER, CheckReport
from tracefleet.errors import NoSamplesError, NoSuchVariantError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection
from tracefleet.store.folder import FileStore

TASK = "text-classification"
PRODUCTION = "production"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileStore, Selection, Manifest]:
    """A store with a tiny classifier that has golden samples."""
    root = tmp_path_factory.mktemp("promotion")
    folder = build(Case(model_type="bert", task=TASK), root / "checkpoint")
    fields = {"source": str(folder), "task": TASK, "lengths": [8, 32]}
    convert(make_request({**fields, "store": str(root / "store")}))
    store = FileStore(root=root / "store")
    selection, manifest = select_promoted(store.url, str(folder), channel="latest")
    return store, selection, manifest


def test_what_is_right_here_is_told_with_its_worst_error(published):
    store, selection, manifest = published
    report = check_here(store.url, selection, None)
    require_right(manifest, report)
    told = describe_promotion(store, selection, manifest, report, PRODUCTION)
    assert f"`{manifest.key[:12]}`" in told
    assert "to `production`, which points to nothing" in told
    assert "all as eager computed them; worst error" in told


@pytest.mark.parametrize("fault", ["output", "ids"])
def test_what_differs_here_is_refused_and_told(published, fault: str):
    store, selection, manifest = published
    report = _plant(check_here(store.url, selection, None), fault)
    with pytest.raises(NumericsMismatchError, match=r"got other values of 1: .*Nothing was"):
        require_right(manifest, report)
    told = describe_promotion(store, selection, manifest, report, PRODUCTION)
    assert ("1 DIFFER" in told) == (fault == "output")


def _plant(report: CheckReport, fault: str) -> CheckReport:
    if fault == "ids":
        (name, _), *others = report.tokenizer
        return dataclasses.replace(report, tokenizer=((name, OTHER), *others))
    first, *rest = report.outputs
    wrong = dataclasses.replace(first, error=first.bound * 2)
    return dataclasses.replace(report, outputs=(wrong, *rest))


def test_a_person_is_asked_only_where_a_guarded_channel_would_move(published):
    store, selection, _ = published
    assert not must_ask(store, selection, PRODUCTION), "nobody guards it"
    set_guarded(store, PRODUCTION)
    assert must_ask(store, selection, PRODUCTION)
    assert not points_there(store, selection, PRODUCTION)
    promote(store, selection, to=PRODUCTION, confirmed=True)
    assert not must_ask(store, selection, PRODUCTION), "it is there already"
    assert points_there(store, selection, PRODUCTION)


def test_what_can_not_be_checked_is_refused(published, tmp_path: Path, checkpoint: Any):
    store, _, _ = published
    with pytest.raises(NoSuchVariantError):
        select_promoted(store.url, "hf://org/unknown", channel="latest")
    source = str(checkpoint("bert"))
    fields = {"source": source, "task": "feature-extraction", "lengths": [8]}
    convert(make_request({**fields, "store": str(tmp_path / "store")}))
    where = FileStore(root=tmp_path / "store").url
    selection, _ = select_promoted(where, source, channel="latest")
    with pytest.raises(NoSamplesError):
        check_here(where, selection, None)
