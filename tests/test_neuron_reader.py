"""Opening Neuron conversions: what is refused before anything is loaded, and what is not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tracefleet
from flows.convert import convert
from tests.support import tiny
from tests.support.neuron_support import on, request, store_for_doubles
from tracefleet import BackendUnavailableError, ManifestError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import InputSpec, OutputSpec, Toolchain
from tracefleet.program_files import find_programs
from tracefleet.reader import neuron
from tracefleet.reader.programs import compose

IDS = np.arange(5, 12)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[str, Manifest]:
    """Return a store with one conversion for Inf2 at lengths 8 and 16."""
    folder = tmp_path_factory.mktemp("published")
    store = store_for_doubles(folder)
    with on():
        manifest = convert(request(tiny.save("bert-cls", folder), store)).manifest
    return store, manifest


def _open(published: tuple[str, Manifest], **options) -> tracefleet.Model:
    store, manifest = published
    return tracefleet.open(store, manifest.source, backend="neuronx", **options)


@pytest.fixture
def never_load(monkeypatch):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("torch loaded a program")

    monkeypatch.setattr(torch.jit, "load", load)


def test_it_opens_where_it_fits(published):
    with on():
        one = _open(published)(IDS).logits
        assert one.shape == (1, 3)
        np.testing.assert_array_equal(one, _open(published, neuron_cores=(1, 1))(IDS).logits)
        exact = _open(published).exact(
            8, torch.arange(5, 13)[None], torch.ones(1, 8).long(), *[torch.zeros(1, 8).long()]
        )
        assert exact.logits.shape == (1, 3)


@pytest.mark.usefixtures("never_load")
def test_without_the_package_it_says_which_and_what_to_do(published):
    with pytest.raises(BackendUnavailableError, match=r"torch_neuronx .*torch-neuronx from AWS"):
        _open(published)


@pytest.mark.usefixtures("never_load")
@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"compiler": "2.21.33363.0"}, r"neuronx-cc: expected at least 2\.27\.5334\.0.*got 2\.21"),
        ({"torch_neuronx": "2.8.0.2.10.16998"}, r"torch-neuronx: expected at least 2\.9"),
    ],
)
def test_older_packages_than_compiled_it_are_refused_before_loading(published, machine, says):
    with on(**machine), pytest.raises(BackendUnavailableError, match=says):
        _open(published)


def test_newer_packages_than_compiled_it_are_fine(published):
    with on(compiler="2.30.1.0", torch_neuronx="2.9.1.0"):
        assert importlib.metadata.version("neuronx-cc") == "2.30.1.0"
        assert _open(published)(IDS).logits.shape == (1, 3)


@pytest.mark.usefixtures("never_load")
@pytest.mark.parametrize("place", ["info/architecture", "architecture"])
def test_other_cores_are_refused_before_loading(published, tmp_path, monkeypatch, place: str):
    monkeypatch.setattr(neuron, "SYSFS", tmp_path)
    for number, generation in enumerate(("NCv3", "NCv3")):
        node = tmp_path / f"neuron{number}" / place
        node.mkdir(parents=True)
        (node / "arch_type").write_text(f"{generation}\n")
    with on(device="trn2"), pytest.raises(BackendUnavailableError, match=r"v2 \(inf2\), got v3"):
        _open(published)


def test_the_same_cores_are_not(published, tmp_path, monkeypatch):
    monkeypatch.setattr(neuron, "SYSFS", tmp_path)
    (tmp_path / "neuron0").mkdir()
    (tmp_path / "neuron0" / "arch_type").write_text("NCv2")
    with on(device="trn1"):
        assert _open(published)(IDS).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"device": "none"}, "has no Neuron device"),
        ({"device": "trn2"}, "other NeuronCores or by a newer compiler"),  # no driver's word on it
        ({"runtime_reads": "2.20.0.0"}, "other NeuronCores or by a newer compiler"),
        ({"busy": 2}, "NEURON_RT_VISIBLE_CORES"),
        ({"core_memory": 100_000}, "core's memory"),
    ],
)
def test_what_the_runtime_refuses_is_explained(published, machine, says: str):
    with on(**machine), pytest.raises(BackendUnavailableError, match=says):
        _open(published)


def test_a_core_that_there_is_not_is_told(published):
    with on(), pytest.raises(BackendUnavailableError, match="NEURON_RT_NUM_CORES"):
        _open(published, neuron_cores=(7, 1))


@pytest.mark.usefixtures("never_load")
def test_a_damaged_program_is_refused_before_loading(published):
    root = Path(published[0].removeprefix("file://"))
    (program,) = root.rglob("length-16.pt")
    kept = program.read_bytes()
    program.write_bytes(kept[:-10] + b"0123456789")
    try:
        with on(), pytest.raises(tracefleet.DigestMismatchError, match=r"length-16\.pt"):
            _open(published)
    finally:
        program.write_bytes(kept)


def test_a_manifest_without_a_program_for_each_length_is_refused(published):
    manifest = published[1]
    files = tuple(file for file in manifest.files if not file.path.endswith("length-8.pt"))
    with pytest.raises(ManifestError, match="the programs of each length"):
        find_programs(dataclasses.replace(manifest, files=files))


def test_a_program_needs_the_package_in_another_process_too(published):
    """What a consumer sees who calls torch.jit.load alone (sdk#240)."""
    (program,) = Path(published[0].removeprefix("file://")).rglob("length-8.pt")
    script = f"import torch; torch.jit.load({str(program)!r})"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    assert "neuron::forward_v2" in ran.stderr


@pytest.mark.parametrize(
    ("here", "built", "refused"),
    [
        ("2.27.5334.0", "2.27.5334.0", False),
        ("2.27.5334.0", "2.27.999.0", False),
        ("2.27.5334.0", "2.100.0.0", True),
        ("2.27.5334.0+double", "2.27.5334.0", False),
    ],
)
def test_versions_are_compared_as_numbers(monkeypatch, here: str, built: str, refused: bool):
    monkeypatch.setattr(neuron, "find_installed", lambda _: {"neuronx-cc": here})
    toolchain = Toolchain(
        python="3.11", torch="2.9.0", transformers="4.57", compiler=f"neuronx-cc=={built} x==1"
    )
    if not refused:
        neuron.check_versions("neuronx", toolchain)
        return
    with pytest.raises(BackendUnavailableError, match="neuronx-cc"):
        neuron.check_versions("neuronx", toolchain)


def test_programs_that_return_a_lone_tensor_are_composed_too():
    class Twice(torch.nn.Module):
        def forward(self, values):
            return values * 2

    programs = {n: torch.jit.trace(Twice(), torch.ones(1, n)) for n in (2, 4)}
    inputs = (InputSpec(name="values", dtype="float32", axes=("batch", "length"), pad_value=0),)
    outputs = (OutputSpec(name="twice", dtype="float32", axes=("batch", "length")),)
    module = compose(programs, inputs, outputs, 1)
    (found,) = module(torch.ones(3, 3))
    assert torch.equal(found, torch.full((3, 3), 2.0))
    with pytest.raises(torch.jit.Error, match="expected at most 4"):
        module(torch.ones(1, 5))
    with pytest.raises(torch.jit.Error, match="expected shape"):
        module.forward_2(torch.ones(1, 3))
