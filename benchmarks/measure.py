"""Wall time, CPU time and peak memory of a command with everything it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_SAMPLE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a command took.

    Attributes:
        wall: seconds.
        cpu: seconds of user and system time over all processes.
        peak_process: largest resident size that any one process had, in bytes.
        peak_tree: largest sum of proportional set sizes over the tree (shared pages count once).
    """

    wall: float
    cpu: float
    peak_process: int
    peak_tree: int


def measure(command: Sequence[str]) -> Cost:
    """Run a Python module and measure it; raises if it fails."""
    before = os.times()
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    watcher = _Watcher(process.pid)
    watcher.start()
    code = process.wait()
    wall = time.perf_counter() - started
    watcher.stop()
    after = os.times()
    if code:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {code}")
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Cost(
        wall=wall,
        cpu=max(cpu, watcher.cpu),
        peak_process=watcher.peak_process,
        peak_tree=watcher.peak_tree,
    )


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _Watcher(threading.Thread):
    """Samples a process tree until it is told to stop."""

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
