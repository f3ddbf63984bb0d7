"""What an earlier recipe published is read, verified, and stale for that reason alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracefleet
from flows.__main__ import main
from tasks.backends.registry import find_backend
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.publish.identity import RECIPE
from tests.support import store_before
from tests.support.neuron_support import NO_DEVICE, on
from tests.support.store_before import CHECKPOINTS, ENTRIES, FLEET, PLAN, STORE
from tracefleet.store import ReadableStore, open_store

SOURCE = "hf://acme/tiny"
PLANNED = {row["name"]: row for row in json.loads(PLAN.read_text())["rows"]}


@pytest.fixture(autouse=True)
def hub(hub):
    store_before.push_checkpoints(hub)
    return hub


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """A copy of the store, which repeats may write reports into."""
    copy = tmp_path_factory.mktemp("before") / "store"
    shutil.copytree(STORE, copy)
    return f"file://{copy}"


@pytest.fixture
def same_toolchain() -> None:
    """Keys hold the versions of what shapes the bytes."""
    with on(**NO_DEVICE):
        for entry in ENTRIES:
            before = _manifest(STORE, entry)["toolchain"]
            now = vars(find_backend(PLANNED[entry]["wanted"]["backend"]).toolchain())
            if now != before:
                pytest.skip(f"{entry}: the store was made with {before}, here is {now}")


def _folder(store: Path, entry: str) -> Path:
    (folder,) = (store / "conversions").glob(f"*/{PLANNED[entry]['key']}")
    return folder


def _manifest(store: Path, entry: str) -> dict[str, Any]:
    (path,) = (path for path in _folder(store, entry).iterdir() if path.suffix == ".json")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def _flows(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json", "--quiet"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _convert(capsys: pytest.CaptureFixture[str], entry: str, store: str) -> dict[str, Any]:
    request = ("--fleet", str(FLEET), "--entry", entry, "--store", store)
    with on(**NO_DEVICE):
        return _flows(capsys, "convert", *request, "--engine", "none")


def test_the_store_holds_what_it_is_kept_for():
    manifests = {entry: _manifest(STORE, entry) for entry in ENTRIES}
    assert manifests["int8"]["validation"]["accuracy"]
    assert {spec["pad_value"] for spec in manifests["exact-lengths"]["inputs"]} == {None}
    same = {entry: manifest["same_program"] for entry, manifest in manifests.items()}
    assert [entry for entry in ENTRIES if not same[entry]] == ["graph-per-length", "candidate"]
    assert manifests["candidate"]["validation"]["verdict"] == "unvalidated-on-device"
    assert [spec["name"] for spec in manifests["embedder"]["outputs"]] == ["sentence_embedding"]


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry != "candidate"])
def test_it_is_read(entry: str, store: str):
    wanted = PLANNED[entry]["wanted"]
    model = tracefleet.open(store, SOURCE, task=wanted["task"], dtype=wanted["dtype"])
    ids = np.random.default_rng(0).integers(10, 250, (2, model.lengths[0]))
    outputs = model(ids)
    options = LoadOptions(task=wanted["task"])
    eager = load_eager(CHECKPOINTS / wanted["revision"], options)
    feed = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(ids.shape).long()}
    with torch.no_grad():
        expected = eager(**feed)
    for name in model.output_names:
        error = np.abs(outputs[name] - expected[name].numpy()).max()
        assert error < (0.2 if wanted["dtype"] == "int8" else 1e-4)


def test_every_file_is_verified(store: str):
    _verify(open_store(store))


def _verify(store: ReadableStore) -> None:
    found = list(tracefleet.find_variants(store))
    assert len(found) == len(ENTRIES)
    for published in found:
        checks = tracefleet.verify(store, published)
        assert [check for check in checks if not check.ok] == []


def test_it_is_stale_for_its_recipe_alone(store: str, capsys, same_toolchain):
    with on(**NO_DEVICE):
        plan = _flows(capsys, "plan", str(FLEET), "--store", store)
    rows = {row["name"]: row for row in plan["rows"]}
    assert rows["candidate"]["state"] == "missing"  # nothing validated is there to be stale
    for entry in set(ENTRIES) - {"candidate"}:
        recipe = _manifest(STORE, entry)["recipe"]
        assert rows[entry]["state"] == "stale"
        assert rows[entry]["why"] == [f"new recipe: {recipe} -> {RECIPE}"]


def test_a_repeat_publishes_the_next_number_and_leaves_it_alone(tmp_path, capsys, same_toolchain):
    copy = tmp_path / "store"
    shutil.copytree(STORE, copy)
    before = _digests(_folder(copy, "float32"))
    result = _convert(capsys, "float32", f"file://{copy}")
    assert (result["status"], result["number"]) == ("published", 2)
    assert _digests(_folder(copy, "float32")) == before
    wanted = PLANNED["float32"]["wanted"]
    of = {"task": wanted["task"], "dtype": wanted["dtype"]}
    new = tracefleet.open(f"file://{copy}", SOURCE, **of)
    old = tracefleet.open(STORE, SOURCE, **of)
    assert (old.manifest.recipe, new.manifest.recipe) == (2, RECIPE)
    ids = np.random.default_rng(1).integers(10, 250, (3, 5))
    for name in old.output_names:
        assert np.allclose(new(ids)[name], old(ids)[name], atol=1e-5)


def _digests(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_other_bytes_are_seen(tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(STORE, copy)
    archive = _folder(copy, "float32") / "model" / "1" / "model.pt"
    archive.write_bytes(archive.read_bytes()[:-1] + b"!")
    with pytest.raises(AssertionError):
        _verify(open_store(f"file://{copy}"))
