"""A whole conversion on real processes and a real store; and every bad input before it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

import tracefleet
from flows.convert import convert
from tasks import child
from tasks.errors import (
    BackendUnavailableError,
    ConversionCrashedError,
    NumericsMismatchError,
    RequestError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.publish.conversion import publish
from tasks.publish.identity import RECIPE
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tasks.sweep.tiny import Case, build
from tests.support import tiny
from tests.support.gate_support import Bench, blind_to_weights
from tracefleet.errors import ManifestError, StoreError


def _request(
    folder: Path, store: Path, task: str | None = "feature-extraction", **fields: Any
) -> Any:
    return make_request(
        {
            "source": f"file://{folder}",
            "task": task,
            "lengths": [8, 16],
            "store": f"file://{store}",
            **fields,
        }
    )


def _published(store: Path) -> list[Path]:
    """Return what is there for somebody to read: the record of a refusal spares work alone."""
    found = [path for path in store.rglob("*") if path.is_file()]
    return [path for path in found if path.relative_to(store).parts[0] != "refusals"]


def test_the_whole_way_through(checkpoint, tmp_path):
    store = tmp_path / "store"
    result = convert(_request(checkpoint("bert-mlm"), store, "fill-mask"))
    assert not result.fresh
    assert result.report is not None
    assert result.report.passed
    manifest = result.manifest
    assert manifest.variant.label == "fill-mask.jit.float32.b1"
    assert len(manifest.tied_groups) == 2
    assert [f.path for f in manifest.files] == [
        "model/1/model.pt",
        "model/config.json",
        "model/config.pbtxt",
    ]
    assert manifest.validation.verdict == "validated"

    model = tracefleet.open(f"file://{store}", manifest.source, task="fill-mask")
    ids = np.random.default_rng(0).integers(5, 250, (3, 11))
    eager = load_eager(checkpoint("bert-mlm"), LoadOptions(task="fill-mask"))
    with torch.no_grad():
        expected = eager(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model(ids)["logits"], expected, atol=1e-5)


def test_the_task_is_the_one_that_the_checkpoint_names(checkpoint, tmp_path):
    store = tmp_path / "store"
    result = convert(_request(checkpoint("roberta-qa"), store, None))
    assert result.manifest.variant.task == "question-answering"
    again = convert(_request(checkpoint("roberta-qa"), store, "question-answering"))
    assert again.fresh, "the same conversion, asked for by name"


def test_a_model_that_minds_padding_is_never_padded(tmp_path):
    folder = build(Case(model_type="nystromformer", task="fill-mask"), tmp_path / "checkpoint")
    result = convert(_request(folder, tmp_path / "store", "fill-mask", lengths=[16, 32]))
    assert {spec.pad_value for spec in result.manifest.inputs} == {None}
    model = tracefleet.open(f"file://{tmp_path / 'store'}", result.manifest.source)
    ids = np.random.default_rng(0).integers(10, 250, (2, 16))
    mask = np.ones_like(ids)
    mask[1, 11:] = 0
    eager = load_eager(folder, LoadOptions(task="fill-mask"))
    with torch.no_grad():
        expected = eager(torch.tensor(ids), torch.tensor(mask)).logits.numpy()
        shorter = eager(torch.tensor(ids[:, :13])).logits.numpy()
    np.testing.assert_allclose(model(ids, mask)["logits"], expected, atol=1e-4)
    np.testing.assert_allclose(model(ids[:, :13])["logits"], shorter, atol=1e-4)


def test_a_model_that_changes_with_the_length_takes_exact_lengths_alone(tmp_path):
    folder = build(Case(model_type="funnel", task="fill-mask"), tmp_path / "checkpoint")
    result = convert(_request(folder, tmp_path / "store", "fill-mask", lengths=[16, 32]))
    assert result.manifest.general is None
    assert {spec.pad_value for spec in result.manifest.inputs} == {None}
    model = tracefleet.open(f"file://{tmp_path / 'store'}", result.manifest.source)
    with pytest.raises(ValueError, match="expected a length of 16, 32, got 15"):
        model(np.ones((2, 15), dtype=int))


def test_ties_that_padding_decides_are_looked_for(tmp_path):
    """AXK2's sparse attention: one input in a few is off by half, where padding breaks a tie."""
    folder = build(Case(model_type="axk2", task="feature-extraction"), tmp_path / "checkpoint")
    request = _request(folder, tmp_path / "store", "feature-extraction", lengths=[16, 32])
    assert {spec.pad_value for spec in convert(request).manifest.inputs} == {None}
    control = Bench(folder=folder, work=tmp_path / "bench", task="feature-extraction", batch=1)
    control.lengths = (16, 32)
    assert control.validate(control.trace()).passed, "a few inputs show nothing"


def test_the_report_and_the_attestation_are_kept_beside_it(checkpoint, tmp_path):
    store = tmp_path / "store"
    wanted = _request(checkpoint("bert"), store, lengths=[8, 12, 16])
    result = convert(wanted, Steps(run_id="run-1"))
    page = (store / "reports" / "run-1" / "index.html").read_text()
    assert "Validated." in page
    assert "<svg" in page
    (path,) = (store / "attestations").rglob("run-1.json")
    attestation = json.loads(path.read_text())
    assert attestation["manifest"] == result.manifest.digest
    assert set(attestation["latency_eager_ms"]) == {"8", "12", "16"}
    assert "host" not in json.dumps(json.loads(result.manifest.to_bytes()))


def test_a_second_run_reads_no_weights_and_starts_no_child(checkpoint, tmp_path):
    store = tmp_path / "store"
    request = _request(checkpoint("bert"), store)
    first = convert(request)
    before = {p: p.stat().st_mtime_ns for p in _published(store)}

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a published conversion must not be made again")

    class NoWork(Steps):
        """Lets the source be resolved, and nothing else."""

        publish = never

        def here(self, step: str, function: Any, *arguments: Any, **options: Any) -> Any:
            assert step == "resolve"
            return super().here(step, function, *arguments, **options)

    second = convert(request, NoWork(run=never))
    assert second.fresh
    assert second.manifest == first.manifest
    assert {p: p.stat().st_mtime_ns for p in _published(store)} == before


def test_the_manifest_that_came_first_is_the_one_that_is_told(checkpoint, tmp_path):
    """Two machines race; ours finds, while it publishes, a manifest with other rounding errors."""
    store = tmp_path / "store"
    request = _request(checkpoint("bert"), store)

    class Beaten(Steps):
        def publish(
            self, function: Any, store: Any, manifest: Any, files: Any, **where: Any
        ) -> Any:
            publish_other(store, manifest, files, where["channel"])
            return function(store, manifest, files, **where)

    def publish_other(opened: Any, manifest: Any, files: Any, channel: str) -> None:
        first = manifest.validation.lengths[0]
        worse = dataclasses.replace(first, max_abs_error=first.max_abs_error + 1e-9)
        lengths = (worse, *manifest.validation.lengths[1:])
        validation = dataclasses.replace(manifest.validation, lengths=lengths)
        publish(
            opened, dataclasses.replace(manifest, validation=validation), files, channel=channel
        )

    result = convert(request, Beaten(run_id="second"))
    assert result.manifest.digest == result.publication.manifest_digest
    (path,) = (store / "attestations").rglob("second.json")
    assert json.loads(path.read_text())["manifest"] == result.publication.manifest_digest


def test_two_stores_get_the_same_manifest(checkpoint, tmp_path):
    one = convert(_request(checkpoint("gpt2"), tmp_path / "one", "text-generation"))
    two = convert(_request(checkpoint("gpt2"), tmp_path / "two", "text-generation"))
    assert one.manifest.digest == two.manifest.digest


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": [8, 24]},
        {"batch": 2},
        {"dtype": "bfloat16"},
        {"task": "feature-extraction"},
        {"rtol": 2e-5},
    ],
)
def test_what_shapes_a_conversion_changes_its_key(change, checkpoint, tmp_path):
    folder, store = checkpoint("bert-mlm"), tmp_path / "store"
    keys = _keys(
        _request(folder, store, "fill-mask"),
        _request(folder, store, **{"task": "fill-mask", **change}),
    )
    assert keys[0] != keys[1]


@pytest.mark.parametrize("change", [{"threads": 1}, {"timeout_seconds": 77}, {"channel": "next"}])
def test_what_does_not_shape_it_leaves_the_key(change, checkpoint, tmp_path):
    folder, store = checkpoint("bert-mlm"), tmp_path / "store"
    keys = _keys(
        _request(folder, store, "fill-mask"), _request(folder, store, "fill-mask", **change)
    )
    assert keys[0] == keys[1]


def _keys(*requests: Any) -> list[str]:
    from tasks.backends.registry import find_backend
    from tasks.fetch.checkpoint import resolve
    from tasks.request.identify import identify

    return [
        identify(r, resolve(r.source), find_backend(r.backend).toolchain()).key for r in requests
    ]


def test_other_weights_are_another_key(own_checkpoint, checkpoint, tmp_path):
    from safetensors.torch import save_file

    changed = own_checkpoint("bert")
    tensors = load_file(changed / "model.safetensors")
    tensors["pooler.dense.bias"][0] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    keys = _keys(_request(checkpoint("bert"), tmp_path), _request(changed, tmp_path))
    assert keys[0] != keys[1]


def _steps_with(function_name: str, replacement: Any, **options: Any) -> Steps:
    """Let one child step do something else, everything around it real."""

    def run(function: Any, *arguments: Any, **options: Any) -> Any:
        chosen = replacement if options["step"] == function_name else function
        return child.run(chosen, *arguments, **options)

    return Steps(run=run, **options)


def _segfault(*_: Any) -> None:
    import os
    import signal

    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_crash_while_tracing_is_reported_and_publishes_nothing(checkpoint, tmp_path):
    store = tmp_path / "store"
    request = _request(checkpoint("bert"), store)
    with pytest.raises(ConversionCrashedError, match=r"SIGSEGV[\s\S]*about to crash"):
        convert(request, _steps_with("trace", _segfault))
    assert _published(store) == []
    assert convert(request).report is not None  # and the next run completes


def _hang(*_: Any) -> None:
    import time

    time.sleep(60)


def test_a_hang_ends_at_the_requests_timeout(checkpoint, tmp_path):
    request = _request(checkpoint("bert"), tmp_path / "store", timeout_seconds=2)
    child.warm_up()
    with pytest.raises(ConversionCrashedError, match="timeout after 2 s"):
        convert(request, _steps_with("validate", _hang, limits=request.limits))
    assert _published(tmp_path / "store") == []


def _mistrace(*arguments):
    """Trace a model with one wrong weight, everything else right."""
    import tasks.model.load
    from tasks.trace import record as trace

    original = tasks.model.load.load_eager

    def wrong(*loading: Any) -> Any:
        model = original(*loading)
        model.pooler.dense.weight.data[0] += 0.5
        return model

    setattr(trace, "load_eager", wrong)  # noqa: B010  a child, thrown away
    return trace.trace_checkpoint(*arguments)


def test_a_wrong_bundle_stops_the_line(checkpoint, tmp_path):
    store = tmp_path / "store"
    with pytest.raises(UnsafeCheckpointError, match=r"pooler\.dense\.weight"):
        convert(_request(checkpoint("bert"), store), _steps_with("trace", _mistrace))
    assert _published(store) == []


def _gate_without_bits(bundle: Path, reference: Any) -> Any:
    from tasks.validate.gate import validate_bundle

    return validate_bundle(bundle, blind_to_weights(bundle, reference))


def test_a_numeric_mismatch_keeps_its_report_and_publishes_nothing(checkpoint, tmp_path):
    store = tmp_path / "store"

    def run(function: Any, *arguments: Any, **options: Any) -> Any:
        replaced = {"trace": _mistrace, "validate": _gate_without_bits}
        return child.run(replaced.get(options["step"], function), *arguments, **options)

    with pytest.raises(NumericsMismatchError, match="pooler_output") as caught:
        convert(_request(checkpoint("bert"), store), Steps(run=run, run_id="bad"))
    assert caught.value.report is not None
    assert [p.relative_to(store).as_posix() for p in _published(store)] == [
        "reports/bad/index.html"
    ]
    assert "nothing was published" in (store / "reports/bad/index.html").read_text()


def test_a_folder_that_changes_meanwhile_is_refused(own_checkpoint, tmp_path):
    folder = own_checkpoint("bert")

    def run(function: Any, *arguments: Any, **options: Any) -> Any:
        outcome = child.run(function, *arguments, **options)
        if options["step"] == "validate":
            tiny.edit_config(folder, note="written to while it was converted")
        return outcome

    with pytest.raises(UnsafeCheckpointError, match="changed since"):
        convert(_request(folder, tmp_path / "store"), Steps(run=run))
    assert _published(tmp_path / "store") == []


def test_from_a_hub_to_the_reader(hub, checkpoint, tmp_path):
    """The real hub client against a hub on loopback, then the whole way through."""
    folder, store = checkpoint("bert-cls"), tmp_path / "store"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["README.md"] = b"---\nlicense: apache-2.0\n---\n# Tiny"
    commit = hub.push(files)
    request = _request(folder, store, "text-classification", source="hf://acme/tiny@main")
    manifest = convert(request).manifest
    assert (manifest.source, manifest.commit) == ("hf://acme/tiny", commit)
    assert manifest.license == "apache-2.0"
    model = tracefleet.open(store, "hf://acme/tiny", task="text-classification")
    assert model([[5, 6, 7]])["logits"].shape == (1, 3)
    assert convert(request).fresh

    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1
    hub.push({**files, "model.safetensors": save(weights, {"format": "pt"})})
    moved = convert(request)  # the branch moved: a new commit, a new conversion
    assert not moved.fresh
    assert moved.publication.number == 2


def _share_anyway(*arguments: Any) -> Any:
    """Trace as if the graph of the shortest length served every length."""
    from tasks.trace import compare
    from tasks.trace import record as trace

    setattr(compare, "same_graph", lambda *_: True)  # noqa: B010  a child, thrown away
    return trace.trace_checkpoint(*arguments)


def test_a_shared_graph_that_fails_the_gate_is_traced_for_each_length(checkpoint, tmp_path, caplog):
    """Longformer's program depends on the length; the gate sees it and each length is traced."""
    caplog.set_level("INFO", logger="tasks")
    request = _request(checkpoint("longformer-mlm"), tmp_path, "fill-mask", lengths=[8, 24])
    result = convert(request, _steps_with("trace", _share_anyway_first))
    assert "tracing each" in caplog.text
    assert not result.manifest.same_program
    assert all(v.passed and v.probes >= 10 for v in result.manifest.validation.lengths)


def _share_anyway_first(*arguments: Any) -> Any:
    if arguments[-1]:
        return _share_anyway(*arguments)
    from tasks.trace.record import trace_checkpoint

    return trace_checkpoint(*arguments)


# --- bad input: a typed error before work starts, and the store untouched ------------------------


def _refused(error: type[Exception], match: str, request: Any) -> None:
    store = Path(request.store.removeprefix("file://"))
    with pytest.raises(error, match=match):
        convert(request)
    assert _published(store) == []


def test_a_missing_folder_is_refused(tmp_path):
    _refused(RequestError, "nowhere", _request(tmp_path / "nowhere", tmp_path / "store"))


def test_no_config_is_refused(own_checkpoint, tmp_path):
    folder = own_checkpoint("bert")
    (folder / "config.json").unlink()
    _refused(UnsupportedCheckpointError, r"config\.json", _request(folder, tmp_path / "store"))


def test_an_unknown_architecture_is_refused(own_checkpoint, tmp_path):
    folder = own_checkpoint("bert")
    tiny.edit_config(folder, model_type="bort")
    _refused(UnsupportedCheckpointError, "bort", _request(folder, tmp_path / "store"))


def test_a_missing_head_is_refused(checkpoint, tmp_path):
    request = _request(checkpoint("bert"), tmp_path / "store", "question-answering")
    _refused(UnsupportedCheckpointError, "config.json names BertModel", request)
    request = _request(checkpoint("bert-cls"), tmp_path / "store", "question-answering")
    _refused(UnsupportedCheckpointError, r"qa_outputs\.weight", request)


def test_a_length_over_the_positions_is_refused(checkpoint, tmp_path):
    request = _request(checkpoint("bert"), tmp_path / "store", lengths=[16, 129])
    _refused(RequestError, "at most 128", request)


def test_truncated_weights_are_refused(own_checkpoint, tmp_path):
    folder = own_checkpoint("bert")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _refused(UnsafeCheckpointError, r"model\.safetensors", _request(folder, tmp_path / "store"))


def test_a_pickle_only_checkpoint_is_refused_unless_allowed(own_checkpoint, tmp_path):
    folder = own_checkpoint("bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    _refused(UnsafeCheckpointError, "pickle", _request(folder, tmp_path / "store"))
    allowed = _request(folder, tmp_path / "store", allow_pickle=True)
    assert convert(allowed).report is not None


def test_a_store_that_can_not_be_written_is_refused_first(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        convert(_request(checkpoint("bert"), tmp_path / "file" / "store"))


def test_a_backend_that_is_not_here_is_refused(checkpoint, tmp_path):
    request = _request(checkpoint("bert"), tmp_path / "store", backend="neuronx")
    _refused(BackendUnavailableError, "neuronx", request)


def test_a_full_disk_publishes_nothing_and_a_rerun_completes(checkpoint, tmp_path, monkeypatch):
    import errno

    from tracefleet.store.folder import FileStore

    store = tmp_path / "store"
    request = _request(checkpoint("bert"), store)
    original = FileStore.put_file

    def full(self: Any, path: str, *arguments: Any, **options: Any) -> None:
        if path.endswith("config.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(FileStore, "put_file", full)
        with pytest.raises(OSError, match="No space left"):
            convert(request)
    assert not list(store.rglob("manifest.json"))
    assert not (store / "channels").exists()
    assert not convert(request).fresh
    assert tracefleet.open(f"file://{store}", request.source)


@pytest.mark.parametrize("edit", [(f'"recipe":{RECIPE}', '"recipe":9'), ('"batch":1', '"batch":2')])
def test_an_edited_identity_is_not_taken_for_done(edit, checkpoint, tmp_path):
    store = tmp_path / "store"
    request = _request(checkpoint("bert"), store)
    convert(request)
    (path,) = store.rglob("manifest.json")
    path.write_text(path.read_text().replace(*edit))
    with pytest.raises(ManifestError, match="its contents give"):
        convert(request)


def test_an_edited_verdict_is_not_blessed_by_a_rerun(checkpoint, tmp_path):
    store = tmp_path / "store"
    request = _request(checkpoint("bert"), store)
    convert(request)
    (path,) = store.rglob("manifest.json")
    path.write_text(path.read_text().replace('"max_abs_error":', '"max_abs_error":9'))
    with pytest.raises(tracefleet.DigestMismatchError, match=r"manifest\.json"):
        convert(request)
    assert len(list((store / "channels").rglob("*.json"))) == 1
