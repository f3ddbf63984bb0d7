"""One compilation on the contract double: each failure gets its type, reason and next step."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import get_args

import psutil
import pytest

from tasks import child
from tasks.backends import neuron, neuronx, programs
from tasks.backends.base import Job
from tasks.backends.options import NeuronOptions, NeuronxOptions, Target
from tasks.backends.programs import Prepared, Program
from tasks.backends.triage import find_cause, triage
from tasks.child import Limits
from tasks.errors import (
    BackendUnavailableError,
    CompilationError,
    ConversionCrashedError,
    NumericsMismatchError,
)
from tasks.model.facts import LoadOptions
from tasks.model.preflight import inspect
from tasks.validate.compute import compute_reference
from tasks.validate.plan import ProbePlan
from tests.support.neuron_support import on

OPTIONS = LoadOptions(task="text-classification")
OVERRIDE = "NEURON_PLATFORM_TARGET_OVERRIDE"
COMPILERS = {"neuronx": neuronx.COMPILER, "neuron": neuron.COMPILER}


@pytest.fixture
def job(checkpoint, tmp_path) -> Job:
    folder = checkpoint("bert-cls")
    return Job(
        folder=folder,
        options=OPTIONS,
        facts=inspect(folder, OPTIONS, (8,)),
        lengths=(8,),
        batch=1,
        tolerance=NeuronxOptions().tolerance,
        compiling=NeuronxOptions(),
        target="inf2",
        device=True,
        work=tmp_path,
        failed=tmp_path / "failed",
    )


@pytest.fixture
def prepared(job) -> Prepared:
    return programs.prepare(job, job.work / "prepare.log")


def _compile(job: Job, prepared: Prepared, backend: str = "neuronx", timeout: float = 60):
    log = job.work / "compile-8.log"
    compiling = NeuronxOptions() if backend == "neuronx" else NeuronOptions()
    job = dataclasses.replace(job, compiling=compiling)
    return child.run(
        COMPILERS[backend].compile,
        job,
        prepared,
        Program(length=8),
        log,
        limits=Limits(timeout=timeout, threads=1),
        log=log,
        step="compile-8",
    )


@pytest.mark.parametrize(
    ("fault", "kind", "reason", "advice"),
    [
        ("exit70", CompilationError, "compiler error", "model_type"),
        ("killed", ConversionCrashedError, "out of memory", "more memory"),
        ("no_compiler", BackendUnavailableError, "no compiler", "package repository"),
        ("limit2gb", CompilationError, "2 GB limit", "separate_weights"),
        ("NCC_EVRF001", CompilationError, "unsupported operator", "for jit"),
        ("NCC_EVRF007", CompilationError, "too many instructions", "shorter"),
        ("NCC_EOOM001", CompilationError, "device memory", "smaller batch"),
        ("NCC_EMOD025", CompilationError, "dynamic shape", "no NEFF"),
        ("NCC_EARG001", CompilationError, "flags", "infra/neuron"),
        ("segfault", ConversionCrashedError, "SIGSEGV", ""),
    ],
)
def test_each_failure_is_told_apart(job, prepared, fault: str, kind, reason: str, advice: str):
    with on(fault=fault), pytest.raises(kind, match=reason) as caught:
        _compile(job, prepared)
    assert advice in str(caught.value)
    if kind is CompilationError:
        assert caught.value.reason == reason
    if fault != "segfault":
        # The compiler's folder outlives the conversion's own.
        (kept,) = job.failed.iterdir()
        assert (kept / "command.txt").read_text()
        assert str(kept) in str(caught.value)


def test_the_compiler_gets_one_string_with_its_log_and_its_own_flags(job, prepared):
    with on(fault="exit70", compiler="2.26.6360.0"), pytest.raises(CompilationError):
        _compile(job, prepared)
    (kept,) = job.failed.iterdir()
    line = (kept / "command.txt").read_text()
    assert f"--logfile {job.work}/compiler-8/log-neuron-cc.txt" in line
    assert "integer-downcast" not in line


def test_a_host_without_a_device_names_a_platform_that_there_is(job, monkeypatch):
    monkeypatch.setenv(OVERRIDE, "trn2")  # of another job
    blind = dataclasses.replace(job, device=False, compiling=NeuronxOptions(target="trn1n"))
    with on(device="none"):
        neuronx.prepare(blind, job.work / "log")
    assert os.environ[OVERRIDE] == "trn1"
    assert neuronx.PLATFORMS.keys() == set(get_args(Target))
    assert set(neuronx.PLATFORMS.values()) <= {"inf2", "trn1", "trn2", "trn3"}


@pytest.mark.parametrize("fault", ["deadlock", "no-device"])
def test_an_analysis_that_fails_refuses_nothing(job, monkeypatch, fault: str):
    monkeypatch.setenv(OVERRIDE, "")
    asked = dataclasses.replace(job, compiling=NeuronxOptions(analyze=True), device=False)
    with on(device="none", analyze_fault=fault):
        assert neuronx.prepare(asked, job.work / "log").outputs


def test_an_analysis_names_what_is_not_supported(job):
    asked = dataclasses.replace(job, compiling=NeuronxOptions(analyze=True))
    with on(unsupported="aten::tanh"), pytest.raises(CompilationError, match="aten::tanh"):
        neuronx.prepare(asked, job.work / "log")
    assert not (job.work / "analysis").exists()
    with on(unsupported="aten::tanh"):
        assert neuronx.prepare(job, job.work / "log").outputs  # not asked for by default


def test_a_hanging_compiler_is_ended_with_all_it_started(job, prepared):
    with on(fault="hang"), pytest.raises(ConversionCrashedError, match="timeout after 4 s"):
        _compile(job, prepared, timeout=4)
    deadline = time.monotonic() + 5
    while (left := _sleepers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _sleepers() -> list[int]:
    family = psutil.Process().children(recursive=True)
    found = []
    for one in family:
        try:
            found += [one.pid] if one.cmdline()[:1] == ["sleep"] else []
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("killed", ConversionCrashedError, "out of memory"),
        ("exit1", CompilationError, "nothing compiled"),
        ("limit2gb", CompilationError, "2 GB limit"),
    ],
)
def test_inf1_says_why_nothing_was_compiled(job, prepared, fault: str, kind, reason: str):
    with on(device="inf1", fault=fault), pytest.raises(kind, match=reason):
        _compile(job, prepared, "neuron")


def test_without_a_device_only_an_explicit_way_compiles(job, prepared):
    with on(device="none"):
        with pytest.raises(BackendUnavailableError, match="no device"):
            _compile(job, prepared)
        made = _compile(dataclasses.replace(job, device=False), prepared)
    assert made.value.published == "model/length-8.pt"


def test_two_compilations_of_one_request_give_the_same_bytes(job, prepared, tmp_path):
    with on():
        one, two = (
            _compile(dataclasses.replace(job, work=_made(tmp_path / name)), prepared).value
            for name in ("one", "two")
        )
    assert one.sha256 == two.sha256


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_garbage_of_an_old_runtime_is_caught_by_the_gate(job, prepared, tmp_path):
    """torch-neuron of 2021 only warned without a device, and gave constants (sdk#325)."""
    plan = ProbePlan(
        facts=job.facts,
        lengths=(8,),
        whole=(8,),
        batch=1,
        tolerance=NeuronOptions().tolerance,
        opaque=True,
    )
    reference = compute_reference(job.folder, OPTIONS, plan, tmp_path / "reference")
    with on(device="inf1"):
        made = _compile(job, prepared, "neuron").value
        compiled_by = neuron.NEURON.toolchain()
        COMPILERS["neuron"].validate(
            {8: made.path}, reference, compiled_by, "inf1"
        )  # sound on its device
    with (
        on(device="none", legacy="garbage"),
        pytest.warns(UserWarning, match="not sent"),
        pytest.raises(NumericsMismatchError) as caught,
    ):
        COMPILERS["neuron"].validate({8: made.path}, reference, compiled_by, "inf1")
    report = caught.value.report
    assert report is not None
    assert len({probe.name for probe in report.probes if not probe.difference.passed}) > 10


@pytest.mark.parametrize(
    ("error", "log_tail", "reason"),
    [
        (RuntimeError("Init: error condition !(num_devices > 0)"), "", "no device"),
        (RuntimeError("neuronx-cc failed with 70"), "[NCC_EVRF004] complex", "complex numbers"),
        (RuntimeError("neuronx-cc failed with 70"), "", "compiler error"),
        (RuntimeError("neuronx-cc failed with -9"), "[NCC_EVRF001] earlier", "out of memory"),
        (RuntimeError("NEFF version mismatch supported: 1.1 received: 2.0"), "", "version skew"),
        (ValueError("Message exceeds maximum protobuf size of 2GB"), "", "2 GB limit"),
        (RuntimeError("please supply compiler argument target"), "", "no target"),
        (RuntimeError("something else"), "", "unknown"),
    ],
)
def test_what_compilers_say(error: Exception, log_tail: str, reason: str):
    assert find_cause(error, log_tail).reason == reason


def test_the_diagnostic_of_the_log_is_in_the_message(tmp_path):
    log = tmp_path / "log"
    log.write_text("noise\n[ERROR] [NCC_EVRF007] 7000000 instructions\nnoise\n")
    found = triage(RuntimeError("neuronx-cc failed with 70"), "length 512", log)
    assert "length 512" in str(found)
    assert "7000000 instructions" in str(found)
