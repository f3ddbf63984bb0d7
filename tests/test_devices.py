"""Bundles follow their device; further devices are proved; readers are told.

There is no GPU where these run. What has no constant device runs on torch's ``meta`` device too,
which computes shapes alone; what has one does not. ``pytest -m real_cuda`` runs the rest on a GPU.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracefleet
from flows.__main__ import main
from flows.convert import convert
from flows.prove_device import prove_device
from tasks.errors import BackendUnavailableError, NumericsMismatchError, RequestError
from tasks.model.facts import LoadOptions
from tasks.model.feeds import example_feed
from tasks.model.preflight import inspect
from tasks.request.conversion import make_request
from tasks.trace import bundle
from tasks.trace.devices import follow_inputs
from tasks.trace.record import trace_checkpoint
from tasks.validate.devices import follows_device
from tests.support.reader_support import example_manifest
from tracefleet import Model
from tracefleet.cli import main as read_command
from tracefleet.devices import DeviceVerdict, verdict_path
from tracefleet.errors import ManifestError, NoSuchVariantError
from tracefleet.manifest_types import Variant
from tracefleet.published import select
from tracefleet.reader.placing import Proof, check_device, find_proof
from tracefleet.store import open_store
from tracefleet.store.folder import FileStore

METHODS = ("forward", "forward_8", "forward_16")
ON_META = [
    ("bert", "feature-extraction"),
    ("deberta-cls", "text-classification"),
    ("longformer-mlm", "fill-mask"),
    ("gpt2", "text-generation"),
    ("t5", "text2text-generation"),
    ("bart", "text2text-generation"),
]


def _trace(folder: Path, task: str, target: Path) -> tuple[Any, Any]:
    """Return the loaded bundle of a checkpoint, and an example of its inputs."""
    options = LoadOptions(task=task)
    facts = inspect(folder, options, (8, 16))
    trace_checkpoint(folder, options, facts, (8, 16), 1, target)
    return torch.jit.load(target), example_feed(facts, batch=1, length=8)


def _move_to_meta(module: Any) -> None:
    # `.to` replaces parameters on meta, which a loaded module does not let it do.
    for one in module.modules():
        tensors = [*one.named_parameters(recurse=False), *one.named_buffers(recurse=False)]
        for name, tensor in tensors:
            one._c.setattr(name, tensor.to("meta"))


def _run_on_meta(module: Any, feed: dict[str, torch.Tensor]) -> set[str]:
    _move_to_meta(module)
    with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        outputs = module(*[tensor.to("meta") for tensor in feed.values()])
    return {output.device.type for output in outputs}


@pytest.mark.parametrize(("name", "task"), ON_META)
def test_a_bundle_runs_where_its_inputs_are(name, task, checkpoint, tmp_path):
    made, feed = _trace(checkpoint(name), task, tmp_path / "model.pt")
    assert follows_device(made, METHODS)
    assert _run_on_meta(made, feed) == {"meta"}


def test_a_bundle_with_constant_devices_does_not(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "follow_inputs", lambda traced: None)
    bound, feed = _trace(checkpoint("bert"), "feature-extraction", tmp_path / "model.pt")
    assert not follows_device(bound, METHODS)
    with pytest.raises(RuntimeError, match="meta"):
        _run_on_meta(bound, feed)


class _Baking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([1.0, 2.0, 3.0]) * torch.arange(3)


def _bake(*, following: bool) -> tuple[Any, Any]:
    """Return a module with a baked tensor as recorded, and as loaded."""
    with warnings.catch_warnings():
        # Of tensors that become constants: that is what is tried.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_Baking(), torch.ones(3))
    if following:
        follow_inputs(traced)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return traced, torch.jit.load(buffer)


def test_baked_tensors_follow_too_and_no_bit_changes_on_the_cpu():
    traced, loaded = _bake(following=True)
    x = torch.randn(3)
    assert torch.equal(traced(x), _Baking()(x))
    assert torch.equal(loaded(x), _Baking()(x))
    assert loaded(x.to("meta")).device.type == "meta"
    _, bound = _bake(following=False)
    with pytest.raises(RuntimeError, match="device"):
        bound(x.to("meta"))


def test_a_tensor_that_torch_places_by_itself_binds_a_bundle():
    class Placing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.zeros([x.size(0)])

    class Following(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.zeros([x.size(0)], device=x.device)

    assert not follows_device(torch.jit.script(Placing()), ("forward",))
    assert follows_device(torch.jit.script(Following()), ("forward",))


# --- a further device ----------------------------------------------------------------------------


@pytest.fixture
def made(checkpoint: Callable[[str], Path], tmp_path: Path) -> Any:
    return _convert(checkpoint("bert"), tmp_path)


def _convert(folder: Path, tmp_path: Path, **more: Any) -> Any:
    fields = {"source": str(folder), "task": "feature-extraction", "lengths": [8, 16]}
    return convert(make_request({**fields, "store": str(tmp_path / "store"), **more}))


def _files(made: Any) -> dict[str, bytes]:
    folder = Path(made.publication.url.removeprefix("file://"))
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_device_is_proved_once_beside_the_manifest(made, capsys):
    assert (made.manifest.device, made.manifest.follows_device) == ("cpu", True)
    before = _files(made)
    verdict = prove_device(made.publication.url, "cpu")
    assert verdict.validation.lengths[-1].passed
    assert (verdict.manifest, verdict.distance) == (made.manifest.digest, 0.0)
    assert _files(made) == {**before, "jit-cpu.json": verdict.to_bytes()}
    assert main(["validate", "--conversion", made.publication.url, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("device     cpu: ")
    assert "loading" not in out


def test_a_wrong_artifact_gets_no_verdict(made, checkpoint, tmp_path, monkeypatch):
    other = tmp_path / "other.pt"
    _trace(checkpoint("bert"), "feature-extraction", other)
    broken = torch.jit.load(other)
    with torch.no_grad():
        dict(broken.named_parameters())["model.encoder.layer.0.output.dense.bias"].add_(1.0)
    torch.jit.save(broken, other)
    monkeypatch.setattr("flows.prepare_gate.download_bundle", lambda *_: other)
    before = _files(made)
    with pytest.raises(Exception, match=r"bit for bit|does not compute"):
        prove_device(made.publication.url, "cpu")
    assert _files(made) == before


def test_a_verdict_of_another_manifest_is_refused(made):
    verdict = prove_device(made.publication.url, "cpu")
    folder, store = _place(made)
    wrong = dataclasses.replace(verdict, manifest="0" * 64)
    store.put_over(verdict_path(folder, made.manifest, "cpu"), wrong.to_bytes())
    with pytest.raises(ManifestError, match=r"manifest expected .* got 0000"):
        prove_device(made.publication.url, "cpu")
    store.put_over(verdict_path(folder, made.manifest, "cpu"), b"{")
    with pytest.raises(ManifestError, match="expected JSON"):
        prove_device(made.publication.url, "cpu")


def test_a_report_that_failed_is_never_published(made, monkeypatch):
    monkeypatch.setattr("tasks.publish.devices.check_publishable", _refuse)
    with pytest.raises(NumericsMismatchError):
        prove_device(made.publication.url, "cpu")
    assert "jit-cpu.json" not in _files(made)


def _refuse(_validation: Any) -> None:
    raise NumericsMismatchError("planted", None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has the device")
def test_a_host_without_the_device_says_so(made):
    with pytest.raises(BackendUnavailableError, match="device: expected 'cuda' on this host"):
        prove_device(made.publication.url, "cuda")


@pytest.mark.parametrize("device", ["", "../x", "CUDA", "cuda/0", "x" * 40])
def test_a_device_that_is_none_is_refused(made, device):
    with pytest.raises(RequestError, match="device: expected cpu, cuda"):
        prove_device(made.publication.url, device)
    with pytest.raises(ValueError, match="device: expected cpu, cuda"):
        check_device(made.manifest, "here", device)


def test_what_is_no_conversion_is_refused(made, tmp_path):
    with pytest.raises(RequestError, match="expected STORE/conversions/SOURCE/KEY"):
        prove_device(str(tmp_path), "cpu")
    with pytest.raises(NoSuchVariantError, match=r"got no manifest\.json"):
        prove_device(made.publication.url[:-64] + "0" * 64, "cpu")


# --- the reader ----------------------------------------------------------------------------------


def _place(made: Any) -> tuple[str, FileStore]:
    root, _, rest = made.publication.url.removeprefix("file://").partition("/conversions/")
    return f"conversions/{rest}", FileStore(root=Path(root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"follows_device": False}, "bound to cpu, where it was recorded, got device 'cuda'"),
        ({"variant": Variant(task="fill-mask", dtype="int8")}, "int8 runs on x86 CPUs alone"),
        (
            {"variant": Variant(task="fill-mask", backend="neuronx")},
            "run on NeuronCores, got",
        ),
    ],
)
def test_a_reader_refuses_before_it_downloads(changes, message):
    manifest = example_manifest(**changes)
    with pytest.raises(tracefleet.errors.BackendUnavailableError, match=message):
        check_device(manifest, "here", "cuda")
    assert check_device(manifest, "here", None) == "cpu"


def test_a_reader_runs_on_its_device():
    manifest = example_manifest()
    seen: list[str] = []

    class Module:
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            seen.extend(tensor.device.type for tensor in tensors)
            return tuple(torch.zeros(1, device="meta") for _ in manifest.outputs)

    model = Model(manifest, Module(), device="meta", proof=Proof(found=False))  # type: ignore[arg-type]
    outputs = model(torch.tensor([[5, 6, 7]]))
    assert set(seen) == {"meta"}
    assert {value.device.type for value in outputs.values()} == {"meta"}
    assert (model.device, model.proved) == ("meta", False)


def test_a_reader_says_when_a_device_was_never_proved(made, caplog, capsys):
    folder, store = _place(made)
    selection = select(store, made.manifest.source)
    with caplog.at_level(logging.WARNING, logger="tracefleet"):
        assert not find_proof(store, selection, made.manifest, "cuda:1").found
    assert f"never proved on cuda: run `tracefleet validate {store.url}/" in (caplog.text)
    caplog.clear()
    verdict = DeviceVerdict(
        manifest=made.manifest.digest,
        device="cuda",
        name="a GPU",
        toolchain=made.manifest.toolchain,
        validation=made.manifest.validation,
        distance=1e-6,
    )
    store.put_over(verdict_path(folder, made.manifest, "cuda"), verdict.to_bytes())
    assert find_proof(store, selection, made.manifest, "cuda:1").found
    assert find_proof(store, selection, made.manifest, "cpu").found
    assert caplog.text == ""
    assert read_command(["show", store.url, made.manifest.source]) == 0
    shown = capsys.readouterr().out
    assert "proved on cpu, cuda (a GPU, torch 2" in shown
    assert "runs where its inputs are" in shown


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.real_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("name", "task"), ON_META)
def test_a_gpu_computes_what_eager_computes_there(name, task, checkpoint, tmp_path):
    made = _convert(checkpoint(name), tmp_path, task=task)
    verdict = prove_device(made.publication.url, "cuda")
    assert verdict.name == torch.cuda.get_device_name()
    assert verdict.distance < 1e-3
    store = open_store(made.publication.url.partition("/conversions")[0])
    on_cpu = tracefleet.open(store, made.manifest.source)
    on_gpu = tracefleet.open(store, made.manifest.source, device="cuda")
    assert on_gpu.proved
    rows = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]]
    feed = {"input_ids": rows}
    if "decoder_input_ids" in on_cpu.input_names:
        feed["decoder_input_ids"] = rows
    for name, expected in on_cpu(**feed).items():
        torch.testing.assert_close(
            torch.tensor(on_gpu(**feed)[name]), torch.tensor(expected), atol=1e-3, rtol=1e-3
        )
