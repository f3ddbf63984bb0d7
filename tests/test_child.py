"""Children: results, progress, and every way to die."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from tasks import child
from tasks.child import Limits, run
from tasks.child_main import report_progress
from tasks.errors import ConversionCrashedError, NumericsMismatchError, RequestError


def _double(number: int) -> int:
    return number * 2


def _talk() -> str:
    report_progress("half way")
    print("a line on stdout")
    return "done"


def _die(number: int) -> None:
    print("last words", flush=True)
    os.kill(os.getpid(), number)


def _sleep_with_grandchild(marker: str) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    Path(marker).write_text(str(sleeper.pid))
    time.sleep(60)


def _grow() -> None:
    held = []
    while True:
        held.append(bytearray(20_000_000))
        time.sleep(0.02)


def _refuse() -> None:
    raise RequestError("lengths: expected less")


def _mismatch() -> None:
    raise NumericsMismatchError("differs", None)


def _break() -> None:
    raise KeyError("surprise")


def _exit() -> None:
    os._exit(7)


def _where() -> tuple[str, bool, int]:
    import torch

    return sys.modules["__main__"].__name__, "prefect" in sys.modules, torch.get_num_threads()


def _list_modules() -> set[str]:
    return set(sys.modules)


def _count_patterns_compiled() -> int:
    """Return how many regular expressions the first use of the names' mapping compiles."""
    compiled = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(re, "compile", lambda *_: compiled.append(1))
        get_checkpoint_conversion_mapping("bert")
    return len(compiled)


def _run(function, *arguments, tmp_path, **limits):
    return run(function, *arguments, limits=Limits(**limits), log=tmp_path / "log", step="trial")


def test_a_result_comes_back_with_time_and_memory(tmp_path):
    outcome = _run(_double, 21, tmp_path=tmp_path)
    assert outcome.value == 42
    assert outcome.seconds > 0
    assert outcome.peak_bytes > 50e6


def test_progress_reaches_the_parents_log_and_output_the_file(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="tasks")
    assert _run(_talk, tmp_path=tmp_path).value == "done"
    assert "half way" in caplog.messages
    assert "a line on stdout" in (tmp_path / "log").read_text()


def test_threads_are_the_requests_and_prefect_is_not_imported(tmp_path):
    _, prefect, threads = _run(_where, tmp_path=tmp_path, threads=1).value
    assert threads == 1
    assert not prefect


@pytest.mark.parametrize(
    ("jobs", "given", "threads", "policy"),
    [
        (1, {}, None, None),
        (2, {}, "4", "PASSIVE"),
        (64, {}, "1", "PASSIVE"),
        (2, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}, "3", "ACTIVE"),
    ],
)
def test_cores_are_shared_among_conversions_at_a_time(
    jobs: int, given: dict[str, str], threads: str | None, policy: str | None, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    environment: dict[str, str] = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    child.share_cores(jobs)
    assert environment.get("OMP_NUM_THREADS") == threads
    assert environment.get("OMP_WAIT_POLICY") == policy


def test_what_every_model_needs_is_there_when_a_child_starts(tmp_path):
    found = _run(_list_modules, tmp_path=tmp_path).value
    assert {"transformers.generation.utils", "transformers.modeling_layers"} <= found
    assert _run(_count_patterns_compiled, tmp_path=tmp_path).value == 0


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_signal_is_named_with_the_last_words(number, tmp_path):
    with pytest.raises(ConversionCrashedError, match="trial") as caught:
        _run(_die, number, tmp_path=tmp_path)
    assert signal.Signals(number).name in caught.value.reason
    assert "last words" in caught.value.log_tail
    assert ("out-of-memory" in caught.value.reason) == (number == signal.SIGKILL)


def test_a_hang_ends_with_everything_it_started(tmp_path):
    marker = tmp_path / "pid"
    with pytest.raises(ConversionCrashedError, match=r"timeout after 1\.5 s"):
        _run(_sleep_with_grandchild, str(marker), tmp_path=tmp_path, timeout=1.5)
    grandchild = int(marker.read_text())
    time.sleep(0.2)
    assert not psutil.pid_exists(grandchild) or (
        psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
    )


def test_a_memory_limit_ends_the_child_and_not_the_parent(tmp_path):
    with pytest.raises(ConversionCrashedError, match="memory limit"):
        _run(_grow, tmp_path=tmp_path, memory=900_000_000, timeout=60)


def test_typed_errors_arrive_as_they_are(tmp_path):
    with pytest.raises(RequestError, match="expected less"):
        _run(_refuse, tmp_path=tmp_path)
    with pytest.raises(NumericsMismatchError, match="differs"):
        _run(_mismatch, tmp_path=tmp_path)


def test_an_untyped_exception_becomes_a_typed_one_with_its_traceback(tmp_path):
    with pytest.raises(ConversionCrashedError, match="KeyError: 'surprise'") as caught:
        _run(_break, tmp_path=tmp_path)
    assert "_break" in caught.value.log_tail


def test_an_exit_without_result_is_a_crash(tmp_path):
    with pytest.raises(ConversionCrashedError, match="exit code 7"):
        _run(_exit, tmp_path=tmp_path)


def _chatter() -> None:
    while True:
        report_progress("still here " * 100)


def test_a_talkative_child_ends_at_its_deadline_too(tmp_path):
    with pytest.raises(ConversionCrashedError, match="timeout"):
        _run(_chatter, tmp_path=tmp_path, timeout=1)


class _UnreadableError(RequestError):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def _refuse_unreadably() -> None:
    raise _UnreadableError("a", "b")


def test_a_result_that_can_not_be_read_is_a_crash(tmp_path):
    with pytest.raises(ConversionCrashedError, match="can't be read"):
        _run(_refuse_unreadably, tmp_path=tmp_path)


def test_the_next_child_is_fine_after_a_crash(tmp_path):
    with pytest.raises(ConversionCrashedError):
        _run(_exit, tmp_path=tmp_path)
    assert _run(_double, 1, tmp_path=tmp_path).value == 2


def test_children_die_with_a_killed_parent(tmp_path):
    """A killed worker must not leave a tracing child behind."""
    marker, script = tmp_path / "pid", tmp_path / "parent.py"
    script.write_text(
        "import pathlib, sys\n"
        "from tasks.child import Limits, run\n"
        "from test_child import _sleep_with_grandchild_pid\n"
        f"run(_sleep_with_grandchild_pid, {str(marker)!r}, limits=Limits(), "
        f"log=pathlib.Path({str(tmp_path / 'log')!r}), step='trial')\n"
    )
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 60
    while not marker.exists() or not marker.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    pid = int(marker.read_text())
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _sleep_with_grandchild_pid(marker: str) -> None:
    Path(marker).write_text(str(os.getpid()))
    time.sleep(120)


def test_main_is_not_imported_again(tmp_path):
    before = sys.modules["__main__"].__spec__, getattr(sys.modules["__main__"], "__file__", None)
    child.warm_up()
    after = sys.modules["__main__"].__spec__, getattr(sys.modules["__main__"], "__file__", None)
    assert before == after
    name, _, _ = _run(_where, tmp_path=tmp_path).value
    assert "pytest" not in name
