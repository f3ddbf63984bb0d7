"""Who imports whom, read from the sources: edges between files, circles, and floors.

Every import counts: late ones too, and those for type checkers alone. `tests/test_boundaries.py`
checks the order; ``python -m tests.support.import_graph [ROOT]`` prints floors and circles.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

PACKAGES = ("tracefleet", "tasks", "flows", "tracefleet_pipeline")
#: From left to right: a word may import words to its left, none of its own floor and none above.
#: A word is a module or a package with all that is in it.
ORDER: tuple[tuple[str, ...], ...] = (
    ("tracefleet.errors",),
    (
        "tracefleet.canonical",
        "tracefleet.decode",
        "tracefleet.heads",
        "tracefleet.lengths",
        "tracefleet.opens_with",
        "tracefleet.source",
    ),
    (
        "tracefleet.generation_types",
        "tracefleet.manifest_types",
        "tracefleet.printing",
        "tracefleet.spelling",
    ),
    ("tracefleet.decoding", "tracefleet.text"),
    ("tracefleet.verdict_types",),
    ("tracefleet.manifest", "tracefleet.store", "tracefleet.golden"),
    ("tracefleet.channel_numbers",),
    ("tracefleet.channel", "tracefleet.devices", "tracefleet.program_files"),
    ("tracefleet.names",),
    ("tracefleet.choices", "tracefleet.finding"),
    ("tracefleet.published",),
    (
        "tracefleet.reader",
        "tracefleet.verify",
        "tracefleet.pull",
        "tracefleet.log",
        "tracefleet.single",
    ),
    ("tracefleet.check", "tracefleet.selecting"),
    ("tracefleet.triton", "tracefleet.sagemaker", "tracefleet.hub"),
    ("tracefleet",),
    (
        "tracefleet.check_command",
        "tracefleet.commands",
        "tracefleet.log_command",
        "tracefleet.program",
        "tracefleet.pull_command",
        "tracefleet.push_command",
        "tracefleet.run_command",
        "tracefleet.show_command",
        "tracefleet.bench",
    ),
    ("tracefleet.cli",),
    ("tasks", "tasks.errors"),
    ("tasks.child_main",),
    ("tasks.child",),
    ("tasks.steps",),
    ("tasks.fetch",),
    ("tasks.model",),
    ("tasks.samples",),
    ("tasks.trace", "tasks.validate"),
    ("tasks.backends", "tasks.preload", "tasks.publish", "tasks.report"),
    ("tasks.request",),
    ("tasks.fleet", "tasks.plan", "tasks.sweep"),
    ("flows", "flows.engine"),
    ("flows.prepare_gate",),
    ("flows.convert", "flows.prove_device", "flows.judge_current"),
    (
        "flows.convert_checkpoint",
        "flows.validate_conversion",
        "flows.promote_conversion",
        "flows.validate_current",
        "flows.collect_garbage",
    ),
    ("flows.convert_batch",),
    ("flows.fan_out",),
    ("flows.convert_fleet",),
    ("flows.commands",),
    ("flows.__main__",),
    ("tracefleet_pipeline.house", "tracefleet_pipeline.api", "tracefleet_pipeline.hatch_build"),
    ("tracefleet_pipeline", "tracefleet_pipeline.cli"),
    ("tracefleet_pipeline.__main__",),
)
Graph = dict[str, set[str]]


def read_sources(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the source of each module below ``root``, by its dotted name."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join(parts)] = path.read_text("utf-8")
    return found


def imported_names(source: str) -> Iterator[tuple[str, str]]:
    """Yield each imported module with the name that is taken from it, or an empty one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def edges(sources: Mapping[str, str]) -> Graph:
    """Return for each module which of the others it imports."""
    graph: Graph = {}
    for name, source in sources.items():
        targets = set()
        for module, taken in imported_names(source):
            submodule = f"{module}.{taken}"
            targets.add(submodule if submodule in sources else module)
        graph[name] = (targets & sources.keys()) - {name}
    return graph


def upward(graph: Graph, order: Sequence[Sequence[str]] = ORDER) -> list[str]:
    """Return each import that does not go to the left, and each module without a place."""
    places = {word: place for place, words in enumerate(order) for word in words}
    found = []
    for name, targets in graph.items():
        if _word(name) not in places:
            found.append(f"{name}: no place in the order")
            continue
        for target in sorted(targets):
            inside = _word(target) == _word(name)
            if not inside and places.get(_word(target), 0) >= places[_word(name)]:
                found.append(f"{name} -> {target}")
    return found


def _word(name: str) -> str:
    return ".".join(name.split(".")[:2])


def circles(graph: Graph) -> list[set[str]]:
    """Return each largest set of nodes that all reach one another."""
    reached = {node: _reach(graph, node) for node in graph}
    found: list[set[str]] = []
    for node in graph:
        circle = {other for other in reached[node] if node in reached[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def _reach(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        waiting.extend(graph[node] - seen)
        seen |= graph[node]
    return seen


def grouped(graph: Graph, package: str) -> Graph:
    """Return the edges between a package's own files and folders, each folder one node."""
    found: Graph = {}
    for name, targets in graph.items():
        unit = _unit(name, package)
        if unit:
            units = {_unit(target, package) for target in targets}
            found.setdefault(unit, set()).update(units - {"", unit})
    return found


def _unit(name: str, package: str) -> str:
    """Return the file or folder directly in ``package`` that holds a module, or nothing."""
    depth = package.count(".") + 2
    return ".".join(name.split(".")[:depth]) if name.startswith(f"{package}.") else ""


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each node: one above the highest that it imports; a circle shares one."""
    together = {node: frozenset({node}) for node in graph}
    for circle in circles(graph):
        together |= dict.fromkeys(circle, frozenset(circle))
    heights: dict[frozenset[str], int] = {}

    def height(group: frozenset[str]) -> int:
        if group not in heights:
            below = {together[target] for node in group for target in graph[node]} - {group}
            heights[group] = 1 + max((height(other) for other in below), default=0)
        return heights[group]

    return {node: height(together[node]) for node in graph}


def describe(graph: Graph) -> Iterator[str]:
    """Yield floors and circles, line by line."""
    found = circles(graph)
    yield f"circles between files: {len(found)}, of {sum(map(len, found))} files in all"
    for circle in found:
        yield "  " + " <-> ".join(sorted(circle))
    for package in PACKAGES:
        yield from _describe_package(grouped(graph, package), package)


def _describe_package(units: Graph, package: str) -> Iterator[str]:
    by_floor: dict[int, list[str]] = {}
    for unit, floor in sorted(floors(units).items()):
        by_floor.setdefault(floor, []).append(unit.removeprefix(f"{package}."))
    yield f"{package}: {len(units)} files and folders on {len(by_floor)} floors"
    for floor in sorted(by_floor):
        yield f"  {floor:2}  {', '.join(by_floor[floor])}"
    for circle in circles(units):
        yield f"  circle: {' <-> '.join(sorted(circle))}"


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    print("\n".join(describe(edges(read_sources(root)))))
