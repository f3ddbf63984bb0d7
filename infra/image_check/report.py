"""How the check talks: one line for each thing proved, an error for the first that isn't so."""

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
    """Something is not as it has to be; the message says what."""


def until(condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """Wait for a condition and return its answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.5)
    raise CheckError(f"expected within {seconds:.0f} s that {what}")


def expect(got: object, expected: object, what: str) -> None:
    """Stop with an error if something is not what it has to be."""
    if got != expected:
        raise CheckError(f"{what}: expected {expected!r}, got {got!r}")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what was done, and how long it took."""
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
