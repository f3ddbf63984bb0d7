"""Model repositories for Triton: what is written, what is refused, and a real server on them."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import time
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracefleet
from flows.convert import convert
from tasks.request.conversion import make_request
from tests.support import tiny
from tests.support.triton_server import Server, serving
from tracefleet.cli import main
from tracefleet.errors import NoFormError
from tracefleet.manifest_types import InputSpec, OutputSpec
from tracefleet.published import load_manifest, select
from tracefleet.store import open_store
from tracefleet.triton.config import Serving, format_labels, make_config
from tracefleet.triton.repository import name_models

LENGTHS = [8, 16]
IDS = InputSpec(name="input_ids", dtype="int64", axes=("batch", "length"), pad_value=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two conversions: a classifier that is published under a name, and vectors in float16."""
    folder = tmp_path_factory.mktemp("triton")
    for name, fields in {
        "bert-cls": {"task": "text-classification", "publish_as": "support"},
        "bert": {"task": "feature-extraction", "dtype": "float16", "publish_as": "vectors"},
    }.items():
        _convert(tiny.save(name, folder), folder / "store", **fields)
    return folder / "store"


def _convert(folder: Path, store: Path, **fields: Any) -> Any:
    asked = {"source": f"file://{folder}", "lengths": LENGTHS, "store": f"file://{store}"}
    return convert(make_request({**asked, "threads": 1, **fields}))


def _pull(store: Path, target: Path, *more: str) -> int:
    return main(["pull", str(store), *more, "--to", str(target), "--as", "triton"])


def _infer(server: Server, model: str, tensors: dict[str, Any], **more: Any) -> Any:
    inputs = []
    for name, array in tensors.items():
        told = {"name": name, "datatype": "INT64", "shape": list(array.shape)}
        inputs.append({**told, "data": array.flatten().tolist()})
    return server.ask(f"v2/models/{model}/infer", {"inputs": inputs, **more})


def _feed(rows: int, tokens: int) -> dict[str, Any]:
    ids = np.random.default_rng(tokens).integers(5, 250, (rows, tokens))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


def test_a_real_server_serves_two_conversions_bit_for_bit(
    store, triton_environment, tmp_path, capsys
):
    repository = tmp_path / "repository"
    assert _pull(store, repository) == 0
    told = capsys.readouterr().out
    assert f"{repository}/support: version 1 of" in told
    with serving(triton_environment, repository, "--model-control-mode=poll") as server:
        assert sorted(one["name"] for one in server.ask("v2/repository/index", {})) == [
            "support",
            "vectors",
        ]
        model = tracefleet.open(store, "support")
        described = server.ask("v2/models/support")
        assert [one["name"] for one in described["outputs"]] == ["logits"]
        for rows, tokens in ((1, 3), (3, 8), (2, 16)):
            feed = _feed(rows, tokens)
            answer = _infer(server, "support", feed)
            got = np.array(answer["outputs"][0]["data"], dtype=np.float32).reshape(rows, 3)
            np.testing.assert_allclose(got, model(**feed).logits, rtol=0, atol=1e-6)
        # Two labels for each row, and the right ones.
        asked = [{"name": "logits", "parameters": {"classification": 2}}]
        feed = _feed(3, 8)
        labels = _infer(server, "support", feed, outputs=asked)["outputs"][0]
        assert labels["shape"] == [3, 2]
        best = model(**feed).logits.argmax(1)
        assert [text.split(":")[1] for text in labels["data"][::2]] == [str(one) for one in best]
        assert all(text.split(":")[2].startswith("LABEL_") for text in labels["data"])
        with pytest.raises(urllib.error.HTTPError) as refused:
            _infer(server, "support", _feed(65, 3))
        assert "must be <= 64" in refused.value.read().decode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            _infer(server, "support", _feed(1, 17))
        assert "expected at most 16" in refused.value.read().decode()
        assert server.is_ready()


def test_a_moved_channel_is_a_new_version_that_a_server_loads(triton_environment, tmp_path):
    folder, repository = tmp_path / "model", tmp_path / "repository"
    first = tiny.save("bert-cls", tmp_path / "first")
    shutil.copytree(first, folder)
    source, where = f"file://{folder}", tmp_path / "store"
    _convert(folder, where, task="text-classification")
    assert _pull(where, repository) == 0
    options = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with serving(triton_environment, repository, *options) as server:
        feed = _feed(1, 5)
        before = _infer(server, "model", feed)
        changed = tiny.build("bert-cls")
        torch.nn.init.ones_(changed.classifier.bias)
        changed.save_pretrained(folder)
        _convert(folder, where, task="text-classification")
        assert _pull(where, repository) == 0
        assert sorted(path.name for path in (repository / "model").iterdir() if path.is_dir()) == [
            "1",
            "2",
        ]
        after = before
        for _ in range(600):
            after = _infer(server, "model", feed)
            if after["model_version"] == "2":
                break
            time.sleep(0.1)
        assert after["model_version"] == "2"
        expected = tracefleet.open(where, source)(**feed).logits
        np.testing.assert_allclose(after["outputs"][0]["data"], expected[0], rtol=0, atol=1e-6)
        assert after["outputs"][0]["data"] != before["outputs"][0]["data"]


def test_what_is_there_is_left_and_a_repeat_changes_nothing(store, tmp_path, capsys):
    repository = tmp_path / "repository"
    assert _pull(store, repository, "support", "--model-name", "mine", "--instances", "3") == 0
    config = repository / "mine" / "config.pbtxt"
    assert 'name: "mine"' in config.read_text()
    assert "kind: KIND_CPU count: 3" in config.read_text()
    assert (repository / "mine" / "labels.txt").read_text() == "LABEL_0\nLABEL_1\nLABEL_2\n"
    bundle = repository / "mine" / "1" / "model.pt"
    before = (bundle.stat().st_mtime_ns, config.stat().st_mtime_ns)
    assert _pull(store, repository, "support", "--model-name", "mine", "--instances", "3") == 0
    assert (bundle.stat().st_mtime_ns, config.stat().st_mtime_ns) == before
    assert sorted(path.name for path in repository.iterdir()) == ["mine"]
    capsys.readouterr()
    assert _pull(store, repository, "vectors", "--model-name", "mine")
    assert "expected a model of" in capsys.readouterr().err
    (repository / "other").mkdir()
    assert _pull(store, repository, "support", "--model-name", "other") == 1
    assert "expected no folder, or a model that" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository"]


def test_another_channels_version_is_never_taken_for_this_one(store, tmp_path, capsys):
    repository = tmp_path / "repository"
    assert _pull(store, repository, "support") == 0
    path = repository / "support" / "1" / "manifest.json"
    raw = json.loads(path.read_bytes())
    raw["key"] = "0" * 64
    path.write_text(json.dumps(raw))
    assert _pull(store, repository, "support") == 1
    assert "of another channel" in capsys.readouterr().err


def test_versions_of_another_channel_are_refused(store, tmp_path, capsys):
    repository = tmp_path / "repository"
    assert _pull(store, repository, "support") == 0
    (repository / "support" / "channel").write_text("staging")
    assert _pull(store, repository, "support") == 1
    assert "those of staging" in capsys.readouterr().err


def test_a_model_keeps_its_name_when_others_come(store, tmp_path):
    repository = tmp_path / "repository"
    assert _pull(store, repository, "support", "--model-name", "mine") == 0
    assert _pull(store, repository) == 0
    assert sorted(path.name for path in repository.iterdir()) == ["mine", "vectors"]


def test_a_model_has_the_name_that_it_was_asked_for_by(store, tmp_path, capsys):
    repository, where = tmp_path / "repository", tmp_path / "store"
    folder = tiny.save("bert-cls", tmp_path)
    for name in ("support", "classifier"):
        _convert(folder, where, task="text-classification", publish_as=name)
        assert _pull(where, repository, name) == 0
        assert f"{repository}/{name}: version 1 of" in capsys.readouterr().out
    assert sorted(path.name for path in repository.iterdir()) == ["classifier", "support"]
    # The source's own numbers are none of either name.
    assert _pull(where, repository, f"file://{folder}", "--model-name", "support") == 1
    assert "got those of channels/support/" in capsys.readouterr().err


def test_a_repository_that_is_a_volume_of_its_own_is_written_too(store, tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    rename = Path.rename

    def rename_within(self: Path, target: Path) -> Path:
        if repository not in self.parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_within)
    assert _pull(store, repository, "support") == 0
    assert sorted(path.name for path in (repository / "support").iterdir()) == [
        "1",
        "channel",
        "config.pbtxt",
        "labels.txt",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--to", "x", "--instances", "3"), "--instances expected --as triton"),
        (("--to", "x", "--as", "triton", "--model-name", "a"), "expected one conversion, got 2"),
        (("--presign",), "expected --to DIR"),
        (("--to", "x", "--gpu"), "--gpu expected --as triton"),
        (("--to", "x", "--model-name", "a"), "--model-name expected --as triton"),
        (("a", "b", "--to", "x", "--as", "triton", "--model-name", "c"), "expected one SOURCE"),
        (("--to", "x", "--as", "triton", "--instances", "0"), "expected at least 1"),
        (("--to", "x", "--as", "triton", "--model-name", "a.b"), "lower-case letters"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(store, capsys, arguments: Any, told: str):
    with pytest.raises(SystemExit) as ended:
        main(["pull", str(store), *arguments, *(() if "--as" in arguments else _as(arguments))])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def _as(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return ("--as", "triton") if "--presign" in arguments else ()


def test_a_gpu_needs_a_verdict(store, tmp_path, capsys):
    assert _pull(store, tmp_path / "repository", "support", "--gpu") == 1
    assert "nothing shows that it is right on a GPU" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()
    text = make_config((IDS,), (), (8,), serving=Serving(gpu=True, instances=1))
    assert "instance_group [ { kind: KIND_GPU count: 1 } ]" in text


def test_bfloat16_has_no_form_in_the_store_either(tmp_path, capsys):
    folder = tiny.save("bert-cls", tmp_path)
    where = tmp_path / "store"
    _convert(folder, where, task="text-classification", dtype="bfloat16")
    assert not list(where.rglob("config.pbtxt"))
    assert list(where.rglob("model.pt"))
    assert _pull(where, tmp_path / "repository") == 1
    told = capsys.readouterr().err
    assert "NoFormError" in told
    assert "bfloat16" in told
    assert not (tmp_path / "repository").exists()


def test_names_are_as_short_as_they_are_different(store):
    opened = open_store(store)
    chosen = [select(opened, "support"), select(opened, "vectors")]
    pairs = [(one, load_manifest(opened, one)) for one in chosen]
    assert [one.name for one in name_models(pairs)] == ["support", "vectors"]
    classifier, vectors = pairs
    half = dataclasses.replace(vectors[1], variant=dataclasses.replace(vectors[1].variant, batch=8))
    same_task = [vectors, (vectors[0], half)]
    assert [one.name for one in name_models(same_task)] == [
        "vectors-feature-extraction-float16-b1",
        "vectors-feature-extraction-float16-b8",
    ]
    with pytest.raises(NoFormError, match="got one twice"):
        name_models([classifier, classifier])


def test_a_configuration_says_fixed_sizes_labels_and_every_length():
    choices = InputSpec(name="ids", dtype="int64", axes=("batch", "4", "length"), pad_value=0)
    score = OutputSpec(name="score", dtype="float32", axes=("batch",))
    text = make_config((choices,), (score,), LENGTHS, ("a", "b"))
    assert 'input [ { name: "ids" data_type: TYPE_INT64 dims: [ 4, -1 ] } ]' in text
    assert 'name: "score" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] }' in text
    assert "labels.txt" not in text
    assert text.count("model_warmup") == 2
    for name in ("DISABLE_OPTIMIZED_EXECUTION", "ENABLE_WEIGHT_SHARING", "INFERENCE_MODE"):
        assert f'key: "{name}" value {{ string_value: "true" }}' in text
    assert "dims: [ 4, 16 ] zero_data: true" in text
    assert format_labels(["a\nb", " c "]) == "a b\nc\n"
    pixels = InputSpec(
        name="pixels", dtype="float32", axes=("batch", "3", "8", "8"), pad_value=None
    )
    assert make_config((pixels,), (score,), (1, 2)).count("model_warmup") == 1
    hostile = dataclasses.replace(score, name='x" } ]')
    with pytest.raises(NoFormError, match="characters"):
        make_config((pixels,), (hostile,), (1,))
