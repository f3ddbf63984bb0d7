"""The compiler: faults, diagnostics, the working folder, and at last a program (NEFF).

A program is one header line of JSON, then a TorchScript archive of the rewritten graph.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from neuron_double import nest, recording, settings, support
from neuron_double.flags import Flags
from neuron_double.precision import imprecise
from neuron_double.stamp import STAMP

GENERATIONS = {"inf1": "v1", "inf2": "v2", "trn1": "v2", "trn1n": "v2", "trn2": "v3", "trn3": "v4"}
_HANG_SECONDS = "3600"


class CompilerExitError(RuntimeError):
    """The compiler's process ended with a status that is not 0."""

    def __init__(self, compiler: str, status: int) -> None:
        super().__init__(f"{compiler} failed with {status}")
        self.status = status


def compile_graph(
    graph: GraphModule,
    examples: list[Tensor],
    flags: Flags,
    workdir: Path | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    spared: bool = False,
) -> bytes:
    """Compile a graph to a program.

    Args:
        graph: of aten operators; rewritten in place.
        examples: what it takes, in order.
        flags: of the compiler call.
        workdir: where the compiler's files stay; None: nowhere.
        facts: more for the header.
        timeout: seconds before a hanging compiler is given up; None: never.
        spared: the configured fault is not meant for this program.

    Raises:
        CompilerExitError: an injected fault.
        subprocess.TimeoutExpired: it hung longer than the timeout.
    """
    nodes = recording.operators(graph)
    _keep(workdir, {"graph.hlo": str(graph.graph), "command.txt": flags.line})
    if not spared:
        strike(flags, examples, timeout)
    time.sleep(settings.current().seconds_per_op * len(nodes))
    with torch.no_grad():
        rewritten = imprecise(graph, flags.cast, flags.cast_type)
        program = torch.jit.trace(rewritten, tuple(examples), check_trace=False)
        outputs = nest.described(list(program(*examples)))
    header = {
        "stamp": STAMP,
        "target": flags.target,
        "generation": GENERATIONS[flags.target],
        "compiler": compiler_version(flags.target),
        "inputs": nest.described(examples),
        "outputs": outputs,
        **(facts or {}),
    }
    buffer = io.BytesIO()
    torch.jit.save(program, buffer)
    neff = json.dumps(header).encode() + b"\n" + buffer.getvalue()
    _keep(workdir, {"log-neuron-cc.txt": f"{STAMP}: compiled {len(nodes)} operators\n"})
    if workdir is not None:
        (workdir / "graph.neff").write_bytes(neff)
    return neff


def compiler_version(target: str) -> str:
    """Return the version of the compiler for a target."""
    usual = settings.NEURON_CC if target == "inf1" else settings.NEURONX_CC
    return settings.current().compiler or usual


def fail(compiler: str, status: int, diagnostic: str = "") -> CompilerExitError:
    """Return the error of a failed compiler, its diagnostic on stderr as the real one's."""
    if diagnostic:
        print(f"[ERROR] {diagnostic}", file=sys.stderr, flush=True)
    return CompilerExitError(compiler, status)


def refuse_unsupported(nodes: list[torch.fx.Node]) -> None:
    """Fail as torch_neuronx does where an operator is not supported."""
    for name in support.refused(nodes):
        where, diagnostic = support.refusals()[name]
        if where == support.LOWERING:
            raise RuntimeError(f"{name}: no lowering to HLO. {diagnostic}")
        raise fail("neuronx-cc", 70, f"{diagnostic} Operator: {name}")


def strike(flags: Flags, examples: list[Tensor], timeout: float | None) -> None:
    """Let the configured fault happen, if it is meant for this program."""
    fault, shape = settings.current().fault, settings.current().fault_shape
    if not fault or (shape and "x".join(map(str, examples[0].shape)) != shape):
        return
    compiler = "neuron-cc" if flags.target == "inf1" else "neuronx-cc"
    if fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        # A process of its own, as the real compiler: whoever gives up must end both.
        subprocess.run(["sleep", _HANG_SECONDS], check=True, timeout=timeout)
    if fault == "no_compiler":
        raise RuntimeError(
            f"{compiler} is not installed. It can be installed with pip install {compiler}"
        )
    if fault == "limit2gb":
        raise ValueError("Message xla.HloModuleProto exceeds maximum protobuf size of 2GB")
    if fault == "killed":
        raise fail(compiler, -9)
    if status := re.fullmatch(r"exit(\d+)", fault):
        raise fail(compiler, int(status[1]))
    raise fail(compiler, 70, f"[{fault}] injected")


def _keep(workdir: Path | None, files: dict[str, str]) -> None:
    if workdir is None:
        return
    workdir.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (workdir / name).write_text(text)
