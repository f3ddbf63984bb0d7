"""Publishing: last door, files first, manifest last, never twice, never half."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
from pathlib import Path

import pytest

from tasks.errors import NumericsMismatchError, PublishConflictError
from tasks.publish.conversion import attest, publish
from tasks.publish.files import collect_files, describe_files
from tasks.publish.find import find_published
from tasks.publish.identity import RECIPE, Identity
from tasks.trace.bundle import TracedFile
from tasks.trace.record import TraceResult
from tracefleet.channel import channel_folder, conversion_folder, read_current
from tracefleet.errors import DigestMismatchError, StoreError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import (
    InputSpec,
    OutputSpec,
    Toolchain,
    Variant,
)
from tracefleet.store import open_writable
from tracefleet.triton.config import make_config
from tracefleet.verdict_types import LengthVerdict, Tolerance, Validation

INPUTS = (
    InputSpec(name="input_ids", dtype="int64", axes=("batch", "length"), pad_value=0),
    InputSpec(
        name="attention_mask", dtype="int64", axes=("batch", "length"), pad_value=0, fill_value=1
    ),
)
OUTPUTS = (OutputSpec(name="logits", dtype="float32", axes=("batch", "length", "256")),)
PASSED = LengthVerdict(
    length=8,
    probes=20,
    vacuous=(),
    max_abs_error=1e-7,
    max_rel_error=1e-7,
    min_cosine=1.0,
    top1_agreement=1.0,
    passed=True,
)
VALIDATED = Validation(
    verdict="validated",
    tolerance=Tolerance(atol=0.0, rtol=1e-5),
    lengths=(PASSED,),
    negative_controls=("wrong-weight",),
)


def _conversion(
    folder: Path, content: bytes = b"bundle", commit: str = "c0"
) -> tuple[Manifest, dict[str, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("")  # empty: some consumers choke on empty files
    (folder / "model.pt").write_bytes(content)
    (folder / "config.pbtxt").write_bytes(make_config(INPUTS, OUTPUTS, (8,)).encode())
    bundle = TracedFile(
        path=folder / "model.pt",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        weight_bytes=1,
    )
    traced = TraceResult(
        files=(bundle,),
        outputs=OUTPUTS,
        tied_groups=(),
        same_program=True,
        general=None,
        routed=None,
        shared=True,
        has_topk_or_sort=False,
    )
    files = collect_files(traced, INPUTS, folder, folder, (8,))
    toolchain = Toolchain(python="3.11", torch="2.13.0", transformers="5.23.0")
    variant = Variant(task="fill-mask")
    source = "file:///models/tiny"
    identity = Identity(
        source=source, commit=commit, variant=variant, lengths=(8,), options={}, toolchain=toolchain
    )
    manifest = Manifest(
        key=identity.key,
        source=source,
        commit=commit,
        license=None,
        variant=variant,
        lengths=(8,),
        options={},
        inputs=INPUTS,
        outputs=OUTPUTS,
        tied_groups=(),
        same_program=True,
        general=None,
        routed=None,
        device="cpu",
        follows_device=False,
        files=describe_files(files, [bundle]),
        toolchain=toolchain,
        recipe=RECIPE,
        validation=VALIDATED,
    )
    return manifest, files


def _snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_publish_makes_a_triton_folder_a_manifest_and_a_channel_entry(tmp_path):
    store = open_writable(tmp_path / "store")
    manifest, files = _conversion(tmp_path / "work")
    publication = publish(store, manifest, files, channel="latest")
    folder = conversion_folder(manifest.source, manifest.key)
    names = {
        str(p.relative_to(tmp_path / "store" / folder))
        for p in (tmp_path / "store" / folder).rglob("*")
        if p.is_file()
    }
    assert names == {"manifest.json", "model/1/model.pt", "model/config.json", "model/config.pbtxt"}
    newest = read_current(store, channel_folder(manifest.source, manifest.variant, "latest"))
    assert newest is not None
    assert (newest[0], newest[1].manifest) == (1, manifest.digest)
    assert publication.number == 1
    assert find_published(store, manifest.source, manifest.key) == manifest
    assert Identity.of(manifest).key == manifest.key


def test_publishing_again_changes_nothing(tmp_path):
    store = open_writable(tmp_path / "store")
    manifest, files = _conversion(tmp_path / "work")
    publish(store, manifest, files, channel="latest")
    before = _snapshot(tmp_path / "store")
    assert publish(store, manifest, files, channel="latest").number == 1
    assert _snapshot(tmp_path / "store") == before


@pytest.mark.parametrize(
    "validation",
    [
        dataclasses.replace(VALIDATED, verdict="unvalidated-on-device"),
        dataclasses.replace(VALIDATED, lengths=(dataclasses.replace(PASSED, passed=False),)),
        dataclasses.replace(VALIDATED, lengths=()),
        dataclasses.replace(VALIDATED, lengths=(dataclasses.replace(PASSED, probes=0),)),
        dataclasses.replace(VALIDATED, negative_controls=()),
    ],
)
def test_nothing_without_a_passed_gate_gets_through(validation, tmp_path):
    store = open_writable(tmp_path / "store")
    manifest, files = _conversion(tmp_path / "work")
    with pytest.raises(NumericsMismatchError, match="Nothing was published"):
        publish(store, dataclasses.replace(manifest, validation=validation), files, channel="x")
    assert not (tmp_path / "store" / "conversions").exists()


def test_other_bytes_under_the_same_key_are_a_conflict(tmp_path):
    store = open_writable(tmp_path / "store")
    manifest, files = _conversion(tmp_path / "work")
    publish(store, manifest, files, channel="latest")
    before = _snapshot(tmp_path / "store")
    other = dataclasses.replace(manifest, license="mit")  # not measured: it can't differ
    with pytest.raises(PublishConflictError, match="another writer"):
        publish(store, other, files, channel="latest")
    assert _snapshot(tmp_path / "store") == before


def test_two_machines_that_measured_other_rounding_errors_converge(tmp_path):
    store = open_writable(tmp_path / "store")
    manifest, files = _conversion(tmp_path / "work")
    publish(store, manifest, files, channel="latest")
    before = _snapshot(tmp_path / "store")
    measured = dataclasses.replace(PASSED, max_abs_error=2e-7)
    validation = dataclasses.replace(VALIDATED, lengths=(measured,))
    other = dataclasses.replace(manifest, validation=validation)
    assert publish(store, other, files, channel="latest").manifest_digest == manifest.digest
    assert _snapshot(tmp_path / "store") == before


def test_a_file_that_changed_after_it_was_described_never_becomes_visible(tmp_path):
    store = open_writable(tmp_path / "store")
    manifest, files = _conversion(tmp_path / "work")
    (tmp_path / "work" / "model.pt").write_bytes(b"bundlE")
    with pytest.raises(DigestMismatchError):
        publish(store, manifest, files, channel="latest")
    assert not list((tmp_path / "store").rglob("model.pt"))
    assert not list((tmp_path / "store").rglob("manifest.json"))


class _DiesError(Exception):
    pass


class _DyingStore:
    """A real store whose process dies before or after its nth write."""

    def __init__(self, store, calls: int, *, after: bool) -> None:
        self._store, self._left, self._after = store, calls, after
        self.url = store.url

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if not name.startswith("put_"):
            return method

        def counted(*arguments, **options):
            self._left -= 1
            if self._left < 0 and not self._after:
                raise _DiesError
            result = method(*arguments, **options)
            if self._left < 0:
                raise _DiesError
            return result

        return counted


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(6))
def test_a_death_at_any_step_is_never_half_visible_and_a_rerun_completes(step, after, tmp_path):
    """A claim, three files, the manifest, the channel: six writes, a death around each."""
    store = open_writable(tmp_path / "store")
    manifest, files = _conversion(tmp_path / "work")
    log = channel_folder(manifest.source, manifest.variant, "latest")
    with pytest.raises(_DiesError):
        publish(_DyingStore(store, step, after=after), manifest, files, channel="latest")
    if read_current(store, log) is not None:  # visible means whole
        assert find_published(store, manifest.source, manifest.key) == manifest
    if find_published(store, manifest.source, manifest.key) is not None:
        folder = tmp_path / "store" / conversion_folder(manifest.source, manifest.key)
        for entry in manifest.files:
            assert hashlib.sha256((folder / entry.path).read_bytes()).hexdigest() == entry.sha256
    publish(store, manifest, files, channel="latest")
    undisturbed = open_writable(tmp_path / "undisturbed")
    publish(undisturbed, manifest, files, channel="latest")
    left = {path for path in _snapshot(tmp_path / "store") if path.startswith("publishing/")}
    assert len(left) == (step == 0 and after), "only a death before the claim's end leaves it"
    assert set(_snapshot(tmp_path / "store")) - left == set(_snapshot(tmp_path / "undisturbed"))


def _publish_in_process(store: str, work: str, commit: str) -> None:
    manifest, files = _conversion(Path(work), commit=commit)
    publish(open_writable(store), manifest, files, channel="latest")


def test_eight_processes_publish_one_key_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=_publish_in_process,
            args=(str(tmp_path / "store"), str(tmp_path / f"work{i}"), f"c{i % 2}"),
        )
        for i in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert len(list((tmp_path / "store").rglob("manifest.json"))) == 2  # one for each of two keys
    numbers = sorted(int(p.stem) for p in (tmp_path / "store" / "channels").rglob("*.json"))
    assert numbers == list(range(1, len(numbers) + 1))
    assert not [p for p in (tmp_path / "store").rglob("*") if ".tmp" in p.name]


def test_a_full_store_is_an_error_that_says_so(tmp_path, monkeypatch):
    import errno
    import os

    store = open_writable(tmp_path / "store")
    manifest, files = _conversion(tmp_path / "work")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"(?i)space|full"):
        publish(store, manifest, files, channel="latest")
    monkeypatch.undo()
    assert not [p for p in (tmp_path / "store").rglob("*") if p.is_file()]


def test_an_attestation_names_the_manifest(tmp_path):
    import json

    store = open_writable(tmp_path / "store")
    manifest, _ = _conversion(tmp_path / "work")
    path = attest(store, manifest, "run-7", {"host": "h"})
    assert json.loads(store.read(path)) == {
        "manifest": manifest.digest,
        "run": "run-7",
        "host": "h",
    }


def test_triton_reads_names_types_and_dynamic_axes():
    text = make_config(INPUTS, OUTPUTS, (8,))
    name = OUTPUTS[0].name
    assert 'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]' in text
    assert f'output [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ -1, 256 ] }} ]' in text
    assert "max_batch_size: 64" in text
