"""The house: imports run one way, packages name their front doors, nothing hides a module."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.import_graph import (
    ORDER,
    PACKAGES,
    circles,
    describe,
    edges,
    floors,
    grouped,
    imported_names,
    read_sources,
    upward,
)
from tests.support.norms import Counts, rows
from tests.support.order import SLOW, place

ROOT = Path(__file__).parent.parent
SOURCES = read_sources(ROOT)
GRAPH = edges(SOURCES)
FOLDERS = sorted({path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")})
INITS = [folder / "__init__.py" for folder in FOLDERS]
#: The packages whose `__init__` re-exports.
TOURS = {"tracefleet", "tracefleet/store", "tracefleet/text", "tracefleet_pipeline"}
#: Not packages of one purpose: the first shows how to open a model, the second holds packages.
HOUSES = {"tracefleet", "tasks"}
S3 = {"boto3", "botocore", "s3transfer", "s3fs", "aiohttp", "urllib3"}
#: What Triton's Python backend lends to the models that it runs.
LENT = "triton_python_backend_utils"
LATE_ONLY = {
    "argcomplete",
    "torch",
    "numpy",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    *S3,
    LENT,
}
#: What `tracefleet push` imports, late as well; no other part of the wheel may.
HUB = "huggingface_hub"
#: What `tracefleet bench` imports by name, where it is installed; no other part of the wheel may.
BENCH_ONLY = {"transformers", "onnxruntime", "onnx", "matplotlib", "tokenizers"}
CALLS = {"import_optional", "import_module", "__import__"}
#: Where names are imported that are values: AWS's packages, and the bench's one function for it.
BY_NAME = {"tracefleet.reader.neuron", "tracefleet.bench.optional"}
MOST_LINES = 300
#: At most one of these in a statement.
DENSE = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)
#: Still to be shortened.


#: Empty modules for imports to be planted in: every word of the order, and a few inside of words.
PLANTED = dict.fromkeys(
    [
        *(word for words in ORDER for word in words),
        *("tasks.fetch.hub", "tasks.model.load", "tasks.model.heads", "tasks.trace.record"),
        *("tasks.validate.gate", "tasks.backends.jit", "flows.engine.settings"),
        *("flows.commands.fleet", "tracefleet.reader.open"),
    ],
    "",
)


# --- one way -------------------------------------------------------------------------------------


def test_imports_go_to_the_left():
    assert upward(GRAPH) == []


def test_no_files_import_each_other():
    assert circles(GRAPH) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_packages_import_each_other(folder: Path):
    package = ".".join(folder.relative_to(ROOT).parts)
    assert circles(grouped(GRAPH, package)) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tasks.fetch.hub", "from tasks.model.load import x"),
        ("tasks.fetch.hub", "import tasks.model.load"),
        ("tasks.fetch.hub", "from tasks.model import load"),
        ("tasks.fetch.hub", "def f():\n    from tasks.model.load import x"),
        ("tasks.fetch.hub", "if TYPE_CHECKING:\n    from tasks.model.load import x"),
        ("tasks.fetch.hub", "from flows.engine.settings import x"),
        ("tasks.trace.record", "from tasks.validate.gate import x"),
        ("tasks.validate.gate", "from tasks.trace.record import x"),
        ("tasks.publish.find", "from tasks.backends.jit import x"),
        ("tasks.validate.gate", "import tasks.preload"),
        ("tracefleet.errors", "from tasks.errors import x"),
        ("tracefleet.reader.open", "import tracefleet"),
        ("flows.convert", "from flows.convert_checkpoint import x"),
        ("flows.convert_fleet", "from flows.commands.fleet import x"),
        ("flows.commands.fleet", "from flows.__main__ import x"),
    ],
)
def test_an_import_to_the_right_is_seen(name: str, source: str):
    found = upward(edges({**PLANTED, name: source}))
    assert [line.partition(" -> ")[0] for line in found] == [name]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tasks.model.load", "from tasks.fetch.hub import x"),
        ("tasks.model.load", "from tasks.model.heads import x"),
        ("tasks.preload", "import tasks.trace.record, tasks.validate.gate"),
        ("tasks.errors", "from tracefleet import x"),
        ("flows.__main__", "from flows.commands.fleet import x"),
    ],
)
def test_an_import_to_the_left_is_none(name: str, source: str):
    assert edges({**PLANTED, name: source})[name]
    assert upward(edges({**PLANTED, name: source})) == []


def test_a_module_without_a_place_is_seen():
    assert upward(edges({"tasks.new": ""})) == ["tasks.new: no place in the order"]


def test_circles_are_seen():
    sources = {
        "tasks.a.x": "def f():\n    from tasks.b.x import g",
        "tasks.b.x": "from tasks.b import y",
        "tasks.b.y": "if TYPE_CHECKING:\n    import tasks.a.x",
        "tasks.c.x": "import tasks.a.y",
        "tasks.a.y": "import tasks.c.z",
        "tasks.c.z": "import json",
    }
    graph = edges(sources)
    assert circles(graph) == [{"tasks.a.x", "tasks.b.x", "tasks.b.y"}]
    assert circles(grouped(graph, "tasks")) == [{"tasks.a", "tasks.b", "tasks.c"}]
    assert not circles(grouped(graph, "tasks.a"))


def test_floors_are_counted_and_a_circle_is_on_one():
    graph = edges(
        {
            "tasks.low": "",
            "tasks.one": "import tasks.two, tasks.low",
            "tasks.two": "import tasks.one",
            "tasks.high.x": "import tasks.one",
        }
    )
    assert floors(grouped(graph, "tasks")) == {
        "tasks.low": 1,
        "tasks.one": 2,
        "tasks.two": 2,
        "tasks.high": 3,
    }
    assert "tasks: 4 files and folders on 3 floors" in list(describe(graph))


# --- what a package may import from others -------------------------------------------------------


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


def heavy(source: str) -> list[str]:
    """Return what a module of the reader's wheel must not import, or not at once."""
    found = []
    for name, at_once in imports(source):
        third_party = name not in sys.stdlib_module_names | {"tracefleet"}
        if third_party and (at_once or name not in LATE_ONLY):
            found.append(name)
    return found


def _modules(*packages: str) -> dict[str, str]:
    return read_sources(ROOT, packages)


def test_the_wheel_imports_nothing_heavy():
    wrong = {name: heavy(source) for name, source in _modules("tracefleet").items()}
    for name, found in wrong.items():
        if name.startswith("tracefleet.hub.") and not _at_once(name, HUB):
            wrong[name] = [one for one in found if one != HUB]
    assert {name: found for name, found in wrong.items() if found} == {}


def _at_once(module: str, package: str) -> bool:
    return (package, True) in list(imports(_modules("tracefleet")[module]))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", ["torch"]),
        ("def f():\n    import torch", []),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("def f():\n    import prefect", ["prefect"]),
        ("def f():\n    from tasks.trace.record import x", ["tasks"]),
        ("import json\nfrom tracefleet.errors import x", []),
        ("from . import x", ["."]),
    ],
)
def test_a_heavy_import_is_seen(source: str, expected: list[str]):
    assert heavy(source) == expected


def named(source: str) -> list[str]:
    """Return the packages that a module imports by calls; ``?``: a name that is a value."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in CALLS:
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else "?"
            found.append(str(name).split(".")[0])
    return found


def smuggled(module: str, source: str) -> list[str]:
    """Return what a module of the wheel imports by calls and may not."""
    allowed = BENCH_ONLY if module.startswith("tracefleet.bench.") else set()
    if module in BY_NAME:
        allowed = {"?"}
    return [name for name in named(source) if name not in allowed]


def test_the_bench_alone_imports_optional_packages_by_name():
    sources = _modules("tracefleet")
    wrong = {module: smuggled(module, source) for module, source in sources.items()}
    assert {module: found for module, found in wrong.items() if found} == {}
    used = {name for module, source in sources.items() for name in named(source)}
    assert used == {*BENCH_ONLY, "?"}, "nothing is allowed that is not needed"


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("tracefleet.bench.eager", "import_optional('transformers.utils')", []),
        ("tracefleet.bench.eager", "optional.import_optional('prefect')", ["prefect"]),
        ("tracefleet.bench.eager", "importlib.import_module(name)", ["?"]),
        ("tracefleet.reader.open", "import_optional('transformers')", ["transformers"]),
        ("tracefleet.reader.open", "__import__('prefect')", ["prefect"]),
        ("tracefleet.reader.neuron", "importlib.import_module(package)", []),
    ],
)
def test_an_import_by_a_call_is_seen(module: str, source: str, expected: list[str]):
    assert smuggled(module, source) == expected


def needs_prefect(source: str) -> bool:
    return any(module.split(".")[0] == "prefect" for module, _ in imported_names(source))


def test_prefect_is_imported_in_flows_and_infra_alone():
    elsewhere = _modules("tracefleet", "tasks", "benchmarks", "examples")
    found = [name for name, source in elsewhere.items() if needs_prefect(source)]
    assert found == ["examples.reload_on_event"], "a consumer of Prefect's events, and nothing else"


@pytest.mark.parametrize(
    "source",
    [
        "import prefect",
        "from prefect.client.schemas import x",
        "def f():\n    import prefect.logging as logging",
        "if TYPE_CHECKING:\n    from prefect import Flow",
    ],
)
def test_an_import_of_prefect_is_seen(source: str):
    assert needs_prefect(source)
    assert not needs_prefect("import prefectly\nfrom flows.prefect import x")


def test_no_import_is_relative():
    names = {name: imported_names(source) for name, source in SOURCES.items()}
    assert [n for n, found in names.items() if any(m.startswith(".") for m, _ in found)] == []
    assert [module for module, _ in imported_names("from .x import y")] == [".x"]


# --- packages ------------------------------------------------------------------------------------

_DOOR = re.compile(
    r"front doors? (?:is|are)\s+``(?P<door>[\w.]+)``(?:\s+in\s+``(?P<module>\w+)``)?"
)


def front_door(package: str, docstring: str, sources: dict[str, str]) -> str | None:
    """Return the module or function that a package's docstring names as its front door."""
    match = _DOOR.search(docstring)
    if match is None:
        return None
    door, module = match["door"], match["module"]
    reexported = {name for _, name in imported_names(sources.get(package, ""))}
    if module is None and (f"{package}.{door}" in sources or door in reexported):
        return f"{package}.{door}"
    if module is None:
        module, _, door = door.rpartition(".")
    tree = ast.parse(sources.get(f"{package}.{module}", ""))
    defined = {getattr(node, "name", None) for node in tree.body}
    return f"{package}.{module}.{door}" if door in defined else None


@pytest.mark.parametrize("path", INITS, ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_a_package_is_a_docstring_that_names_its_front_door(path: Path):
    assert path.is_file(), "a folder of modules needs an __init__.py that says what it is for"
    tree = ast.parse(path.read_text("utf-8"))
    package = path.parent.relative_to(ROOT)
    docstring = ast.get_docstring(tree)
    assert docstring
    if package.as_posix() not in TOURS:
        assert len(tree.body) == 1, "a docstring, no code and no re-export"
    if package.as_posix() not in HOUSES:
        assert front_door(".".join(package.parts), docstring, SOURCES)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Things; the front door is ``make`` in ``things``.", "tasks.new.things.make"),
        ("Things; its front door is\n``things``.", "tasks.new.things"),
        ("Things; its front door is ``things.make``.", "tasks.new.things.make"),
        ("Things; the front doors are ``shown`` and others.", "tasks.new.shown"),
        ("Things; its front door is ``make``.", None),
        ("Things; its front door is ``gone`` in ``things``.", None),
        ("Things; its front door is ``make`` in ``gone``.", None),
        ("Things.", None),
    ],
)
def test_a_front_door_that_is_not_there_is_seen(docstring: str, expected: str | None):
    sources = {"tasks.new": "from things import shown", "tasks.new.things": "def make(): ..."}
    assert front_door("tasks.new", docstring, sources) == expected


def hidden(names: Iterable[str]) -> set[str]:
    """Return the names that are standard modules, or installed ones other than our own."""
    installed = importlib.metadata.packages_distributions().keys() - {*PACKAGES, "infra"}
    return {Path(name).stem for name in names} & (sys.stdlib_module_names | installed)


def test_nothing_in_flows_hides_a_standard_or_an_installed_module():
    # Prefect puts flows/ first on sys.path: flows/trace.py would be everyone's `import trace`.
    assert not hidden(path.name for path in (ROOT / "flows").iterdir())


@pytest.mark.parametrize("name", ["trace.py", "trace", "prefect", "yaml.py", "torch", "dateutil"])
def test_a_name_that_hides_one_is_seen(name: str):
    assert hidden(["engine", name]) == {Path(name).stem}


# --- size ----------------------------------------------------------------------------------------


def too_long(sources: dict[str, str]) -> dict[str, int]:
    lines = {name: len(source.splitlines()) for name, source in sources.items()}
    return {name: count for name, count in lines.items() if count >= MOST_LINES}


def test_modules_stay_short():
    assert too_long(SOURCES) == {}


def test_a_long_module_is_seen():
    assert too_long({"one": "x\n" * MOST_LINES, "two": "x\n" * (MOST_LINES - 1)}) == {"one": 300}


def test_slow_files_are_there_and_named_once():
    assert len(set(SLOW)) == len(SLOW)
    assert {f"{name}.py" for name in SLOW} <= {path.name for path in (ROOT / "tests").iterdir()}
    assert [place("test_lengths"), place(SLOW[1])] == [len(SLOW), 1]


def test_norms_are_counted():
    source = '''"""A module."""

def named(a: int, b) -> int:
    """Its docstring
    is not its length.
    """
    import json  # a reason
    return [x for x in a] if (y := a) else b  # noqa: E501
'''
    counts = Counts()
    counts.add(source)
    assert counts == Counts(
        modules=[8],
        functions=[3],
        public=1,
        described=1,
        comments=1,
        docstrings=4,
        comprehensions=1,
        conditionals=1,
        walrus=1,
        late_imports=1,
    )
    assert rows(counts)["comments per 100 lines"] == "12.5"


def dense_statements(source: str) -> list[int]:
    """Return the lines of statements with more than one comprehension or conditional expression."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
            items = [item.context_expr for item in getattr(node, "items", [])]
            inner = [one for part in (*parts, *items) for one in ast.walk(part)]
            if sum(isinstance(one, DENSE) for one in inner) > 1:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("name", SOURCES)
def test_a_statement_is_one_thought(name: str):
    assert dense_statements(SOURCES[name]) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = [a for a in b]", []),
        ("x = [a if a else 0 for a in b]", [1]),
        ("if y:\n    x = sum(a for a in b) or max(a for a in c)", [2]),
        ("for a in [b for b in c]:\n    x = a if a else 1", []),
        ("with open(a if a else b), open(c if c else d):\n    pass", [1]),
    ],
)
def test_a_dense_statement_is_seen(source: str, expected: list[int]):
    assert dense_statements(source) == expected
