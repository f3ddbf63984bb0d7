"""Ctrl-C ends a command within seconds, whatever its threads still wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tracefleet.program import INTERRUPTED

#: A command whose threads and end wait for a server that is gone, with a child beside it.
STUCK = """
import subprocess, sys, threading, time
from contextlib import nullcontext
from flows.commands import ending
ending.HERE_SECONDS = ending.POOLS_SECONDS = float(sys.argv[2])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
threading.Thread(target=time.sleep, args=(60,)).start()
context = {"here": ending.ending_soon(pools=False), "pools": ending.ending_soon(pools=True),
           "without": nullcontext()}[sys.argv[1]]
try:
    with context:
        print(child.pid, flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(60)
"""


@contextmanager
def stuck(context: str, *, seconds: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run such a command, and interrupt it as a terminal does; yield it, and its child."""
    command = [sys.executable, "-c", STUCK, context, str(seconds)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout
    try:
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n", "in order, at first"
        yield process, child
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("context", "told"),
    [("here", "only if its channel line was printed"), ("pools", "prefect flow-run cancel ID")],
)
def test_what_does_not_end_in_order_ends_all_the_same(context: str, told: str):
    with stuck(context, seconds=0.5) as (process, child):
        assert process.wait(20) == INTERRUPTED
        assert process.stderr
        assert told in process.stderr.read()
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_a_second_interrupt_waits_for_nothing():
    with stuck("here", seconds=60) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == INTERRUPTED


def test_without_it_the_command_would_wait():
    with stuck("without", seconds=0.5) as (process, child):
        time.sleep(1.5)
        assert process.poll() is None, "the control"
        assert psutil.Process(child).status() != "zombie"
