"""Build the C++ examples with CMake, and compare what they answer with the Python reader.

``python -m examples.cpp.build [STORE]`` takes the first bundle that STORE lists (default
``./store``); where nothing is published yet, the sample checkpoint is converted first.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tracefleet
from examples.sample import ensure_sample
from flows.__main__ import main as flows
from tracefleet.channel import find_variants
from tracefleet.published import Selection, resolve
from tracefleet.pull import pull
from tracefleet.reader.open import open_selected
from tracefleet.store import ReadableStore, open_existing

FOLDER = Path(__file__).parent
ROWS = [[101, 7592, 2088, 102], [101, 2023, 102]]
_HEADERS = ("nlohmann/json.hpp", "openssl/evp.h")


def find_missing() -> str | None:
    """Say what building the examples needs and this machine lacks; None: nothing."""
    for program in ("cmake", "make", "g++"):
        if shutil.which(program) is None:
            return f"expected {program}, got none: apt install cmake make g++"
    for header in _HEADERS:
        if not any((folder / header).is_file() for folder in _find_includes()):
            return f"expected {header}, got none: apt install nlohmann-json3-dev libssl-dev"
    return None


def build(target: Path, *targets: str, flags: str = "-O2") -> Path:
    """Build programs of ``CMakeLists.txt``; about a minute, nearly all of it libtorch's headers.

    Args:
        target: folder for what CMake makes.
        targets: names of the programs; none: all of them.
        flags: of the compiler.

    Returns:
        The folder with the programs.

    Raises:
        RuntimeError: something is missing, or CMake or the compiler refused.
    """
    missing = find_missing()
    if missing is not None:
        raise RuntimeError(missing)
    prefixes = [torch.utils.cmake_prefix_path, *map(str, _find_wheel())]
    _run(
        ["cmake", "-S", str(FOLDER), "-B", str(target), f"-DCMAKE_CXX_FLAGS_RELEASE={flags}",
         f"-DCMAKE_PREFIX_PATH={';'.join(prefixes)}"]
    )  # fmt: skip
    chosen = ["--target", *targets] if targets else []
    _run(["cmake", "--build", str(target), *chosen])
    return target


def compile_source(source: Path, target: Path) -> Path:
    """Compile one C++ program that needs libtorch alone; about half a minute.

    Raises:
        RuntimeError: there is no g++, or it refused.
    """
    if shutil.which("g++") is None:
        raise RuntimeError("expected a C++ compiler named g++, got none; install one first")
    root = Path(torch.__file__).parent
    _run([
        "g++", "-std=c++20", "-O1", str(source), "-o", str(target),
        f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}",
        f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ])  # fmt: skip
    return target


def ask(
    programs: Path, folder: Path, requests: Sequence[dict[str, Any]], *, threads: int = 1
) -> list[dict[str, Any]]:
    """Return what ``serve`` answers to requests.

    Raises:
        RuntimeError: it could not open the conversion; the message is its own.
    """
    lines = "".join(f"{json.dumps(request)}\n" for request in requests)
    command = [str(programs / "serve"), str(folder), str(threads)]
    outcome = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(outcome.stderr)
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def same_bits(answer: dict[str, Any], expected: tracefleet.Outputs) -> bool:
    """Tell whether an answer holds the same numbers, bit for bit, as the reader's outputs."""
    if set(answer) != set(expected):
        return False
    for name, value in expected.items():
        array = np.asarray(value)
        got = np.asarray(answer[name]["values"]).reshape(answer[name]["shape"])
        if not np.array_equal(got.astype(array.dtype), array):
            return False
    return True


def main() -> int:
    """Build, run, compare; return the exit code."""
    store = sys.argv[1] if len(sys.argv) > 1 else "./store"
    selection = _find_bundle(store)
    if selection is None:
        code = flows(["convert", str(ensure_sample()), "--name", "minilm", "--store", store])
        selection = _find_bundle(store)
        if code or selection is None:
            return code or 1
    with tempfile.TemporaryDirectory() as scratch:
        return _compare(open_existing(store), selection, Path(scratch))


def _compare(store: ReadableStore, selection: Selection, scratch: Path) -> int:
    print("building examples/cpp", flush=True)
    try:
        programs = build(scratch / "build")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    pull(store, selection, scratch / "pulled")
    print("golden samples:", flush=True)
    golden = [str(programs / "golden"), str(scratch / "pulled")]
    code = subprocess.run(golden, check=False).returncode
    if code:
        return code
    model = open_selected(store, selection)
    row = ROWS[0]
    [answer] = ask(programs, scratch / "pulled", [{"rows": [row]}])
    same = same_bits(answer, model([row]))
    print(f"ids {row}: C++ and Python {'the same bits' if same else 'DIFFER'}")
    return 0 if same else 1


def _find_bundle(store: str) -> Selection | None:
    if not Path(store).is_dir():
        return None
    opened = open_existing(store)
    for published in find_variants(opened):
        if ".jit." in published.variant:
            return resolve(opened, published)
    return None


def _find_wheel() -> list[Path]:
    """Return the folder of the wheel ``nlohmann-json``, which is not to be imported."""
    try:
        found = files("nlohmann-json") or []
    except PackageNotFoundError:
        return []
    headers = [file for file in found if file.as_posix().endswith("include/nlohmann/json.hpp")]
    return [Path(str(file.locate())).parents[2] for file in headers]


def _find_includes() -> list[Path]:
    wheel = [folder / "include" for folder in _find_wheel()]
    return [*wheel, Path("/usr/include"), Path("/usr/local/include")]


def _run(command: Sequence[str]) -> None:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        told = f"{outcome.stdout[-1000:]}\n{outcome.stderr[-2000:]}"
        raise RuntimeError(f"{command[0]} refused:\n{told}")


if __name__ == "__main__":
    sys.exit(main())
