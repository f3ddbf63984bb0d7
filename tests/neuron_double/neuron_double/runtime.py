"""The Neuron runtime: cores, memory, loading and running of programs.

The operators ``neuron::forward_v2`` (torch_neuronx) and ``neuron::forward_1`` (torch_neuron) are
registered here, each with an overload that loads, so that an archive names an unknown operator
where its package was not imported.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuron_double import nest, settings
from neuron_double.artifact import neff_bytes
from neuron_double.execution import run_program

NO_RUNTIME = (
    "The PyTorch Neuron Runtime could not be initialized. Neuron Driver issues are logged to your "
    "system logs."
)
_libraries: dict[str, torch.library.Library] = {}
_loaded: dict[int, Loaded] = {}
_numbers = itertools.count(1)
_turns = itertools.count()
_lock = threading.Lock()
_first_call = threading.Lock()
_placement = threading.local()


@dataclass(kw_only=True)
class Loaded:
    """A program on a core.

    Attributes:
        config: of the model that it belongs to.
        header: of the program.
        program: what runs; None until a lazy model's first call.
        neff: the program's bytes, while it is not loaded.
        core: where it lies; -1: nowhere.
        size: bytes that it takes there.
        state: aliased tensors, kept from call to call.
    """

    config: dict[str, Any]
    header: dict[str, Any]
    neff: Tensor
    program: torch.jit.ScriptModule | None = None
    core: int = -1
    size: int = 0
    state: dict[int, Tensor] = field(default_factory=dict)


def register(operator: str) -> None:
    """Register one of the two operators, once in a process."""
    if operator in _libraries:
        return
    library = torch.library.Library("neuron", "FRAGMENT")
    library.define(
        f"{operator}(Tensor(a!) handle, str config, Tensor[] neff, Tensor[] inputs, "
        "Tensor[] weights) -> Tensor[]"
    )
    library.define(f"{operator}.load(str config, Tensor[] neff) -> Tensor")
    # Above autograd: a compiled model is for inference, and its outputs carry no gradient.
    library.impl(operator, _forward, "CompositeImplicitAutograd")
    library.impl(f"{operator}.load", _load, "CompositeImplicitAutograd")
    _libraries[operator] = library


def visible_cores() -> list[int]:
    """Return the cores that this process may use.

    Raises:
        RuntimeError: the runtime can't be initialised, or another process holds the cores.
    """
    machine = settings.current()
    if machine.device == "none":
        print("NRT:nrt_init Unable to determine Neuron Driver version", file=sys.stderr, flush=True)
        raise RuntimeError(NO_RUNTIME)
    cores = list(range(machine.core_count))
    if chosen := os.environ.get("NEURON_RT_VISIBLE_CORES"):
        first, _, last = chosen.partition("-")
        wanted = list(range(int(first), int(last or first) + 1))
    else:
        count = int(os.environ.get("NEURON_RT_NUM_CORES", "0")) or len(cores)
        wanted = list(range(count))
    free = cores[machine.busy :] if machine.busy else cores
    if not set(wanted) <= set(cores) or not free:
        raise RuntimeError(
            f"Could not load the model status=9 message=NeuronCore(s) not available - Requested:"
            f"{len(wanted)} Available:{len(free)}"
        )
    return [core for core in wanted if core in free]


@contextlib.contextmanager
def placed(start: int, count: int) -> Iterator[None]:
    """Load what this thread loads meanwhile on given cores."""
    kept = getattr(_placement, "value", None)
    _placement.value = (start, count)
    try:
        yield
    finally:
        _placement.value = kept


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Let this thread run programs without a device: a partitioned model is recorded so."""
    _placement.compiling = True
    try:
        yield
    finally:
        _placement.compiling = False


def core_of(handle: Tensor) -> int:
    """Return the core of a loaded model; -1: none yet."""
    return _loaded[int(handle)].core


def _load(config: str, neff: list[Tensor]) -> Tensor:
    """Take a model into the process, and onto a core unless it is lazy; return its handle."""
    handle = torch.tensor(-1)
    _load_for(handle, config, neff)
    return handle


def _load_for(handle: Tensor, config: str, neff: list[Tensor]) -> None:
    parsed = json.loads(config)
    header = json.loads(neff_bytes(neff[0]).partition(b"\n")[0])
    loaded = Loaded(config=parsed, header=header, neff=neff[0])
    if getattr(_placement, "compiling", False):
        _instantiate(loaded)
    elif settings.current().device == "none" and settings.current().legacy:
        warnings.warn("Model was not sent to NeuronCore", stacklevel=2)
    elif not parsed["lazy"]:
        _to_core(loaded)
    number = next(_numbers)
    handle.fill_(number)
    _loaded[number] = loaded
    # The tensor dies with the last model that holds it; its core's memory is free then.
    weakref.finalize(handle, _loaded.pop, number, None)


def _to_core(loaded: Loaded) -> None:
    cores = visible_cores()
    _check_generation(loaded.header)
    with _lock:
        start, count = loaded.config["cores"]
        if start < 0 and getattr(_placement, "value", None):
            start, count = _placement.value
        if start >= 0 and not set(range(start, start + max(count, 1))) <= set(cores):
            raise RuntimeError(
                "Could not load the model status=9 message=NeuronCore(s) not available - "
                f"Requested:nc{start} Available:{len(cores)}"
            )
        loaded.core = start if start >= 0 else cores[next(_turns) % len(cores)]
        loaded.size = loaded.neff.numel()
        used = sum(other.size for other in list(_loaded.values()) if other.core == loaded.core)
        if used + loaded.size > settings.current().bytes_per_core:
            loaded.core, loaded.size = -1, 0
            raise RuntimeError("Could not load the model status=4 message=Allocation Failure")
    _instantiate(loaded)


def _instantiate(loaded: Loaded) -> None:
    archive = neff_bytes(loaded.neff).partition(b"\n")[2]
    loaded.program = torch.jit.load(io.BytesIO(archive))


def _check_generation(header: dict[str, Any]) -> None:
    """Refuse a program of other cores, or of a compiler that the runtime doesn't know."""
    machine = settings.current()
    usual = settings.NEURON_CC if header["target"] == "inf1" else settings.NEURONX_CC
    legacy = os.environ.get("NEURON_RT_ALLOW_LEGACY_NEFF") == "1" and machine.device == "trn2"
    if header["generation"] != machine.generation and not (legacy and header["generation"] == "v2"):
        raise RuntimeError("Could not load the model status=10 message=Unsupported NEFF version")
    if _numbers_of(header["compiler"]) > _numbers_of(machine.runtime_reads or usual):
        print("NEFF version: 2.0, features: 0x100 are not supported", file=sys.stderr, flush=True)
        raise RuntimeError("Could not load the model status=2 message=Invalid")


def _numbers_of(version: str) -> list[int]:
    return [int(part) for part in version.partition("+")[0].split(".")]


def _forward(
    handle: Tensor, config: str, neff: list[Tensor], inputs: list[Tensor], weights: list[Tensor]
) -> list[Tensor]:
    with _first_call:
        if int(handle) < 0:
            _load_for(handle, config, neff)
    if int(handle) not in _loaded:
        raise RuntimeError(NO_RUNTIME)
    loaded = _loaded[int(handle)]
    machine = settings.current()
    if loaded.program is None:
        if machine.device == "none" and machine.legacy == "garbage":
            return [nest.zeros(output) + 1 for output in loaded.header["outputs"]]
        if machine.device == "none" and machine.legacy == "cpu":
            _instantiate(loaded)
        else:
            _to_core(loaded)
    with torch.no_grad():
        return run_program(loaded, [tensor.detach() for tensor in inputs], weights)
