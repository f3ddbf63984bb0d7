"""int8: the bundle is the quantised model to the bit, close to float32, and refused otherwise."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tracefleet
from flows.commands.summary import summarise
from flows.convert import convert
from tasks import child
from tasks.child import Limits
from tasks.errors import (
    BackendUnavailableError,
    NumericsMismatchError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from tasks.model import quantise
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.preflight import inspect
from tasks.model.weights import list_tensors
from tasks.publish.find import check_publishable
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tasks.trace.record import trace_checkpoint
from tasks.validate.compute import compute_reference
from tasks.validate.gate import validate_bundle
from tasks.validate.verdict import TOLERANCES
from tests.support import tiny
from tests.support.gate_support import Bench
from tracefleet.manifest import Manifest
from tracefleet.verdict_types import Accuracy

#: Large enough for its weights to outweigh its code.
WIDE = {**tiny.BERT, "hidden_size": 160, "intermediate_size": 640, "num_attention_heads": 4}


@pytest.fixture
def wide(monkeypatch, tmp_path) -> Path:
    kinds = {"bert-wide": ("BertForMaskedLM", "BertConfig", WIDE)}
    monkeypatch.setattr(tiny, "MODELS", {**tiny.MODELS, **kinds})
    return tiny.save("bert-wide", tmp_path)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[str, Manifest]:
    """A store with one int8 conversion, and its manifest."""
    work = tmp_path_factory.mktemp("int8")
    result = convert(_request(tiny.save("bert-mlm", work), work / "store", "fill-mask"))
    return f"file://{work / 'store'}", result.manifest


def _request(folder: Path, store: Path, task: str) -> Any:
    return make_request(
        {
            "source": f"file://{folder}",
            "task": task,
            "lengths": [8, 16],
            "store": f"file://{store}",
            "dtype": "int8",
        }
    )


def _eager(folder: Path, task: str) -> tuple[Any, Any]:
    """The model in float32, and quantised."""
    options = LoadOptions(task=task, dtype="int8")
    exact, quantised = load_eager(folder, options), load_eager(folder, options)
    quantise.quantise(quantised)
    return exact, quantised


def _cosine(one: np.ndarray, two: np.ndarray) -> float:
    a, b = one.ravel().astype(float), two.ravel().astype(float)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _cost(record: Any) -> float:
    """The smallest cosine, of a report or of a manifest's validation."""
    assert isinstance(record.accuracy, Accuracy)
    return record.accuracy.min_cosine


def _bench(folder: Path, tmp_path: Path, task: str, **options: Any) -> Bench:
    return Bench(folder=folder, work=tmp_path / "bench", task=task, dtype="int8", **options)


# --- a whole conversion --------------------------------------------------------------------------


def test_a_tied_decoder_is_converted_and_opened(wide, tmp_path):
    store = tmp_path / "store"
    result = convert(_request(wide, store, "fill-mask"))
    manifest = result.manifest
    assert manifest.variant.label == "fill-mask.jit.int8.b1"
    assert len(manifest.tied_groups) == 2
    assert manifest.validation.negative_controls == ("wrong-weight", "dropped-mask")
    assert manifest.bundle.size < 0.45 * (wide / "model.safetensors").stat().st_size
    accuracy = manifest.validation.accuracy
    assert accuracy is not None
    assert result.report is not None
    assert accuracy == result.report.accuracy
    assert 0.99 < accuracy.min_cosine < 1.0
    assert 0.0 < accuracy.max_rel_error < 0.2
    told = "accuracy quantised against float32 on random inputs: relative error up to"
    assert f"{told} {accuracy.max_rel_error:.2e}" in summarise(result)

    model = tracefleet.open(f"file://{store}", manifest.source, dtype="int8")
    exact, quantised = _eager(wide, "fill-mask")
    ids = torch.randint(5, 250, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids)["logits"]
        assert torch.equal(logits, quantised(ids, torch.ones_like(ids)).logits)
        assert _cosine(logits.numpy(), exact(ids).logits.numpy()) > 0.99


def test_a_conv1d_model_is_converted_and_opened(checkpoint, tmp_path):
    folder, store = checkpoint("gpt2"), tmp_path / "store"
    result = convert(_request(folder, store, "text-generation"))
    assert _cost(result.manifest.validation) > 0.99
    model = tracefleet.open(f"file://{store}", result.manifest.source)
    exact, quantised = _eager(folder, "text-generation")
    assert len(quantise.find_packed_layers(quantised)) == 9  # four in each block, and the head
    rows = [list(range(10, 26)), list(range(40, 51))]
    together = model([*rows])["logits"]
    for row, logits in zip(rows, together, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            expected = exact(ids).logits[0].numpy()
            same = quantised(ids).logits[0].numpy()
        logits = logits[: len(row)]
        assert _cosine(logits, expected) > 0.99
        if len(row) == 16:
            np.testing.assert_array_equal(logits, same)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("albert-mlm", "fill-mask"),  # one layer under several calls
        ("llama", "text-generation"),
        ("t5", "text2text-generation"),  # asks a layer for its weight's dtype
        ("bart-cls", "text-classification"),
    ],
)
def test_the_bundle_is_the_quantised_model_to_the_bit(name, task, checkpoint, tmp_path):
    bench = _bench(checkpoint(name), tmp_path, task)
    report = bench.validate(bench.trace())
    assert report.passed
    assert report.tolerance == TOLERANCES["int8"]
    assert {probe.difference.max_rel for probe in report.probes} == {0.0}
    assert all(v.probes >= 10 for v in report.lengths())
    assert _cost(report) > 0.99


def test_a_real_checkpoint_bears_it(sample, tmp_path):
    bench = _bench(sample, tmp_path, "sentence-similarity", lengths=(16,), batch=1)
    bundle = bench.trace()
    report = bench.validate(bundle)
    assert _cost(report) > 0.98
    assert bundle.size < 0.7 * (sample / "model.safetensors").stat().st_size  # half are embeddings


def test_two_processes_write_the_same_digest(checkpoint, tmp_path):
    folder, options = checkpoint("bert-mlm"), LoadOptions(task="fill-mask", dtype="int8")
    facts = inspect(folder, options, (8, 16))
    digests = set()
    for attempt in ("one", "two"):
        target = tmp_path / attempt / "model.pt"
        target.parent.mkdir()
        outcome = child.run(
            trace_checkpoint, folder, options, facts, (8, 16), 2, target,
            limits=Limits(), log=tmp_path / "log", step="trace",
        )  # fmt: skip
        digests.add(outcome.value.file.sha256)
    assert len(digests) == 1


# --- negative controls ---------------------------------------------------------------------------


def _flip(model: Any) -> None:
    """Turn the sign of one int8 weight."""
    layer = model.bert.encoder.layer[0].attention.self.query
    weight, _ = torch.ops.quantized.linear_unpack(layer.packed)
    values = weight.int_repr().clone()
    values.view(-1)[values.abs().argmax()] *= -1
    layer.packed = quantise.pack(values, weight.q_per_channel_scales())


def test_one_wrong_int8_weight_is_caught_bit_for_bit(checkpoint, tmp_path):
    bench = _bench(checkpoint("bert-mlm"), tmp_path, "fill-mask")
    with pytest.raises(UnsafeCheckpointError, match=r"layer\.0\.attention.*query\.packed\.values"):
        bench.validate(bench.trace(_flip))


def test_one_wrong_int8_weight_is_caught_by_the_probes(checkpoint, tmp_path):
    bench = _bench(checkpoint("bert-mlm"), tmp_path, "fill-mask")
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bench.trace(_flip), bits=False)
    report = caught.value.report
    assert report is not None
    failed = {p.name for p in report.probes if not p.difference.passed}
    assert {"traced-input", "fresh-0"} <= failed


def test_another_scale_is_caught_bit_for_bit(checkpoint, tmp_path):
    def corrupt(model: Any) -> None:
        layer = model.cls.predictions.decoder
        weight, _ = torch.ops.quantized.linear_unpack(layer.packed)
        scales = weight.q_per_channel_scales().clone()
        scales[7] *= 1 + 1e-6  # fbgemm holds float32
        layer.packed = quantise.pack(weight.int_repr(), scales)

    bench = _bench(checkpoint("bert-mlm"), tmp_path, "fill-mask")
    with pytest.raises(UnsafeCheckpointError, match=r"decoder\.packed\.scales"):
        bench.validate(bench.trace(corrupt))


def test_a_layer_that_was_left_in_float32_is_caught_bit_for_bit(checkpoint, tmp_path):
    bench = _bench(checkpoint("bert-mlm"), tmp_path, "fill-mask")

    def corrupt(model: Any) -> None:
        exact = load_eager(bench.folder, bench.options)
        model.cls.predictions.transform.dense = exact.cls.predictions.transform.dense

    with pytest.raises(UnsafeCheckpointError, match=r"transform\.dense\.weight"):
        bench.validate(bench.trace(corrupt))


def test_corrupted_packed_weights_are_restored(checkpoint, tmp_path):
    bench = _bench(checkpoint("bert-mlm"), tmp_path, "fill-mask")
    module = torch.jit.load(bench.trace().path)
    layer = next(iter(quantise.find_packed_layers(module).values()))
    before = {name: tensor.clone() for name, tensor in list_tensors(module).items()}
    with quantise.corrupting_layer(layer, 1.5):
        corrupted = list_tensors(module)
        assert sum(not torch.equal(corrupted[name], before[name]) for name in before) == 2
    after = list_tensors(module)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_gate_that_is_blind_to_packed_weights_is_refused(checkpoint, tmp_path, monkeypatch):
    bench = _bench(checkpoint("bert-mlm"), tmp_path, "fill-mask")
    bundle, reference = bench.trace(), bench.reference()
    monkeypatch.setattr(
        "tasks.validate.controls.corrupting_layer", lambda layer, factor: quantise._forcing_engine()
    )
    with pytest.raises(NumericsMismatchError, match="negative control"):
        validate_bundle(bundle.path, reference)


# --- accuracy ------------------------------------------------------------------------------------


def _compute_strictly(*arguments: Any) -> Any:
    quantise.LEAST_COSINE = 1.0
    return compute_reference(*arguments)


def test_a_model_that_int8_costs_too_much_is_refused(checkpoint, tmp_path):
    store = tmp_path / "store"

    def run(function: Any, *arguments: Any, **options: Any) -> Any:
        chosen = _compute_strictly if options["step"] == "reference" else function
        return child.run(chosen, *arguments, **options)

    with pytest.raises(NumericsMismatchError, match=r"cosine of at least 1 .* got 0\.99"):
        convert(_request(checkpoint("bert-mlm"), store, "fill-mask"), Steps(run=run))
    assert not list(store.rglob("manifest.json"))


def test_the_last_door_reads_the_accuracy_too(published):
    validation = published[1].validation
    check_publishable(validation)
    for cosine in (0.94, float("nan")):
        poor = Accuracy(max_rel_error=0.5, min_cosine=cosine, top1_agreement=0.5)
        with pytest.raises(NumericsMismatchError, match="int8 costs this model too much accuracy"):
            check_publishable(dataclasses.replace(validation, accuracy=poor))


# --- the layer -----------------------------------------------------------------------------------


def _layer(inputs: int, outputs: int, *, bias: bool = True) -> tuple[nn.Linear, Any]:
    torch.manual_seed(inputs)
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
    exact = model[0]
    quantise.quantise(model)
    assert isinstance(exact, nn.Linear)
    return exact, model[0]


@pytest.mark.parametrize("shape", [(1, 1), (31, 7), (64, 96), (385, 130)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_computes_what_its_int8_weights_say(shape, bias):
    exact, layer = _layer(*shape, bias=bias)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    largest = x.abs().amax(-1, keepdim=True)
    steps = (x / largest * 127).round()
    expected = (steps / 127 * largest) @ layer.weight.double().T
    if bias:
        expected += exact.bias.double()
    # A float32 now and then rounds to the other side of a step.
    torch.testing.assert_close(layer(x.float()).double(), expected, atol=1e-2, rtol=0)
    step = exact.weight.abs().amax(1, keepdim=True) / 63
    assert bool(((layer.weight - exact.weight).abs() <= 0.5001 * step).all())


@torch.no_grad()
def test_the_largest_sums_do_not_overflow():
    """Without VNNI two products are added in 16 bits; 8-bit weights as well would not fit."""
    exact, _ = _layer(512, 8, bias=False)
    exact.weight.data.fill_(63.0)
    model = nn.Sequential(exact)
    quantise.quantise(model)
    assert quantise.unpack_weights(model)["0.packed.values"].unique().tolist() == [63]
    assert 2 * 63 * 255 < 2**15 < 2 * 127 * 255
    x = torch.ones(1, 512)
    x[0, 0] = -1.0
    assert model(x).tolist() == [[63.0 * 510] * 8]


#: Of fbgemm's instruction sets.
_AVX2 = 1
_WITHOUT_VNNI = """
import ctypes, sys, torch
library = ctypes.CDLL(f"{torch.__path__[0]}/lib/libtorch_cpu.so")
library._ZN6fbgemm14fbgemmForceIsaENS_10inst_set_tE(int(sys.argv[1]))
from tasks.model.quantise import pack
levels = int(sys.argv[2])
values = torch.full((8, 512), levels, dtype=torch.int8)
packed = pack(values, torch.ones(8).double())
x = torch.ones(1, 512)
got = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1 / 127, 128, packed)
print(float((got - levels * 512).abs().max()) / (levels * 512))
"""


@pytest.mark.parametrize(("levels", "exact"), [(63, True), (127, False)])
def test_the_largest_sums_fit_where_a_cpu_has_no_vnni(levels, exact):
    """In a process that makes fbgemm do without; with 8 bits of weights it is wrong there."""
    command = [sys.executable, "-c", _WITHOUT_VNNI, str(_AVX2), str(levels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if "undefined symbol" in done.stderr:
        pytest.skip("this torch does not let fbgemm's instruction set be chosen")
    assert done.returncode == 0, done.stderr
    error = float(done.stdout)
    assert (error < 1e-6) == exact, error


@torch.no_grad()
def test_a_token_does_not_depend_on_its_neighbours():
    _, layer = _layer(64, 48)
    x = torch.randn(4, 9, 64)
    x[2] *= 1000
    whole = layer(x)
    for row in range(4):
        for token in range(9):
            assert torch.equal(layer(x[row : row + 1, token : token + 1])[0, 0], whole[row, token])


@torch.no_grad()
def test_odd_activations_stay_what_they_are():
    exact, layer = _layer(16, 4)
    assert torch.equal(layer(torch.zeros(1, 16))[0], exact.bias)
    torch.testing.assert_close(
        layer(torch.full((1, 16), 3.0)),
        nn.functional.linear(torch.full((1, 16), 3.0), layer.weight, exact.bias),
    )
    assert bool(layer(torch.full((1, 16), float("nan"))).isnan().all())


def test_a_shared_layer_stays_shared_and_a_hooked_one_is_left_alone():
    shared, hooked = nn.Linear(8, 8), nn.Linear(8, 8)
    hooked.register_forward_pre_hook(lambda module, args: None)
    model = nn.ModuleDict({"one": shared, "two": shared, "three": hooked})
    quantise.quantise(model)
    assert model["one"] is model["two"]
    assert list(quantise.find_packed_layers(model)) == ["one", "two"]
    assert model["three"] is hooked


# --- refusals ------------------------------------------------------------------------------------


def test_a_model_without_linear_layers_is_refused(checkpoint, monkeypatch):
    bare = nn.Sequential(nn.Embedding(4, 4), nn.Conv1d(4, 4, 1))
    with pytest.raises(UnsupportedCheckpointError, match=r"Sequential.*nothing to quantise"):
        quantise.quantise(bare)
    monkeypatch.setattr(quantise, "_find_matrix", lambda layer: None)
    with pytest.raises(UnsupportedCheckpointError, match=r"BertForMaskedLM.*nothing to quantise"):
        inspect(checkpoint("bert-mlm"), LoadOptions(task="fill-mask", dtype="int8"), (8,))


@pytest.fixture
def arm(monkeypatch) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])


@pytest.mark.usefixtures("arm")
def test_a_machine_without_the_engine_can_not_convert(checkpoint):
    with pytest.raises(BackendUnavailableError, match=r"engine fbgemm, got \['qnnpack'\].*x86"):
        inspect(checkpoint("bert-mlm"), LoadOptions(task="fill-mask", dtype="int8"), (8,))


def test_a_machine_without_the_engine_can_not_open(published, request, monkeypatch):
    store, manifest = published
    open_it = functools.partial(tracefleet.open, store, manifest.source)
    assert open_it()
    request.getfixturevalue("arm")
    monkeypatch.setattr("tracefleet.reader.open.open_verified", lambda *_: pytest.fail("read"))
    with pytest.raises(
        tracefleet.errors.BackendUnavailableError, match=r"engine fbgemm, got \['qnnpack'\].*x86"
    ):
        open_it()


def test_a_reader_that_prefers_another_engine_keeps_it(published):
    store, manifest = published
    ids = [[7, 8, 9]]
    outputs = []
    for engine in ("x86", "qnnpack"):
        torch.backends.quantized.engine = engine
        try:
            model = tracefleet.open(store, manifest.source)
            assert torch.backends.quantized.engine == engine
            outputs.append(model(ids)["logits"])
        finally:
            torch.backends.quantized.engine = "x86"
    np.testing.assert_array_equal(*outputs)
