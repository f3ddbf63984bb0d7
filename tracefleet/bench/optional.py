"""Import packages that a comparison can do without; one that is missing is an error."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tracefleet.errors import BenchError


def import_optional(name: str) -> Any:
    """Return a module of an optional package.

    Raises:
        BenchError: it is not installed, or can't be imported.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in (name, package):
            raise BenchError(
                f"{package} is not installed; pip install 'tracefleet[bench]'"
            ) from error
        raise _explain(package, error) from error
    except (ImportError, OSError) as error:  # a library that a package loads is missing
        raise _explain(package, error) from error


def _explain(package: str, error: Exception) -> BenchError:
    return BenchError(
        f"{package} is installed, but can't be imported: {first_line(error)}; "
        "pip install 'tracefleet[bench]' brings what it needs"
    )


def find_version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def first_line(error: Exception) -> str:
    """Return the error's first line, with its type where it has no text."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
