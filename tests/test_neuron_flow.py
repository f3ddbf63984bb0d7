"""The whole way through on the contract double, from fetch to reader, for Inf2 and Inf1."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tracefleet
from flows.__main__ import main
from flows.convert import convert, validate
from tasks import child
from tasks.errors import (
    BackendUnavailableError,
    CompilationError,
    ConversionCrashedError,
    NumericsMismatchError,
    RequestError,
    UnsafeCheckpointError,
)
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.publish.channels import promote
from tasks.publish.conversion import publish
from tasks.steps import Steps
from tests.support import tiny
from tests.support.neuron_support import NO_DEVICE, names, on, request, store_for_doubles
from tracefleet.errors import (
    InputTooLongError,
    ManifestError,
    NoSuchVariantError,
)
from tracefleet.program_files import FORWARD, find_programs
from tracefleet.published import select
from tracefleet.store import open_writable

LENGTHS = (4, 8, 16, 32)
TASKS = {"qa": "question-answering", "cls": "text-classification", "tok": "token-classification"}
CASES = [f"{model}-{task}" for model in ("bert", "distilbert", "roberta") for task in TASKS]


@pytest.fixture
def store(tmp_path) -> str:
    return store_for_doubles(tmp_path)


def _check_reader(model: tracefleet.Model, folder: Path, task: str, tolerance: float) -> None:
    """Ragged rows of every routed length, against the checkpoint's eager model."""
    eager = load_eager(folder, LoadOptions(task=task))
    rng = np.random.default_rng(0)
    for tokens in (1, 3, 4, 7, 20, 32):
        ids = rng.integers(5, 250, (3, tokens))
        with torch.no_grad():
            expected = eager(torch.tensor(ids))
        found = model(ids)
        for name in model.output_names:
            wanted = expected[name].numpy()
            assert found[name].shape == wanted.shape
            np.testing.assert_allclose(
                found[name], wanted, rtol=0, atol=tolerance * np.abs(wanted).max()
            )
    with pytest.raises(InputTooLongError):
        model(rng.integers(5, 250, (1, 33)))


@pytest.mark.parametrize("name", CASES)
def test_inf2(checkpoint, store, name: str):
    task = TASKS[name.partition("-")[2]]
    with on():
        result = convert(request(checkpoint(name), store, task=task, lengths=LENGTHS, batch=2))
        manifest = result.manifest
        assert result.validated
        assert result.publication.channel == "latest"
        assert [length.length for length in manifest.validation.lengths] == list(LENGTHS)
        assert set(manifest.validation.negative_controls) == {"wrong-weight", "dropped-mask"}
        assert [f.path for f in find_programs(manifest)[FORWARD].values()] == [
            f"model/length-{n}.pt" for n in LENGTHS
        ]
        assert manifest.options["neuronx.auto_cast"] == "none"
        assert "--target inf2" in manifest.options["neuronx.compiler_args"]
        # Never equal to the last bit, as a device's: the gate has something to measure.
        assert all(0 < v.max_rel_error < 1e-4 for v in manifest.validation.lengths)
        model = tracefleet.open(store, manifest.source, backend="neuronx")
        _check_reader(model, checkpoint(name), task, 1e-4)


@pytest.mark.parametrize("name", ["bert-qa", "distilbert-cls", "roberta-tok"])
def test_inf1(checkpoint, store, name: str):
    task = TASKS[name.partition("-")[2]]
    with on(device="inf1"):
        asked = request(checkpoint(name), store, task=task, lengths=LENGTHS, backend="neuron")
        manifest = convert(asked).manifest
        assert manifest.validation.verdict == "validated"
        assert manifest.validation.tolerance.rtol == 1.5e-2  # of fp16 operands
        assert 1e-5 < manifest.validation.lengths[0].max_rel_error < 1.5e-2
        model = tracefleet.open(store, manifest.source, backend="neuron")
        _check_reader(model, checkpoint(name), task, 1.5e-2)


def test_a_cast_has_its_own_tolerance_and_weights_can_be_apart(checkpoint, store):
    asked = request(
        checkpoint("bert-cls"),
        store,
        neuronx={"auto_cast": "matmult", "separate_weights": True},
        lengths=[8],
    )
    with on():
        manifest = convert(asked).manifest
        assert manifest.validation.tolerance.rtol == 8e-2
        assert 1e-4 < manifest.validation.lengths[0].max_rel_error < 8e-2
        model = tracefleet.open(store, manifest.source, backend="neuronx", neuron_cores=(1, 1))
        ids = np.arange(5, 12)
        before = model(ids).logits
        eager = load_eager(checkpoint("bert-cls"), LoadOptions(task="text-classification"))
        head = {"classifier.bias": eager.classifier.bias.detach() + 1}
        model.replace_weights(head)
        np.testing.assert_allclose(model(ids).logits, before + 1, atol=1e-2)


@pytest.mark.parametrize(("dynamic", "other"), [(False, "raises"), (True, "holds")])
def test_what_a_program_does_with_other_batches_is_measured(checkpoint, store, dynamic, other):
    asked = request(
        checkpoint("bert-cls"), store, lengths=[8], batch=2, neuronx={"dynamic_batch": dynamic}
    )
    with on():
        manifest = convert(asked).manifest
        (verdict,) = manifest.validation.lengths
        assert (verdict.other_batches, verdict.other_lengths) == (other, "raises")
        model = tracefleet.open(store, manifest.source, backend="neuronx")
        assert model(np.full((5, 8), 7)).logits.shape == (5, 3)


def test_weights_inside_of_the_programs_are_not_replaced(checkpoint, store):
    with on():
        source = convert(request(checkpoint("bert-cls"), store, lengths=[8])).manifest.source
        model = tracefleet.open(store, source, backend="neuronx")
        with pytest.raises(tracefleet.ArtifactError, match="separate_weights"):
            model.replace_weights({})


def test_a_repeat_compiles_nothing(checkpoint, store):
    asked = request(checkpoint("bert-cls"), store, lengths=[8])
    with on():
        first = convert(asked)
        again = convert(asked, Steps(run=_no_child))
    assert again.fresh
    assert again.manifest == first.manifest


def _no_child(*_: object, step: str, **__: object) -> child.Outcome[None]:
    raise AssertionError(f"a child ran: {step}")


# --- without a device ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(_saved, tmp_path_factory):
    """Compile where there is no device; return the store and what came of it."""
    work = tmp_path_factory.mktemp("compiled")
    store = store_for_doubles(work)
    with pytest.MonkeyPatch.context() as patched, on(**NO_DEVICE):
        patched.setenv("TRACEFLEET_CACHE", str(work / "cache"))
        result = convert(request(tiny.save("bert-cls", _saved), store))
    return store, result


@pytest.fixture
def candidate(compiled, checkpoint, store):
    """Return what was compiled without a device, in a store of its own, and what asked for it."""
    original, result = compiled
    shutil.copytree(
        original.removeprefix("file://"), store.removeprefix("file://"), dirs_exist_ok=True
    )
    url = result.publication.url.replace(original, store)
    publication = dataclasses.replace(result.publication, url=url)
    asked = request(checkpoint("bert-cls"), store)
    return dataclasses.replace(result, publication=publication), asked


def test_without_a_device_it_is_a_candidate_and_never_latest(candidate, store):
    result, asked = candidate
    assert not result.validated
    assert result.publication.channel == "candidate"
    assert result.manifest.validation.verdict == "unvalidated-on-device"
    files = names(store, "conversions")
    assert [f for f in files if f.endswith("candidate.json")]
    assert not [f for f in files if f.endswith("manifest.json")]
    assert {f.split("/")[2] for f in names(store, "channels")} == {"candidate"}
    source = result.manifest.source
    opened = open_writable(store)
    with pytest.raises(NoSuchVariantError, match="candidate"):
        tracefleet.open(store, source, backend="neuronx")
    with pytest.raises(ManifestError, match="unvalidated-on-device"):
        tracefleet.open(store, source, backend="neuronx", channel="candidate")
    with pytest.raises(NumericsMismatchError, match="tracefleet validate"):
        promote(opened, select(opened, source, channel="candidate"))
    with pytest.raises(NumericsMismatchError, match="only the channel 'candidate'"):
        publish(opened, result.manifest, {}, channel="latest")
    with on(**NO_DEVICE):
        again = convert(asked)
        assert (again.fresh, again.validated) == (True, False)
        with pytest.raises(tracefleet.BackendUnavailableError, match="no Neuron device"):
            tracefleet.open(
                store, source, backend="neuronx", channel="candidate", allow_unvalidated=True
            )
        with pytest.raises(BackendUnavailableError, match="expected a Neuron device"):
            validate(result.publication.url)
    assert {f.split("/")[2] for f in names(store, "channels")} == {"candidate"}


def test_a_device_validates_a_candidate_as_it_is(candidate, store, checkpoint):
    result, _ = candidate
    root = Path(store.removeprefix("file://"))
    before = {f: _digest(root / "conversions" / f) for f in names(store, "conversions")}
    with on():
        done = validate(result.publication.url, Steps(run=_without_compiling))
        assert done.validated
        assert done.publication.channel == "latest"
        # The same files, the same identity; only the verdict is new.
        same = dataclasses.replace(done.manifest, validation=result.manifest.validation)
        assert same == result.manifest
        after = {f: _digest(root / "conversions" / f) for f in names(store, "conversions")}
        assert {f: after[f] for f in before} == before
        assert [f.rpartition("/")[2] for f in after.keys() - before.keys()] == ["manifest.json"]
        model = tracefleet.open(store, done.manifest.source, backend="neuronx")
        _check_short(model, checkpoint("bert-cls"))
        again = validate(result.publication.url, Steps(run=_no_child))
        assert again.fresh
    opened = open_writable(store)
    for published in tracefleet.find_variants(opened):
        checks = tracefleet.verify(opened, published)
        assert len(checks) >= 5
        assert all(check.ok for check in checks)


def test_a_conversion_on_a_device_host_takes_up_what_was_compiled(candidate, store):
    result, asked = candidate
    with on():
        done = convert(asked, Steps(run=_without_compiling))
    assert done.validated
    assert done.manifest.key == result.manifest.key
    with on(**NO_DEVICE):
        assert convert(asked, Steps(run=_no_child)).fresh


def test_a_candidate_that_is_wrong_stays_one(candidate, store):
    result, _ = candidate
    with on(run_fault="wrong"), pytest.raises(NumericsMismatchError, match=r"relative error 0\.25"):
        validate(result.publication.url)
    assert not [f for f in names(store, "conversions") if f.endswith("manifest.json")]
    assert {f.split("/")[2] for f in names(store, "channels")} == {"candidate"}
    assert names(store, "reports")


def test_a_candidate_of_other_weights_is_not_judged(own_checkpoint, store):
    folder = own_checkpoint("bert-cls")
    with on(**NO_DEVICE):
        url = convert(request(folder, store, lengths=[8])).publication.url
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with on(), pytest.raises(RequestError, match="which was converted"):
        validate(url)


def test_a_candidate_is_known_by_its_url_and_backend(candidate):
    url = candidate[0].publication.url
    with on():
        with pytest.raises(RequestError, match="expected STORE/conversions"):
            validate("file:///somewhere")
        with pytest.raises(RequestError, match="expected one of backend neuron, got"):
            validate(url, backend="neuron")
        with pytest.raises(NoSuchVariantError, match="no such file"):
            validate(url[:-64] + "0" * 64)


def _check_short(model: tracefleet.Model, folder: Path) -> None:
    eager = load_eager(folder, LoadOptions(task="text-classification"))
    ids = np.arange(5, 12)[None]
    with torch.no_grad():
        expected = eager(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model(ids).logits, expected, atol=1e-4)


def _without_compiling(function, *arguments, step: str, **limits):
    assert not step.startswith("compile"), step
    return child.run(function, *arguments, step=step, **limits)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what the double made is not AWS's -----------------------------------------------------------


def test_the_double_never_publishes_as_real(checkpoint, tmp_path):
    store = f"file://{tmp_path / 'plain'}"
    with on(), pytest.raises(UnsafeCheckpointError, match=r"length-8\.pt.* contract double"):
        convert(request(checkpoint("bert-cls"), store, lengths=[8]))
    assert not names(store, "conversions")
    assert not names(store, "channels")


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "kind", "says"),
    [
        ({"fault": "killed", "fault_shape": "1x16"}, ConversionCrashedError, "length 16.*memory"),
        ({"fault": "segfault", "fault_shape": "1x16"}, ConversionCrashedError, "SIGSEGV"),
        ({"unsupported": "aten::tanh"}, CompilationError, "aten::tanh"),
        ({"run_fault": "nan"}, NumericsMismatchError, "NaN"),
        ({"run_fault": "numerical"}, NumericsMismatchError, "status=1003"),
    ],
)
def test_a_failure_publishes_nothing_and_a_repeat_completes(
    checkpoint, store, machine: dict[str, str], kind, says: str
):
    asked = request(checkpoint("bert-cls"), store)
    with on(**machine), pytest.raises(kind, match=f"(?s){says}"):
        convert(asked)
    assert not names(store, "conversions")
    assert not names(store, "channels")
    if "fault_shape" in machine:
        with on():
            assert convert(asked).validated


def test_a_model_that_is_half_on_the_cpu_is_refused(checkpoint, store):
    asked = request(checkpoint("bert-cls"), store, lengths=[8], backend="neuron")
    with (
        on(device="inf1", unsupported="aten::addmm"),
        pytest.raises(CompilationError, match=r"at least 90% .* got 41\.7%.*addmm") as caught,
    ):
        convert(asked)
    assert caught.value.reason == "device coverage"
    loose = request(
        checkpoint("bert-cls"), store, lengths=[8], backend="neuron", neuron={"min_coverage": 0.4}
    )
    with on(device="inf1", unsupported="aten::addmm"):
        assert convert(loose).validated


def test_without_the_package_the_backend_is_not_here(checkpoint, store):
    with pytest.raises(BackendUnavailableError, match="package neuronx-cc, got none"):
        convert(request(checkpoint("bert-cls"), store))


def test_the_command_line_tells_what_to_do_next_and_does_it(checkpoint, store, capsys):
    where = ("--source", f"file://{checkpoint('bert-cls')}", "--store", store, "--lengths", "8")
    options = ("--backend", "neuronx", "--neuronx", "target=trn1,optlevel=1", "--engine", "none")
    with on(**NO_DEVICE):
        assert main(["convert", *where, *options]) == 0
        told = capsys.readouterr().out
        assert "compiled, and not validated" in told
        assert "channel  candidate #1" in told
        (url,) = re.findall(r"tracefleet validate (\S+)", told)
        assert main(["validate", "--conversion", url]) == 1
        assert "expected a Neuron device to validate on" in capsys.readouterr().err
    with on(device="trn1"):
        assert main(["validate", "--conversion", url, "--json", "--quiet"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["status"], found["channel"]) == ("published", "latest")
        assert found["manifest"]["options"]["neuronx.target"] == "trn1"
        assert main(["validate", "--conversion", url]) == 0
        assert "already published" in capsys.readouterr().out
