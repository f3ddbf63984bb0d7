"""Imports run one way: flows -> tasks -> tracefleet -> the standard library."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_NOT = {"tracefleet": {"tasks", "flows"}, "tasks": {"flows"}, "flows": set()}
S3 = {"boto3", "botocore", "s3transfer", "s3fs", "aiohttp", "urllib3"}
LATE_ONLY = {"torch", "numpy", "tokenizers", *S3}  # inside functions


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Yield each imported top-level name and whether importing the module imports it."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        at_once = id(node) not in late | typing_only
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else str(node.module).split(".")[0], at_once


def violations(package: str, source: str) -> list[str]:
    found = []
    for name, at_once in imports(source):
        third_party = name not in sys.stdlib_module_names | {"tracefleet"}
        heavy = package == "tracefleet" and third_party and (at_once or name not in LATE_ONLY)
        if name == "." or name in MAY_NOT[package] or heavy:
            found.append(name)
    return found


@pytest.mark.parametrize("package", MAY_NOT)
def test_no_module_imports_against_the_current(package: str):
    wrong = {
        str(path): found
        for path in (ROOT / package).rglob("*.py")
        if (found := violations(package, path.read_text("utf-8")))
    }
    assert not wrong


def test_no_flow_file_hides_a_standard_module():
    # Prefect puts flows/ first on sys.path: flows/trace.py would be everyone's `import trace`.
    names = {path.stem for path in (ROOT / "flows").glob("*.py")}
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("tracefleet", "import torch", ["torch"]),
        ("tracefleet", "def f():\n    import torch", []),
        ("tracefleet", "if TYPE_CHECKING:\n    import torch", []),
        ("tracefleet", "def f():\n    import prefect", ["prefect"]),
        ("tracefleet", "def f():\n    from tasks.trace.record import x", ["tasks"]),
        ("tracefleet", "import json\nfrom tracefleet.errors import x", []),
        ("tasks", "import torch\nfrom tracefleet import x", []),
        ("tasks", "def f():\n    from tasks.request.conversion import x", ["flows"]),
        ("tasks", "from . import x", ["."]),
        ("flows", "from tasks.trace.record import x\nfrom prefect import flow", []),
        ("flows", "from .request import x", ["."]),
    ],
)
def test_the_check_sees_what_it_looks_for(package: str, source: str, expected: list[str]):
    assert violations(package, source) == expected
