"""AWS Neuron through ``torch_neuronx.trace``: Inf2, Trn1 and Trn2.

Written against the documented interface of torch_neuronx 2.9 (AWS Neuron 2.31, July 2026), the last
one that compiles TorchScript; the README lists what it was run against.
"""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.backends import device_gate, host, programs
from tasks.backends.base import Backend, Job
from tasks.backends.compiling import compile_program
from tasks.backends.options import NeuronxOptions
from tasks.backends.programs import Prepared, Program
from tasks.backends.prove_programs import Compiler, prove_programs
from tasks.child_main import report_progress
from tasks.errors import CompilationError
from tasks.trace.bundle import TracedFile
from tracefleet.program_files import FORWARD

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.model.feeds import Feed

_NAME = "neuronx"
#: target -> value of NEURON_PLATFORM_TARGET_OVERRIDE: documented are trn1|inf2|gen2, trn2|gen3 and
#: trn3|gen4 (nki); trn1n is no value, its cores are trn1's.
PLATFORMS = {"inf2": "inf2", "trn1": "trn1", "trn1n": "trn1", "trn2": "trn2", "trn3": "trn3"}


def prepare(job: Job, log: Path) -> Prepared:
    """See ``programs.prepare``; where it is asked for, names unsupported operators first.

    Raises:
        CompilationError: Reason ``unsupported operator``.
    """
    _set_platform(job)
    options = _options(job)
    analyze = partial(_analyze, workdir=job.work / "analysis") if options.analyze else None
    return programs.prepare(job, log, analyze)


def compile_one(job: Job, prepared: Prepared, program: Program, log: Path) -> TracedFile:
    """See ``compiling.compile_program``."""
    _set_platform(job)
    options = _options(job)
    # A search's position has no rows, which would be split.
    dynamic = options.dynamic_batch and program.part == FORWARD

    def compile_module(module: nn.Module, feed: Feed, workdir: Path) -> torch.jit.ScriptModule:
        package = host.import_runtime(_NAME)
        compiled: torch.jit.ScriptModule = package.trace(
            module,
            tuple(feed.values()),
            compiler_workdir=str(workdir),
            compiler_args=_write_flags(options, workdir),
            inline_weights_to_neff=not options.separate_weights,
            # Without a device only this, with an explicit target, compiles (aws-neuron-sdk #910).
            cpu_backend=not job.device,
        )
        return package.dynamic_batch(compiled) if dynamic else compiled

    return compile_program(job, prepared, program, log, compile_module)


def _write_flags(options: NeuronxOptions, workdir: Path) -> str:
    """Return the compiler's flags in one string, as every public caller of cpu_backend does."""
    # Its log's default is a file in the working directory, which an image's user can't write.
    log = ["--logfile", str(workdir / "log-neuron-cc.txt")]
    return shlex.join([*options.compiler_args_for(host.compiler_numbers(_NAME)), *log])


def _options(job: Job) -> NeuronxOptions:
    assert isinstance(job.compiling, NeuronxOptions)
    return job.compiling


def _set_platform(job: Job) -> None:
    """Name the platform to compile for on a host without a device."""
    # Read when the package is imported. Another value from outside would contradict --target.
    if not job.device:
        os.environ["NEURON_PLATFORM_TARGET_OVERRIDE"] = PLATFORMS[_options(job).target]


def _analyze(module: nn.Module, feed: Feed, workdir: Path) -> None:
    """Refuse what the SDK's analysis says is not supported; an analysis that fails says nothing."""
    package = host.import_runtime(_NAME)
    try:
        report: dict[str, Any] = package.analyze(
            module,
            tuple(feed.values()),
            compiler_workdir=str(workdir),
            # AWS recommends it for models of transformers, "to prevent deadlocks".
            is_hf_transformers=True,
            cleanup=True,
        )
    except Exception as error:  # whatever it is: only the compilation decides
        first = str(error).partition("\n")[0]
        report_progress(f"no analysis of operators: {type(error).__name__}: {first}")
        return
    refused = {one["kind"]: one["failureAt"] for one in report["unsupported_operators"]}
    if refused:
        named = ", ".join(f"{kind} (at {where})" for kind, where in sorted(refused.items()))
        raise CompilationError(
            f"expected operators that neuronx-cc {report['neuronx_cc_version']} supports, got "
            f"{named}; {report['support_percentage']} of all calls are supported. Convert this "
            "checkpoint for jit.",
            reason="unsupported operator",
        )


COMPILER = Compiler(
    toolchain=partial(host.toolchain, _NAME),
    has_device=partial(host.has_device, _NAME),
    prepare=prepare,
    compile=compile_one,
    validate=partial(device_gate.validate_programs, backend=_NAME),
    validate_search=partial(device_gate.validate_search, backend=_NAME),
)
NEURONX = Backend(
    name=_NAME,
    toolchain=COMPILER.toolchain,
    has_device=COMPILER.has_device,
    prove=partial(prove_programs, compiler=COMPILER),
)
