"""What an Inf1 worker imports runs on Python 3.10 and torch 1.13, the newest that torch-neuron has.

Neither is where the tests run, so that the sources themselves are read: their syntax, and every use
of a name that the standard library has only since 3.11, or torch only since 2.0.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLDEST = (3, 10)
#: What a worker begins with; the import closure is what has to be importable.
STEPS = (
    "flows.__main__",
    "flows.convert_batch",
    "flows.convert_checkpoint",
    "flows.convert",
    "flows.validate_conversion",
    "tasks.backends.base",
    "tasks.backends.neuron",
    "tasks.child",
    "tasks.validate.compute",
    "tasks.fetch.checkpoint",
    "tasks.preload",
    "tasks.publish.conversion",
    "tasks.trace.record",
    "tasks.trace.untie",
    "tasks.validate.gate",
)
#: Modules, and names of modules and classes, that came with 3.11, 3.12, 3.13 or 3.14.
NEWER: dict[str, set[str]] = {
    "annotationlib": {"*"},
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout", "timeout_at", "QueueShutDown"},
    "asyncio.taskgroups": {"*"},
    "asyncio.timeouts": {"*"},
    "builtins": {"BaseExceptionGroup", "ExceptionGroup", "PythonFinalizationError"},
    "collections.abc": {"Buffer"},
    "compression": {"*"},
    "concurrent.futures": {"InterpreterPoolExecutor"},
    "concurrent.interpreters": {"*"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {
        "EnumCheck",
        "EnumType",
        "FlagBoundary",
        "ReprEnum",
        "StrEnum",
        "global_enum",
        "member",
        "nonmember",
        "property",
        "verify",
    },
    "functools": {"Placeholder"},
    "hashlib": {"file_digest"},
    "importlib.resources.abc": {"*"},
    "inspect": {"BufferFlags", "getasyncgenstate", "getmembers_static", "markcoroutinefunction"},
    "itertools": {"batched"},
    "logging": {"getHandlerByName", "getHandlerNames", "getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call", "is_none", "is_not_none"},
    "os": {"listdrives", "process_cpu_count", "setns", "unshare"},
    "pathlib": {"UnsupportedOperation"},
    "pathlib.Path": {"copy", "from_uri", "is_junction", "move", "walk"},
    "pathlib.types": {"*"},
    "queue": {"ShutDown"},
    "random": {"binomialvariate"},
    "re": {"NOFLAG", "PatternError"},
    "string.templatelib": {"*"},
    "sys": {"activate_stack_trampoline", "exception", "monitoring", "_is_gil_enabled"},
    "threading": {"setprofile_all_threads", "settrace_all_threads"},
    "tomllib": {"*"},
    "types": {"CapsuleType", "get_original_bases"},
    "typing": {
        "LiteralString",
        "Never",
        "NoDefault",
        "NotRequired",
        "ReadOnly",
        "Required",
        "Self",
        "TypeAliasType",
        "TypeIs",
        "TypeVarTuple",
        "Unpack",
        "assert_never",
        "assert_type",
        "clear_overloads",
        "dataclass_transform",
        "get_overloads",
        "get_protocol_members",
        "is_protocol",
        "override",
        "reveal_type",
    },
    "uuid": {"uuid6", "uuid7", "uuid8"},
    "warnings": {"deprecated"},
    "wsgiref.types": {"*"},
}
#: Methods that no class of ours has, and arguments that no function of ours takes.
NEWER_METHODS = {"add_note", "full_match", "is_junction", "with_segments"}
NEWER_ARGUMENTS = {"case_sensitive", "delete_on_close", "onexc", "recurse_symlinks", "walk_up"}
#: The same of torch, each looked for in 1.13.1 itself and not found.
NEWER_TORCH: dict[str, set[str]] = {
    "torch": {
        "SymBool",
        "SymInt",
        "_int_mm",
        "accelerator",
        "compile",
        "cond",
        "float8_e4m3fn",
        "float8_e5m2",
        "get_autocast_dtype",
        "get_default_device",
        "get_device_module",
        "int1",
        "int4",
        "mps",
        "mtia",
        "set_autocast_dtype",
        "set_default_device",
        "sym_int",
        "sym_ite",
        "sym_max",
        "sym_min",
        "uint16",
        "uint32",
        "uint64",
        "unravel_index",
        "vmap",
        "xpu",
    },
    "torch._dynamo": {"*"},
    "torch._inductor": {"*"},
    "torch.amp": {"GradScaler", "custom_bwd", "custom_fwd", "is_autocast_available"},
    "torch.autograd.grad_mode": {"set_multithreading_enabled"},
    "torch.autograd.graph": {"GradientEdge", "increment_version"},
    "torch.backends": {"cpu", "mha"},
    "torch.compiler": {"*"},
    "torch.export": {"*"},
    "torch.func": {"*"},
    "torch.library": {
        "custom_op",
        "impl_abstract",
        "opcheck",
        "register_autograd",
        "register_fake",
        "register_kernel",
        "triton_op",
    },
    "torch.nn": {"Buffer", "CircularPad1d", "RMSNorm", "ZeroPad1d"},
    "torch.nn.attention": {"*"},
    "torch.nn.functional": {"grouped_mm", "rms_norm", "scaled_dot_product_attention"},
    "torch.nn.utils": {"clip_grads_with_norm_", "get_total_norm"},
    "torch.nn.utils.parametrizations": {"weight_norm"},
    "torch.serialization": {
        "add_safe_globals",
        "get_unsafe_globals_in_checkpoint",
        "safe_globals",
        "set_crc32_options",
        "set_default_mmap_options",
        "skip_data",
    },
    "torch.signal": {"*"},
    "torch.utils": {"deterministic", "swap_tensors"},
    "torch.utils._device": {"*"},
    "torch.utils.flop_counter": {"*"},
    "torch.utils.module_tracker": {"*"},
    "torch.utils.serialization": {"*"},
}
#: Of tensors, modules and generators; numpy's arrays have the first two for ever.
NEWER_TORCH_METHODS = {
    "itemsize",
    "nbytes",
    "clone_state",
    "dim_order",
    "graphsafe_set_state",
    "module_load",
    "register_full_backward_pre_hook",
    "register_load_state_dict_pre_hook",
    "register_post_accumulate_grad_hook",
    "register_state_dict_post_hook",
    "register_state_dict_pre_hook",
    "set_submodule",
    "to_real",
    "untyped_storage",
}
#: Method or function -> arguments that it takes since 2.0.
NEWER_TORCH_ARGUMENTS = {
    "load": {"mmap"},
    "load_state_dict": {"assign"},
    "named_buffers": {"remove_duplicate"},
    "named_parameters": {"remove_duplicate"},
    "trace": {"example_kwarg_inputs"},
}
#: Bundles are the backend jit's alone, which is no Inf1 worker's.
JIT_ALONE = {"tasks.trace.bundle"}


def module_path(name: str) -> Path | None:
    """Return a module's file, if it is one of this repository's."""
    if name.split(".")[0] not in ("flows", "tasks", "tracefleet"):
        return None
    path = ROOT / name.replace(".", "/")
    found = [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()]
    return found[0] if found else None


def imported(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, at once or later, but for type checkers alone."""
    tree = ast.parse(source)
    unread = guarded(tree, "TYPE_CHECKING")
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def guarded(tree: ast.AST, test: str) -> set[int]:
    """Return ids of the nodes inside of an ``if`` whose test begins so; not those of its else."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith(test)
        for part in node.body
        for inner in ast.walk(part)
    }


def closure(*names: str) -> dict[str, Path]:
    """Return the modules of this repository that importing and using these ones imports."""
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting.extend(imported(path.read_text("utf-8")))
        waiting.append(name.rpartition(".")[0])
    return found


def complaints(source: str) -> list[str]:
    """Return what a source has that Python 3.10 has not."""
    try:
        tree = ast.parse(source, feature_version=OLDEST)
    except SyntaxError as error:
        return [f"syntax: {error.msg}"]
    known = _names(tree)
    return [found for node in ast.walk(tree) if (found := _complaint(node, known))]


def torch_complaints(source: str) -> list[str]:
    """Return what a source uses that torch 1.13 has not, and that no ``if torch_since`` guards."""
    tree = ast.parse(source)
    known = _names(tree)
    unread = guarded(tree, "TYPE_CHECKING") | guarded(tree, "torch_since(")
    nodes = (node for node in ast.walk(tree) if id(node) not in unread)
    return [found for node in nodes if (found := _torch_complaint(node, known))]


def _torch_complaint(node: ast.AST, known: dict[str, str]) -> str | None:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return next((name for name in _imports(node) if _is_newer(name, NEWER_TORCH)), None)
    if isinstance(node, ast.Attribute):
        whole = f"{_dotted(node.value, known)}.{node.attr}"
        newer = node.attr in NEWER_TORCH_METHODS or _is_newer(whole, NEWER_TORCH)
        return whole if newer else None
    if isinstance(node, ast.withitem):
        held = isinstance(node.context_expr, ast.Call) and _dotted(node.context_expr, known)
        return "with torch.device" if held == "torch.device" else None
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        newer_ones = NEWER_TORCH_ARGUMENTS.get(name, set())
        found = [one.arg for one in node.keywords if one.arg in newer_ones]
        return f"{name}: argument {found[0]}" if found else None
    return None


def _imports(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = node.module or ""
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def _names(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for: ``Path`` for ``pathlib.Path``."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                known[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return known


def _complaint(node: ast.AST, known: dict[str, str]) -> str | None:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return next(filter(_is_newer, _imports(node)), None)
    if isinstance(node, ast.Name):
        # A module's own class of that name is its own affair.
        return node.id if node.id not in known and node.id in NEWER["builtins"] else None
    if isinstance(node, ast.Attribute):
        whole = f"{_dotted(node.value, known)}.{node.attr}"
        return whole if node.attr in NEWER_METHODS or _is_newer(whole) else None
    if isinstance(node, ast.keyword):
        return f"argument {node.arg}" if node.arg in NEWER_ARGUMENTS else None
    return _starred(node)


def _starred(node: ast.AST) -> str | None:
    """``a[*b]`` and ``*args: *Ts``: 3.11's grammar, which feature_version lets through."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and node.slice.elts:
        parts = node.slice.elts
        bare = (parts[0].lineno, parts[0].col_offset) == (node.slice.lineno, node.slice.col_offset)
        unpacked = bare and any(isinstance(one, ast.Starred) for one in parts)
        return "syntax: * in a subscript" if unpacked else None
    if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Starred):
        return "syntax: * in an annotation"
    return None


def _dotted(value: ast.expr, known: dict[str, str]) -> str:
    """Return what a value stands for; ``Path(x)`` for the class."""
    if isinstance(value, ast.Call):
        return _dotted(value.func, known)
    if isinstance(value, ast.Attribute):
        return f"{_dotted(value.value, known)}.{value.attr}"
    return known.get(value.id, "") if isinstance(value, ast.Name) else ""


def _is_newer(whole: str, table: dict[str, set[str]] = NEWER) -> bool:
    module, _, name = whole.rpartition(".")
    return "*" in table.get(whole, ()) or bool(table.get(module, set()) & {name, "*"})


def worker_modules() -> dict[str, Path]:
    ours = (ROOT / "tracefleet").glob("*.py")
    return closure(*STEPS, "tracefleet", *(f"tracefleet.{path.stem}" for path in ours))


def test_what_a_worker_imports_is_found():
    """By a function's import too, and by that of a package."""
    found = worker_modules()
    assert {
        "tasks",
        "tasks.model.load",
        "tasks.trace.bundle",
        "tasks.model.quantise",
        "tracefleet",
    } <= set(found)
    assert {"tasks.backends.jit", "tasks.fetch.s3", "tracefleet.store.durable"} <= set(found)
    assert {"flows", "tasks.request.conversion", "tasks.backends.programs"} <= set(found)
    steps = closure("tasks.backends.neuron", "tasks.publish.conversion")
    assert {
        "tasks.request.conversion",
        "tasks.plan.fleet",
        "tasks.report.conversion.page",
        "tasks.publish.gc",
    }.isdisjoint(steps)


def test_every_module_of_a_worker_runs_on_python_3_10():
    wrong = {
        name: found
        for name, path in sorted(worker_modules().items())
        if (found := complaints(path.read_text("utf-8")))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from datetime import UTC, datetime", ["datetime.UTC"]),
        ("import datetime\ndatetime.datetime.now(datetime.UTC)", ["datetime.UTC"]),
        ("import datetime as d\nd.UTC", ["datetime.UTC"]),
        ("def f():\n    import tomllib", ["tomllib"]),
        ("from tomllib import loads", ["tomllib"]),
        ("from enum import StrEnum\nclass A(StrEnum): ...", ["enum.StrEnum"]),
        ("import enum\nclass A(enum.StrEnum): ...", ["enum.StrEnum"]),
        ("if TYPE_CHECKING:\n    from typing import Self", ["typing.Self"]),
        ("from typing import assert_never, override", ["typing.assert_never"]),
        ("import contextlib\nwith contextlib.chdir('a'): ...", ["contextlib.chdir"]),
        ("import hashlib\nhashlib.file_digest(f, 'sha256')", ["hashlib.file_digest"]),
        ("from itertools import batched", ["itertools.batched"]),
        ("from asyncio import taskgroups", ["asyncio.taskgroups"]),
        (
            "import asyncio\nasync def f():\n    async with asyncio.timeout(1): ...",
            ["asyncio.timeout"],
        ),
        ("raise ExceptionGroup('a', [])", ["ExceptionGroup"]),
        ("def f(error):\n    error.add_note('a')", [".add_note"]),
        ("from pathlib import Path\nPath('a').walk()", ["pathlib.Path.walk"]),
        ("import shutil\nshutil.rmtree('a', onexc=print)", ["argument onexc"]),
        (
            "try: ...\nexcept* ValueError: ...",
            ["syntax: Exception groups are only supported in Python 3.11 and greater"],
        ),
        ("a[*b]", ["syntax: * in a subscript"]),
        ("a[*b, (c)]", ["syntax: * in a subscript"]),
        ("def f(*args: *Ts): ...", ["syntax: * in an annotation"]),
    ],
)
def test_the_check_sees_what_is_newer(source: str, expected: list[str]):
    assert complaints(source) == expected


@pytest.mark.parametrize("source", ["type A = int", "def f[T](a: T): ...", "class A[T]: ..."])
def test_the_check_refuses_newer_syntax(source: str):
    """In words of its own on each Python."""
    (found,) = complaints(source)
    assert found.startswith("syntax: ")


@pytest.mark.parametrize(
    "source",
    [
        "from datetime import datetime, timezone\ndatetime.now(timezone.utc)",
        "match a:\n    case [1, *_]: ...",
        "a[(*b, c)]\na[()]",
        "with (open('a') as a, open('b') as b): ...",
        "def f(a: int | None) -> list[int]: ...",
        "from itertools import pairwise\nzip(a, b, strict=True)",
        "class Store:\n    UTC = 1\nStore.UTC\nfor file in store.walk('a'): ...",
        "from tasks.errors import ExceptionGroup\nExceptionGroup()",
        "from dataclasses import dataclass\n@dataclass(kw_only=True, slots=True)\nclass A: ...",
    ],
)
def test_the_check_lets_python_3_10_through(source: str):
    assert complaints(source) == []


def test_every_module_of_a_worker_runs_on_torch_1_13():
    wrong = {
        name: found
        for name, path in sorted(worker_modules().items())
        if name not in JIT_ALONE and (found := torch_complaints(path.read_text("utf-8")))
    }
    assert not wrong


def test_what_jit_alone_needs_is_left_out_for_a_reason():
    """An entry that nothing needs must go."""
    found = {
        name: torch_complaints(worker_modules()[name].read_text("utf-8")) for name in JIT_ALONE
    }
    assert all(found.values()), found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\ntorch.compile(model)", ["torch.compile"]),
        ("import torch as t\nt.compiler.reset()", ["torch.compiler.reset", "torch.compiler"]),
        ("from torch import func", ["torch.func"]),
        ("from torch.func import vmap", ["torch.func"]),
        ("import torch._dynamo", ["torch._dynamo"]),
        ("from torch.nn.attention import sdpa_kernel", ["torch.nn.attention"]),
        (
            "from torch.nn import functional as F\nF.scaled_dot_product_attention(q, k, v)",
            ["torch.nn.functional.scaled_dot_product_attention"],
        ),
        ("from torch import nn\nnn.RMSNorm(8)", ["torch.nn.RMSNorm"]),
        ("import torch\ntensor.view(torch.uint16)", ["torch.uint16"]),
        ("import torch\nwith torch.device('meta'): ...", ["with torch.device"]),
        ("from torch import device\nwith a, device('meta') as b: ...", ["with torch.device"]),
        (
            "model.named_buffers(remove_duplicate=False)",
            ["named_buffers: argument remove_duplicate"],
        ),
        ("model.load_state_dict(state, assign=True)", ["load_state_dict: argument assign"]),
        ("tensor.untyped_storage().data_ptr()", [".untyped_storage"]),
        ("size = tensor.nbytes", [".nbytes"]),
        (
            "import torch\nif torch_since(2):\n    pass\nelse:\n    torch.compile(model)",
            ["torch.compile"],
        ),
        ("import torch\nif other_since(2):\n    torch.compile(model)", ["torch.compile"]),
    ],
)
def test_the_check_sees_what_torch_1_13_has_not(source: str, expected: list[str]):
    assert torch_complaints(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.jit.trace(model, (ids,), check_trace=False)",
        "import torch\ndevice = torch.device('cpu')\nwith torch.no_grad(): ...",
        "model.named_modules(remove_duplicate=False)",
        "import torch\nif torch_since(2):\n    with torch.device('meta'): ...",
        "if TYPE_CHECKING:\n    from torch import SymInt",
        "from torch.overrides import TorchFunctionMode",
        "import re\nre.compile('a')\nmodel.compile()",
        "import json\njson.load(file)",
    ],
)
def test_the_check_lets_torch_1_13_through(source: str):
    assert torch_complaints(source) == []
