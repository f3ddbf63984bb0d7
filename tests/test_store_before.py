"""What an earlier commit published is read, verified, planned and answered as its own."""

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
from tests.support import store_before
from tests.support.neuron_support import NO_DEVICE, on, store_for_doubles
from tests.support.store_before import CHECKPOINTS, ENTRIES, FLEET, PLAN, STORE
from tracefleet.store import ReadableStore, open_store

SOURCE = "hf://acme/tiny"
PLANNED = {row["name"]: row for row in json.loads(PLAN.read_text())["rows"]}
#: What is measured anew by every gate, on whatever processor it runs.
MEASURED = {"max_abs_error", "max_rel_error", "min_cosine", "top1_agreement"}


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


def test_it_is_planned_as_before(store: str, capsys, same_toolchain):
    with on(**NO_DEVICE):
        plan = _flows(capsys, "plan", str(FLEET), "--store", store)
    assert store_before.without_store(plan) == json.loads(PLAN.read_text())
    assert plan["counts"]["fresh"] == len(ENTRIES) - 1


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_request_is_answered_with_it(entry: str, store: str, capsys, same_toolchain):
    result = _convert(capsys, entry, store)
    expected = "compiled before" if entry == "candidate" else "already published"
    assert result["status"] == expected
    assert result["number"] == 1
    assert result["manifest"] == _manifest(STORE, entry)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_same_request_makes_the_same_bytes(entry: str, tmp_path, capsys, same_toolchain):
    url = store_for_doubles(tmp_path)
    assert _convert(capsys, entry, url)["status"] in ("published", "compiled")
    made = Path(url.removeprefix("file://"))
    assert _digests(made, entry) == _digests(STORE, entry)
    manifests = _manifest(made, entry), _manifest(STORE, entry)
    assert _unmeasured(manifests[0]) == _unmeasured(manifests[1])


def _digests(store: Path, entry: str) -> dict[str, str]:
    """Digest each file; of the double's programs the name alone: they hold lines of our sources."""
    folder = _folder(store, entry) / "model"
    paths = [path for path in folder.rglob("*") if path.is_file()]
    digests = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths
    }
    if entry != "candidate":
        return digests
    return {name: "" if name.endswith(".pt") else digest for name, digest in digests.items()}


def _unmeasured(manifest: dict[str, Any]) -> dict[str, Any]:
    validation = manifest["validation"]
    lengths = [
        {name: value for name, value in length.items() if name not in MEASURED}
        for length in validation["lengths"]
    ]
    accuracy = sorted(validation["accuracy"] or ())
    names = [file["path"] for file in manifest["files"]]  # their digests are compared above
    unmeasured = {**validation, "lengths": lengths, "accuracy": accuracy}
    return {**manifest, "files": names, "validation": unmeasured}


def test_other_bytes_and_other_facts_are_seen(tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(STORE, copy)
    archive = _folder(copy, "float32") / "model" / "1" / "model.pt"
    archive.write_bytes(archive.read_bytes()[:-1] + b"!")
    assert _digests(copy, "float32") != _digests(STORE, "float32")
    with pytest.raises(AssertionError):
        _verify(open_store(f"file://{copy}"))
    manifest = _manifest(STORE, "float32")
    assert _unmeasured(manifest) != _unmeasured({**manifest, "same_program": False})
