"""Wall time of a command, and CPU time and peak memory of its process tree."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_SAMPLE_SECONDS = 0.05
_SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a command.

    Attributes:
        cpu: seconds of user and system time of all processes.
        peak_process: largest resident size of any one process, in bytes.
        peak_tree: largest sum of proportional set sizes over the tree, in bytes; shared pages count
            once.
    """

    cpu: float
    peak_process: int
    peak_tree: int


def wall_seconds(command: Sequence[str]) -> float:
    """Run a Python module and return its wall time; raise if it fails."""
    started = time.perf_counter()
    _check(subprocess.run(_complete(command), **_SILENT, check=False).returncode, command)
    return time.perf_counter() - started


def watch(command: Sequence[str]) -> Cost:
    """Run a Python module and sample its processes, which slows it; raise if it fails."""
    process = subprocess.Popen(_complete(command), **_SILENT)
    watcher = _Watcher(process.pid)
    watcher.start()
    code = process.wait()
    watcher.stop()
    _check(code, command)
    return Cost(cpu=watcher.cpu, peak_process=watcher.peak_process, peak_tree=watcher.peak_tree)


def _complete(command: Sequence[str]) -> list[str]:
    return [sys.executable, *command]


def _check(code: int, command: Sequence[str]) -> None:
    if code:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {code}")


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _Watcher(threading.Thread):
    """A thread that samples a process tree until ``stop``."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self._done = psutil.Process(pid), threading.Event()
        self._cpu: dict[int, float] = {}
        self.peak_process = self.peak_tree = 0

    @property
    def cpu(self) -> float:
        return sum(self._cpu.values())

    def stop(self) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        total = 0
        try:
            members = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in members:
            try:
                times, memory = member.cpu_times(), member.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            self._cpu[member.pid] = times.user + times.system
            self.peak_process = max(self.peak_process, memory.rss)
            total += memory.pss
        self.peak_tree = max(self.peak_tree, total)
