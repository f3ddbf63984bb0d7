"""How the contract double is switched on, what marks its work, and that each claim has a test."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from tasks import child
from tasks.child import Limits
from tasks.errors import ConversionCrashedError
from tests.support.neuron_double_support import (
    IDS,
    MASK,
    Tiny,
    behaviours,
    harness,
    neuron_double,
    shows,
)


def _trace_in_child(_):
    import torch_neuronx

    torch_neuronx.trace(Tiny(), (IDS, MASK))
    return torch_neuronx.__version__, importlib.metadata.version("neuronx-cc")


def _child(tmp_path, timeout=60.0):
    limits = Limits(timeout=timeout, threads=1)
    log = tmp_path / "log"
    return child.run(_trace_in_child, 0, limits=limits, log=log, step="trace").value


@shows("segfault", "hang", "exit-70")
def test_settings_and_faults_reach_the_children_of_a_fork_server(tmp_path):
    child.warm_up()  # its server has none of these settings in its environment
    with neuron_double.configured(compiler="2.1.2"):
        assert _child(tmp_path) == ("2.9.0.2.15.32035+double", "2.1.2")
    failed = pytest.raises(ConversionCrashedError, match="neuronx-cc failed with 70")
    with neuron_double.configured(fault="exit70"), failed:
        _child(tmp_path)
    with neuron_double.configured(fault="segfault"):
        with pytest.raises(ConversionCrashedError) as caught:
            _child(tmp_path)
        assert signal.SIGSEGV.name in caught.value.reason
    before = _sleepers()
    given_up = pytest.raises(ConversionCrashedError, match="timeout")
    with neuron_double.configured(fault="hang"), given_up:
        _child(tmp_path, timeout=3)
    time.sleep(0.2)
    assert _sleepers() <= before
    with pytest.raises(ConversionCrashedError, match="torch_neuronx"):
        _child(tmp_path)


def _sleepers():
    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["cmdline"] == ["sleep", "3600"]:
            found.add(process.pid)
    return found


def test_settings_reach_subprocesses_and_leave_no_trace():
    path, variables = list(sys.path), dict(os.environ)
    code = "import importlib.metadata as m, neuron_double as d; print(d.current().cores)"
    with neuron_double.configured(device="trn1", cores=3):
        with neuron_double.configured(device="none"):
            assert neuron_double.current().device == "none"
        assert neuron_double.current().core_count == 3
        assert importlib.metadata.version("torch_neuronx").endswith("+double")
        assert importlib.metadata.version("neuron-cc") == "1.24.0.0"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stdout.strip() == b"3"
    assert (path, variables) == (sys.path, dict(os.environ))
    with pytest.raises(ModuleNotFoundError):
        import torch_neuronx  # noqa: F401


def test_the_variable_is_read_back_and_typing_mistakes_are_refused():
    settings = neuron_double.Settings(device="trn2", cores=2, fault="killed", seconds_per_op=0.5)
    assert neuron_double.parse(settings.render()) == settings
    with pytest.raises(ValueError, match="expected one of"):
        neuron_double.parse("devise=inf2")
    with pytest.raises(ValueError, match="device"):
        neuron_double.parse("device=inf9")


def _shown(source):
    """Return the behaviours that a source's tests say they show; a test is a function test_..."""
    return {
        ast.literal_eval(argument)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for call in node.decorator_list
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "shows"
        for argument in call.args
    }


def test_every_behaviour_has_its_source_and_a_test():
    """Read from the test files: whichever of them runs, and in whichever process."""
    names = [row.name for row in behaviours.BEHAVIOURS]
    assert len(set(names)) == len(names)
    files = Path(__file__).parent.glob("test_neuron_double*.py")
    assert set().union(*(_shown(path.read_text()) for path in files)) == set(names)
    for row in behaviours.BEHAVIOURS:
        assert (row.source == "-") <= (row.status == "assumed")


def test_a_behaviour_is_shown_by_a_test_alone():
    test = '@shows("one", "two")\n@other("three")\ndef {}(): ...'
    assert _shown(test.format("test_it")) == {"one", "two"}
    assert not _shown(test.format("helper"))


def test_the_table_can_be_printed():
    folder = neuron_double.FOLDER
    done = subprocess.run(
        [sys.executable, "-m", "neuron_double"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    heading, *rows = (line.split("\t") for line in done.stdout.splitlines())
    assert heading == ["name", "behaviour", "source", "status"]
    assert rows == [list(row) for row in behaviours.BEHAVIOURS]


def test_a_difference_of_the_real_sdk_is_kept_and_an_assumption_is_no_failure():
    own = harness.Contract()
    real = harness.Sdk("torch_neuronx", real=True)

    @own.shows("dtype")
    def assumed(x):
        raise AssertionError("computed all the same")

    @own.shows("shape")
    def documented(x):
        raise AssertionError("computed all the same")

    with pytest.raises(pytest.xfail.Exception):
        assumed(x=real)
    with pytest.raises(AssertionError):
        documented(x=real)
    assert own.differences == [
        f"{name}: AssertionError: computed all the same"
        for name in ("dtype (assumed)", "shape (documented)")
    ]
    with pytest.raises(ValueError, match="tests of their own"):
        own.shows("dtype", "shape")
    with pytest.raises(pytest.skip.Exception), real.on(fault="exit70"):
        pass


@shows("stamp")
def test_the_mark_is_found_without_the_double(tmp_path):
    with neuron_double.configured() as _:
        import torch_neuronx

        torch.jit.save(torch_neuronx.trace(torch.relu, MASK), tmp_path / "double.pt")
    torch.jit.save(torch.jit.trace(nn.ReLU(), MASK), tmp_path / "real.pt")
    assert neuron_double.is_double(tmp_path / "double.pt")
    assert not neuron_double.is_double(tmp_path / "real.pt")


@shows("no-import")
def test_an_archive_does_not_load_without_the_import(tmp_path):
    with neuron_double.configured():
        import torch_neuronx

        torch.jit.save(torch_neuronx.trace(torch.relu, MASK), tmp_path / "x.pt")
    with neuron_double.configured(device="inf1"):
        import torch_neuron

        torch.jit.save(torch_neuron.trace(lambda a: torch.relu(a) * 2, MASK), tmp_path / "n.pt")
    code = (
        "import torch, warnings\nwarnings.simplefilter('ignore')\nfor name in 'xn':\n"
        " try: torch.jit.load(name + '.pt')\n except RuntimeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Unknown builtin op: neuron::forward_v2" in done.stdout
    assert "Unknown builtin op: neuron::forward_1" in done.stdout
    assert "Could not find any similar ops" in done.stdout


@pytest.mark.real_neuron
@pytest.mark.skipif(not harness.has_device(), reason="needs a Neuron host")
def test_this_host_has_the_real_sdk():
    found = importlib.metadata.version("torch_neuronx")
    assert "+double" not in found


def test_a_trace_is_no_file_in_memory_only(tmp_path):
    with neuron_double.configured():
        import torch_neuronx

        buffer = io.BytesIO()
        torch.jit.save(torch_neuronx.trace(torch.relu, MASK), buffer)
        buffer.seek(0)
        assert torch.jit.load(buffer)(MASK).shape == MASK.shape
