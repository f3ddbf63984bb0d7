"""The SDK under test: the double, or the real one on a Neuron host, for the same contract tests.

A test says with ``shows`` which behaviours it is about. Where the real SDK differs, the difference
is kept for a printed list; it fails the test only if a documented behaviour is among them, because
an assumption that turns out wrong is a mistake of the double.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neuron_double.behaviours import BEHAVIOURS
from neuron_double.settings import configured

STATUS = {row.name: row.status for row in BEHAVIOURS}
_DEVICE = "/dev/neuron0"


class Sdk:
    """One package under test.

    Attributes:
        package: torch_neuronx or torch_neuron.
        real: whether it is AWS's.
    """

    def __init__(self, package: str, real: bool) -> None:
        self.package, self.real = package, real

    @contextlib.contextmanager
    def on(self, **machine: Any) -> Iterator[Any]:
        """Give the package on a machine; the real one is where it is, and can't be told to fail."""
        if self.real:
            if machine.keys() - {"device"} or machine.get("device") == "none":
                pytest.skip("needs a machine that only the double can imitate")
            yield pytest.importorskip(self.package)
            return
        usual = "inf2" if self.package == "torch_neuronx" else "inf1"
        with configured(**{"device": usual, **machine}):
            yield importlib.import_module(self.package)


def sdks(package: str) -> list[Any]:
    """Return the parameters of a fixture: the double, and the real SDK where its device is."""
    found = [pytest.param(Sdk(package, real=False), id="double")]
    if has_device():
        found.append(
            pytest.param(Sdk(package, real=True), id="real", marks=pytest.mark.real_neuron)
        )
    return found


def has_device() -> bool:
    """Tell whether this machine has a Neuron device."""
    return Path(_DEVICE).exists()


class Contract:
    """Where the real SDK differed, behaviour by behaviour."""

    def __init__(self) -> None:
        self.differences: list[str] = []

    def shows(self, *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Mark a test with the behaviours that it shows.

        Raises:
            ValueError: an assumed one among others: a wrong assumption would hide what they show.
        """
        if len({STATUS[name] == "assumed" for name in names}) > 1:
            raise ValueError(f"{names}: assumed behaviours need tests of their own")

        def decorate(test: Callable[..., None]) -> Callable[..., None]:
            @functools.wraps(test)
            def run(**fixtures: Any) -> None:
                try:
                    test(**fixtures)
                except (Exception, pytest.fail.Exception) as error:
                    if any(isinstance(x, Sdk) and x.real for x in fixtures.values()):
                        self._differs(names, error)
                    raise

            return run

        return decorate

    def _differs(self, names: tuple[str, ...], error: BaseException) -> None:
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        self.differences += [f"{name} ({STATUS[name]}): {words}" for name in names]
        if all(STATUS[name] == "assumed" for name in names):
            pytest.xfail(f"the double assumes {names}; the real SDK differs: {words}")
