"""The house's norms, counted: sizes, annotations, docstrings, comments, dense expressions.

``python -m tests.support.norms [ROOT]`` prints one column a package. Lines of a function are its
own, without its docstring; late imports are those inside of functions.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.import_graph import PACKAGES

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COLUMNS = 80
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(kw_only=True)
class Counts:
    """What a package amounts to.

    Attributes:
        modules: lines of each module.
        functions: lines of each function.
        annotated: functions with every argument and the result annotated.
        public: functions without a leading underscore, in no other function.
        described: those of them with a docstring.
        comments: lines that hold a comment, directives for tools left out.
        docstrings: lines of docstrings.
        comprehensions: of every kind.
        conditionals: conditional expressions.
        walrus: assignment expressions.
        late_imports: import statements inside of functions.
        wide: lines over 80 columns.
    """

    modules: list[int] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    annotated: int = 0
    public: int = 0
    described: int = 0
    comments: int = 0
    docstrings: int = 0
    comprehensions: int = 0
    conditionals: int = 0
    walrus: int = 0
    late_imports: int = 0
    wide: int = 0

    def add(self, source: str) -> None:
        """Count one module."""
        lines = source.splitlines()
        self.modules.append(len(lines))
        self.wide += sum(len(line) > _COLUMNS for line in lines)
        self.comments += sum(1 for _ in _comments(source))
        tree = ast.parse(source)
        for node in ast.walk(tree):
            self.comprehensions += isinstance(node, _COMPREHENSIONS)
            self.conditionals += isinstance(node, ast.IfExp)
            self.walrus += isinstance(node, ast.NamedExpr)
            if isinstance(node, _DOCUMENTED):
                self.docstrings += _docstring_lines(node)
            if isinstance(node, _FUNCTIONS):
                self._add_function(node)
        late = {id(one): one for function in _functions(tree) for one in ast.walk(function)}
        self.late_imports += sum(isinstance(n, ast.Import | ast.ImportFrom) for n in late.values())
        for function in _public(tree):
            self.public += 1
            self.described += ast.get_docstring(function) is not None

    def _add_function(self, node: Function) -> None:
        assert node.end_lineno is not None
        self.functions.append(node.end_lineno - node.lineno + 1 - _docstring_lines(node))
        self.annotated += node.returns is not None and all(
            argument.annotation is not None for argument in _arguments(node)
        )


def _comments(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        directive = token.string.lstrip("#: ").startswith(("noqa", "type: ignore"))
        if token.type == tokenize.COMMENT and not directive:
            yield token.string


def _docstring_lines(node: ast.AST) -> int:
    first = getattr(node, "body", [None])[0]
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
        return 0
    if not isinstance(first.value.value, str):
        return 0
    return (first.end_lineno or first.lineno) - first.lineno + 1


def _functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS))


def _public(node: ast.Module | ast.ClassDef) -> Iterator[Function]:
    for inner in node.body:
        if isinstance(inner, _FUNCTIONS) and not inner.name.startswith("_"):
            yield inner
        elif isinstance(inner, ast.ClassDef) and not inner.name.startswith("_"):
            yield from _public(inner)


def _arguments(node: Function) -> Iterator[ast.arg]:
    found = node.args
    optional = [one for one in (found.vararg, found.kwarg) if one is not None]
    for one in [*found.posonlyargs, *found.args, *found.kwonlyargs, *optional]:
        if one.arg not in ("self", "cls"):
            yield one


def count(paths: Iterable[Path]) -> Counts:
    """Count some modules."""
    counts = Counts()
    for path in paths:
        counts.add(path.read_text("utf-8"))
    return counts


def _sizes(found: list[int]) -> str:
    ordered = sorted(found)
    return f"{ordered[len(ordered) // 2]} / {ordered[len(ordered) * 9 // 10]} / {ordered[-1]}"


def rows(counts: Counts) -> dict[str, str]:
    """Return each measure with its value."""
    lines = sum(counts.modules)
    return {
        "files": str(len(counts.modules)),
        "lines": str(lines),
        "module lines median / p90 / max": _sizes(counts.modules),
        "function lines median / p90 / max": _sizes(counts.functions),
        "fully annotated": f"{counts.annotated / len(counts.functions):.0%}",
        "public functions with docstring": f"{counts.described / counts.public:.0%}",
        "comments per 100 lines": f"{100 * counts.comments / lines:.1f}",
        "docstring lines per 100": f"{100 * counts.docstrings / lines:.0f}",
        "comprehensions per 1,000": f"{1000 * counts.comprehensions / lines:.0f}",
        "conditional expressions per 1,000": f"{1000 * counts.conditionals / lines:.0f}",
        "walrus per 1,000": f"{1000 * counts.walrus / lines:.1f}",
        "late imports per 1,000": f"{1000 * counts.late_imports / lines:.1f}",
        "lines over 80 columns": f"{counts.wide / lines:.0%}",
    }


def main(root: Path, packages: Iterable[str]) -> None:
    """Print one column for each package that is there."""
    columns = {name: rows(count(sorted((root / name).rglob("*.py")))) for name in packages}
    print(f"{'':36}" + "".join(f"{name:>16}" for name in columns))
    for measure in next(iter(columns.values())):
        print(f"{measure:36}" + "".join(f"{found[measure]:>16}" for found in columns.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), (*reversed(PACKAGES), "infra", "tests"))
