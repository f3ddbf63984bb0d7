"""Compile a device's programs with one of AWS's compilers: a step that neuronx and neuron share.

Each program is one child's whole job: a compiler that dies costs one program's work, its error
names it, its memory goes back to the machine, and an archive's bytes do not depend on what was
compiled before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.backends.base import Job
from tasks.backends.kept_failures import triaging_errors
from tasks.backends.programs import Prepared, Program, program_module
from tasks.child_main import report_progress
from tasks.model.feeds import example_feed
from tasks.model.load import load_eager
from tasks.trace.bundle import TracedFile
from tasks.trace.padded import (
    make_decoder,
    make_decoder_feed,
    make_encoder,
    make_encoder_feed,
)
from tasks.trace.patches import recordable
from tasks.trace.untie import untie
from tracefleet.program_files import DECODE, ENCODE
from tracefleet.store.durable import sha256_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.model.feeds import Feed


def compile_program(
    job: Job,
    prepared: Prepared,
    program: Program,
    log: Path,
    compile_module: Callable[[nn.Module, Feed, Path], torch.jit.ScriptModule],
) -> TracedFile:
    """Load, untie, compile and save one program.

    Args:
        job: Job of the conversion.
        prepared: Result of ``prepare``.
        program: Which one.
        log: Log of this child, with the compiler's messages.
        compile_module: Function that calls the compiler with a module, its example inputs and a
            folder.

    Raises:
        ConversionError: The compiler failed; its folder is kept, and the message names it.
    """
    import torch

    report_progress(f"compiling length {program.name}")
    model = load_eager(job.folder, job.options)
    untie(model)  # proved by prepare
    module, feed = _make_module(model, job, prepared, program)
    workdir = job.work / f"compiler-{program.name}"
    workdir.mkdir(parents=True, exist_ok=True)
    target = job.work / Path(program.published).name
    with triaging_errors(f"length {program.name}", log, workdir, job.failed):
        with torch.no_grad(), recordable(model):
            compiled = compile_module(module, feed, workdir)
        torch.jit.save(compiled, target)
    shutil.rmtree(workdir, ignore_errors=True)
    return TracedFile(
        path=target,
        size=target.stat().st_size,
        sha256=sha256_of(target),
        weight_bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        published=program.published,
    )


def _make_module(
    model: nn.Module, job: Job, prepared: Prepared, program: Program
) -> tuple[nn.Module, Feed]:
    """Return what is compiled, and its example inputs."""
    facts, length = job.facts, program.length
    if program.part == ENCODE:
        return make_encoder(model), make_encoder_feed(facts, job.batch, length)
    if program.part == DECODE:
        assert prepared.generation is not None
        rows = job.batch * prepared.generation.num_beams
        return make_decoder(model), make_decoder_feed(model, facts, rows, length)
    feed = example_feed(facts, batch=job.batch, length=length)
    return program_module(model, facts, prepared.outputs), feed
