"""Output of the check: one line for each passed check, an error for the first failed one."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parent.parent.parent
T = TypeVar("T")


class CheckError(Exception):
    """A check failed; the message has what was expected and got."""


def until(condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """Wait for a condition and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.5)
    raise CheckError(f"expected within {seconds:.0f} s that {what}")


def expect(got: object, expected: object, what: str) -> None:
    """Raise a `CheckError` if a value is not the expected one."""
    if got != expected:
        raise CheckError(f"{what}: expected {expected!r}, got {got!r}")


@contextmanager
def timing(what: str) -> Iterator[None]:
    """Print what was done and how long it took."""
    started = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """Print a line."""
    print(f"image-check: {text}", flush=True)


def output(*command: str) -> str:
    """Run a command and return what it prints."""
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if outcome.returncode:
        raise CheckError(f"{shlex.join(command)}: exit {outcome.returncode}\n{outcome.stderr}")
    return outcome.stdout
