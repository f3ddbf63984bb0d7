"""The gate again on what is current: what passes, fails, can't be tried; what is withdrawn."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

import tracefleet
from flows import judge_current as judging
from flows.__main__ import main
from flows.convert import convert
from flows.engine.record import Conversion
from flows.judge_current import Choice, judge_current
from flows.prepare_gate import prepare_gate
from flows.validate_current import validate_current
from tasks.backends.registry import find_backend
from tasks.errors import NumericsMismatchError, PublishConflictError, UnsupportedCheckpointError
from tasks.publish.withdraw import fit_reason
from tasks.report.current import CurrentError, CurrentRow, format_rows, render_rows, require_proved
from tasks.request import proof
from tasks.request.conversion import make_request
from tasks.samples.make import Samples
from tasks.steps import Steps
from tests.support.reader_support import example_manifest
from tracefleet.channel import advance, channel_folder, conversion_folder
from tracefleet.errors import WithdrawnError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import Variant
from tracefleet.store.folder import FileStore

TASK = "feature-extraction"
WEIGHT = "model.encoder.layer.0.output.dense.bias"
#: Third-party code on the way: Prefect's server and its dependencies warn about each other.
SERVER_WARNS = [
    pytest.mark.prefect,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


@pytest.fixture
def made(own_checkpoint: Callable[[str], Path], store: FileStore) -> Conversion:
    return make(own_checkpoint("bert"), store)


def make(folder: Path, store: FileStore, **more: Any) -> Conversion:
    fields = {"source": str(folder), "task": TASK, "lengths": [8, 16], "store": store.url}
    return convert(make_request({**fields, **more}))


def judge(store: FileStore, **more: Any) -> list[CurrentRow]:
    return list(judge_current(Choice(store=store.url, **more), Steps))


def contents(store: FileStore) -> dict[str, bytes]:
    return {file.path: store.read(file.path) for file in store.walk("")}


def put_bundle(store: FileStore, made: Manifest, data: bytes) -> None:
    """Let the channel point to the conversion with another bundle, whose digests all fit."""
    folder = conversion_folder(made.source, made.key)
    fits = replace(made.bundle, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    files = [fits if file == made.bundle else file for file in made.files]
    manifest = replace(made, files=tuple(files))
    store.put_over(f"{folder}/{made.bundle.path}", data)
    store.put_over(f"{folder}/manifest.json", manifest.to_bytes())
    channel = channel_folder(made.source, made.variant, "latest")
    advance(store, channel, manifest_digest=manifest.digest, key=manifest.key)


def load_bundle(store: FileStore, made: Manifest) -> Any:
    return torch.jit.load(store.root / conversion_folder(made.source, made.key) / made.bundle.path)


def save_bundle(module: Any) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def change_weight(store: FileStore, made: Manifest) -> None:
    module = load_bundle(store, made)
    with torch.no_grad():
        dict(module.named_parameters())[WEIGHT].add_(1.0)
    put_bundle(store, made, save_bundle(module))


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_what_passes_changes_nothing(checkpoint, store, dtype):
    made = make(checkpoint("bert"), store, dtype=dtype)
    before = contents(store)
    [row] = judge(store, withdraw=True)
    assert (row.state, row.why, row.error, row.withdrawn) == ("passed", "", None, None)
    assert (row.source, row.key) == (made.manifest.source, made.manifest.key)
    assert (row.channel, row.number) == ("latest", 1)
    assert row.seconds > 0
    assert contents(store) == before


def test_nothing_is_traced(made, store, monkeypatch):
    monkeypatch.setattr("tasks.backends.prove.trace_checkpoint", None)
    assert [row.state for row in judge(store)] == ["passed"]


def test_a_wrong_weight_fails_is_withdrawn_and_readers_refuse_it(made, store, capsys):
    change_weight(store, made.manifest)
    tracefleet.open(store, made.manifest.source)  # its digests fit: no reader can tell
    [row] = judge(store)
    assert (row.state, row.error, row.withdrawn) == ("failed", "UnsafeCheckpointError", None)
    tracefleet.open(store, made.manifest.source)  # it was not asked for
    arguments = ["validate", "--current", "--store", store.url, "--withdraw", "--quiet"]
    assert main([*arguments, "--json"]) == 1
    [row] = json.loads(capsys.readouterr().out)
    assert (row["state"], row["number"], row["withdrawn"]) == ("failed", 2, 3)
    versions = find_backend("jit").toolchain()
    with pytest.raises(WithdrawnError) as caught:
        tracefleet.open(store, made.manifest.source)
    told = caught.value.reason
    assert told.startswith(
        f"gate failed with torch {versions.torch}, transformers {versions.transformers} on 20"
    )
    assert "encoder.layer.0.output.dense.bias: expected the bundle to hold" in told
    assert main(arguments) == 0, "what is withdrawn already is no failure a second time"
    out = capsys.readouterr().out
    assert "skipped" in out
    assert "withdrawn already: gate failed with torch" in out


def test_a_wrong_graph_fails_with_its_first_probes(made, store):
    other = make(_change_config(Path(made.manifest.source.removeprefix("file://"))), store)
    wrong = load_bundle(store, other.manifest)
    wrong.load_state_dict(load_bundle(store, made.manifest).state_dict())
    put_bundle(store, made.manifest, save_bundle(wrong))
    [row] = judge(store, sources=(made.manifest.source,), withdraw=True)
    assert (row.state, row.error) == ("failed", "NumericsMismatchError")
    assert "relative error" in row.why
    assert row.withdrawn == 3
    assert sorted(one.state for one in judge(store)) == ["passed", "skipped"], "the control"


def _change_config(folder: Path) -> Path:
    """A copy of a checkpoint with another activation: the same weights, another graph."""
    target = folder.with_name("other")
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "hidden_act": "silu"}))
    return target


def test_a_bundle_that_torch_cannot_load_fails(made, store):
    put_bundle(store, made.manifest, b"no archive of torch")
    [row] = judge(store)
    assert (row.state, row.error) == ("failed", "TraceError")
    assert "expected the saved bundle to load" in row.why


def test_weights_that_another_transformers_names_otherwise_are_no_failure(made, store, monkeypatch):
    old = replace(made.manifest.toolchain, transformers="4.0.0")
    change_weight(store, replace(made.manifest, toolchain=old))
    [row] = judge(store, withdraw=True)
    assert (row.state, row.error, row.withdrawn) == ("untried", "UnsafeCheckpointError", None)


def test_an_input_that_eager_computes_by_now_fails(made, store, monkeypatch):
    def prepare(*arguments: Any) -> Any:
        _, reference = prepare_gate(*arguments)
        proof.check_required(made.manifest, replace(reference, required=frozenset()))
        required = frozenset({"attention_mask"})
        proof.check_required(made.manifest, replace(reference, required=required))

    monkeypatch.setattr("flows.judge_current.prepare_gate", prepare)
    [row] = judge(store)
    assert (row.state, row.error) == ("failed", "NumericsMismatchError")
    assert "got attention_mask, which eager computes" in row.why


# --- what can't be tried -------------------------------------------------------------------------


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


def _changed(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("harm", "says"),
    [(_gone, "expected a folder"), (_changed, "expected commit")],
)
def test_a_source_that_is_gone_or_changed_is_no_verdict(made, store, harm, says):
    harm(Path(made.manifest.source.removeprefix("file://")))
    before = contents(store)
    [row] = judge(store, withdraw=True)
    assert (row.state, row.error, row.withdrawn) == ("untried", "RequestError", None)
    assert says in row.why
    assert contents(store) == before
    tracefleet.open(store, made.manifest.source)


def test_a_hub_source_is_judged_at_its_own_commit(hub, checkpoint, store):
    files = {path.name: path.read_bytes() for path in checkpoint("bert").iterdir()}
    first = hub.push(files)
    fields = {"source": f"hf://{hub.repo}", "task": TASK, "lengths": [8], "store": store.url}
    assert convert(make_request(fields)).manifest.commit == first
    hub.push({**files, "config.json": files["config.json"] + b"\n"})
    assert [row.state for row in judge(store)] == ["passed"], "wherever the branch is now"
    del hub.commits[first]
    [row] = judge(store, withdraw=True)
    assert (row.state, row.withdrawn) == ("untried", None)
    assert row.error
    tracefleet.open(store, fields["source"])


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), MemoryError("full")])
def test_a_network_that_fails_is_no_verdict(made, store, monkeypatch, error):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("flows.prepare_gate.resolve", fail)
    [row] = judge(store, withdraw=True)
    assert (row.state, row.error, row.withdrawn) == ("untried", type(error).__name__, None)


def test_a_child_that_crashes_is_no_verdict(made, store):
    [row] = judge(store, withdraw=True, more={"timeout_seconds": 0.01})
    assert (row.state, row.error, row.withdrawn) == ("untried", "ConversionCrashedError", None)


def test_a_damaged_bundle_is_no_verdict_of_the_gate(made, store):
    folder = store.root / conversion_folder(made.manifest.source, made.manifest.key)
    path = folder / "model/1/model.pt"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    [row] = judge(store, withdraw=True)
    assert (row.state, row.error, row.withdrawn) == ("untried", "DigestMismatchError", None)


def test_a_conversion_of_another_recipe_is_not_tried(made, store):
    put_bundle(store, replace(made.manifest, recipe=1), b"of another recipe")
    [row] = judge(store, withdraw=True)
    assert (row.state, row.error, row.withdrawn) == ("untried", "RequestError", None)
    assert "recipe: expected 3" in row.why


def test_other_inputs_than_the_bundle_takes_are_not_tried():
    class Facts:
        inputs = ("input_ids",)

    with pytest.raises(UnsupportedCheckpointError, match="which the bundle takes, got input_ids"):
        proof.plan_proof(example_manifest(), Facts(), "cpu", Samples())  # type: ignore[arg-type]


def test_a_channel_that_moves_meanwhile_is_not_withdrawn(made, store, monkeypatch):
    change_weight(store, made.manifest)

    def moved(*_: Any) -> None:
        raise PublishConflictError("another writer published meanwhile")

    monkeypatch.setattr(judging, "withdraw_everywhere", moved)
    [row] = judge(store, withdraw=True)
    assert (row.state, row.withdrawn) == ("failed", None)
    assert row.why.endswith("not withdrawn: another writer published meanwhile")


# --- which ones ----------------------------------------------------------------------------------


def test_one_bad_conversion_stops_no_other(made, checkpoint, store, capsys):
    gone = Path(made.manifest.source.removeprefix("file://"))
    other = make(checkpoint("bert-cls"), store, task="text-classification")
    shutil.rmtree(gone)
    neuron = Variant(task=TASK, backend="neuronx")
    channel = channel_folder(other.manifest.source, neuron, "latest")
    advance(store, channel, manifest_digest="0" * 64, key="0" * 64)
    arguments = ["validate", "--current", "--store", store.url, "--quiet"]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    # Sources come in the order of their slugs, whose digests are those of this machine's folders.
    states = sorted(line.split("  ")[0] for line in lines[:-1])
    assert states == ["could not be tried", "passed", "skipped"]
    assert lines[-1] == "1 passed, 0 failed, 1 could not be tried, 1 skipped"
    name = other.manifest.source
    assert main([*arguments, "--source", name, "--source", name, "--dtype", "float32"]) == 0
    assert "1 passed, 0 failed, 0 could not be tried, 1 skipped" in capsys.readouterr().out
    for more in (["--source", "hf://acme/absent"], ["--task", "fill-mask"], ["--dtype", "int8"]):
        assert main([*arguments, *more]) == 1
        assert "nothing to validate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--current"],
        ["--current", "--store", "s", "--device", "cuda"],
        ["--current", "--store", "s", "--conversion", "x"],
        ["--conversion", "x", "--withdraw"],
        ["--conversion", "x", "--store", "s"],
        [],
    ],
)
def test_options_that_do_not_belong_together_are_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["validate", *arguments])
    assert caught.value.code == 2


def test_a_reason_always_fits_into_an_entry():
    assert fit_reason("a\n  b\x1b[31m") == "a b?[31m"
    long = fit_reason("x" * 600)
    assert (len(long), long[-1]) == (500, "…")


def test_rows_for_people():
    row = CurrentRow(
        source="hf://a/b_c",
        variant="t.jit.float32.b1",
        channel="latest",
        number=3,
        state="failed",
        error="NumericsMismatchError",
        why="a | b",
        withdrawn=4,
    )
    assert row.reason == "NumericsMismatchError: a | b; withdrawn by number 4"
    assert format_rows([row]).splitlines()[0].startswith("failed  hf://a/b_c  t.jit")
    assert r"hf://a/b\_c" in render_rows([row])
    assert r"a \| b" in render_rows([row])
    with pytest.raises(CurrentError, match="0 passed, 1 failed") as caught:
        require_proved([row])
    assert pickle.loads(pickle.dumps(caught.value)).rows == (row,)
    assert require_proved([replace(row, state="skipped")])


# --- the flow ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _server() -> Iterator[None]:
    with (
        prefect_test_harness(server_startup_timeout=240),
        temporary_settings(
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
        ),
    ):
        yield


@pytest.mark.parametrize("_", [pytest.param(None, marks=SERVER_WARNS)])
@pytest.mark.usefixtures("_server")
def test_the_flow_shows_its_rows_and_fails_for_what_fails(made, store, _):
    from prefect.client.orchestration import get_client

    assert [row.state for row in validate_current(store.url)] == ["passed"]
    change_weight(store, made.manifest)
    state = validate_current(store.url, withdraw=True, return_state=True)
    assert state.is_failed()
    with pytest.raises(CurrentError, match="0 passed, 1 failed") as caught:
        state.result()
    assert caught.value.rows[0].withdrawn == 3
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    assert any("| failed |" in artifact["data"] for artifact in artifacts)
    with pytest.raises(WithdrawnError):
        tracefleet.open(store, made.manifest.source)


def test_the_gates_own_error_is_told_whole():
    class Report:
        failures = ("fresh-0 at length 8: x", "fresh-1", "fresh-2", "fresh-3")

    found = judging._describe(NumericsMismatchError("whole", Report()))
    assert found == "fresh-0 at length 8: x; fresh-1; fresh-2"
    assert judging._describe(NumericsMismatchError("two\nlines", None)) == "two"
