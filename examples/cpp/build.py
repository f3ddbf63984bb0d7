"""Build the C++ consumer against the libtorch of the installed torch, and run it on a store.

``python -m examples.cpp.build [STORE]`` opens the first conversion that STORE lists (default
``./store``) and prints C++'s outputs beside Python's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch

import tracefleet
from tracefleet.channel import find_variants
from tracefleet.store import open_store

SOURCE = Path(__file__).parent / "consumer.cpp"
IDS = [101, 7592, 2088, 102]


def build(target: Path) -> Path:
    """Compile the consumer; see ``compile_source``."""
    return compile_source(SOURCE, target)


def compile_source(source: Path, target: Path) -> Path:
    """Compile a C++ program; about half a minute, nearly all of it torch's headers.

    Raises:
        RuntimeError: there is no g++, or it refused.
    """
    if shutil.which("g++") is None:
        raise RuntimeError("expected a C++ compiler named g++, got none; install one first")
    root = Path(torch.__file__).parent
    command = [
        "g++", "-std=c++20", "-O1", str(source), "-o", str(target),
        f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}",
        f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]  # fmt: skip
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(f"g++ refused {source.name}:\n{outcome.stderr[-2000:]}")
    return target


def main() -> int:
    """Build, run, compare by eye."""
    store = sys.argv[1] if len(sys.argv) > 1 else "./store"
    published = next(find_variants(open_store(store)), None)
    if published is None:
        print(f"error: nothing is published in {store}; run make demo first", file=sys.stderr)
        return 1
    model = tracefleet.open(store, published.slug)
    bundle = next(Path(store).rglob(f"{model.manifest.key}/{model.manifest.bundle.path}"))
    print(f"building {SOURCE.name}", flush=True)
    binary = build(Path(store).resolve().parent / ".bench-consumer")
    try:
        arguments = [str(bundle), str(len(model.input_names)), *map(str, IDS)]
        code = subprocess.run([str(binary), *arguments], check=False).returncode
        samples = model.manifest.validation.samples
        if code == 0 and samples is not None:
            print("golden samples:", flush=True)
            file = bundle.parents[2] / samples.path
            code = subprocess.run(
                [str(binary), str(bundle), "--check", str(file)], check=False
            ).returncode
    finally:
        binary.unlink()
    for name, value in model([IDS]).items():
        print(f"python {name} sum {float(value.astype('float64').sum())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
