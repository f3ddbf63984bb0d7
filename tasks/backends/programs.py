"""Steps that neuronx and neuron share: a program for each length, made by one of AWS's compilers.

Each step is one child's whole job. Lengths are compiled in children of their own: a compiler that
dies costs one length's work, its error names the length, its memory goes back to the machine, and
an archive's bytes do not depend on what was compiled before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.backends.base import Job
from tasks.backends.triage import triage
from tasks.child_main import report_progress
from tasks.errors import BackendUnavailableError, ConversionError, TraceError
from tasks.model.facts import ModelFacts
from tasks.model.feeds import example_feed, input_specs
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple, describe_outputs
from tasks.model.state import sparing_buffers
from tasks.trace.bundle import TracedFile
from tasks.trace.compare import has_topk_or_sort
from tasks.trace.patches import recordable
from tasks.trace.record import trace_lengths
from tasks.trace.untie import untie, untie_with_proof
from tasks.validate.gate import judge
from tasks.validate.reference import Reference
from tasks.validate.verdict import ValidationReport
from tracefleet import errors
from tracefleet.manifest import program_path
from tracefleet.manifest_types import OutputSpec, Toolchain
from tracefleet.reader import neuron
from tracefleet.reader.programs import compose
from tracefleet.store.durable import sha256_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.model.feeds import Feed

#: Number of failed compilations' folders that are kept for people to look at.
_KEPT_FAILURES = 10


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Facts of a model's graph, found before anything is compiled.

    Attributes:
        outputs: Elements of the tuple that every program returns.
        tied_groups: Names that shared storage before untying.
        has_topk_or_sort: Whether the program uses top-k or sort, whose ties padding may break
            differently.
    """

    outputs: tuple[OutputSpec, ...]
    tied_groups: tuple[tuple[str, ...], ...]
    has_topk_or_sort: bool


def prepare(
    job: Job, log: Path, analyze: Callable[[nn.Module, Feed], None] | None = None
) -> Prepared:
    """Describe a model's outputs, prove its untying, and refuse early what can't be compiled.

    Args:
        job: Job of the conversion.
        log: Log of this child, with the compiler's messages.
        analyze: Function that raises where the compiler lacks an operator.

    Raises:
        ConversionError: Eager can't run it, untying changed a bit, it can't be recorded, or the
            compiler lacks an operator.
    """
    report_progress("loading the checkpoint")
    model = load_eager(job.folder, job.options)
    outputs = describe_outputs(model, job.facts)
    first = job.lengths[0]
    groups = untie_with_proof(model, job.facts, outputs, first, job.batch)
    traced = trace_lengths(model, job.facts, outputs, (first,), job.batch)
    if analyze is not None:
        report_progress("checking which operators the compiler supports")
        module = program_module(model, job.facts, outputs)
        with recordable(model), _triaging_errors("operators", log):
            analyze(module, example_feed(job.facts, batch=job.batch, length=first))
    return Prepared(
        outputs=outputs, tied_groups=groups, has_topk_or_sort=has_topk_or_sort(traced, first)
    )


def compile_program(
    job: Job,
    prepared: Prepared,
    length: int,
    log: Path,
    compile_module: Callable[[nn.Module, Feed, Path], torch.jit.ScriptModule],
) -> TracedFile:
    """Load, untie, compile and save the program of one length.

    Args:
        job: Job of the conversion.
        prepared: Result of ``prepare``.
        length: Standard length.
        log: Log of this child, with the compiler's messages.
        compile_module: Function that calls the compiler with a module, its example inputs and a
            folder.

    Raises:
        ConversionError: The compiler failed; its folder is kept, and the message names it.
    """
    import torch

    report_progress(f"compiling length {length}")
    model = load_eager(job.folder, job.options)
    untie(model)  # proved by prepare
    module = program_module(model, job.facts, prepared.outputs)
    feed = example_feed(job.facts, batch=job.batch, length=length)
    workdir = job.work / f"compiler-{length}"
    workdir.mkdir(parents=True, exist_ok=True)
    target = job.work / Path(program_path(length)).name
    with _triaging_errors(f"length {length}", log, workdir, job.failed):
        with torch.no_grad(), recordable(model):
            compiled = compile_module(module, feed, workdir)
        torch.jit.save(compiled, target)
    shutil.rmtree(workdir, ignore_errors=True)
    return TracedFile(
        path=target,
        size=target.stat().st_size,
        sha256=sha256_of(target),
        weight_bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        published=program_path(length),
    )


def program_module(
    model: nn.Module, facts: ModelFacts, outputs: tuple[OutputSpec, ...]
) -> nn.Module:
    """Wrap a model for a compiler: positional tensors in, a flat tuple out."""
    from torch import nn

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            feed = dict(zip(facts.inputs, tensors, strict=True))
            with sparing_buffers(self.model):
                return call_tuple(self.model, feed, outputs)

    return Program().eval()


def validate_programs(
    programs: Mapping[int, Path],
    reference: Reference,
    compiled_by: Toolchain,
    target: str,
    *,
    backend: str,
) -> ValidationReport:
    """Run the whole gate on saved programs, on this host's device.

    Args:
        programs: Archive of each standard length, as it will be published.
        reference: Eager's outputs for every probe of its plan.
        compiled_by: Versions that compiled them.
        target: Instance family that they were compiled for.
        backend: ``neuronx`` or ``neuron``.

    Raises:
        BackendUnavailableError: This host's packages or device don't fit.
        TraceError: A program does not load.
        NumericsMismatchError: A probe failed, or the gate missed a negative control.
    """
    report_progress("loading the programs onto the device")
    try:
        neuron.check_host(backend, compiled_by, target)
        loaded = {length: neuron.load(backend, str(path)) for length, path in programs.items()}
    except errors.BackendUnavailableError as error:
        raise BackendUnavailableError(str(error)) from error
    except errors.ArtifactError as error:
        raise TraceError(str(error), lasting=False) from error
    specs = input_specs(reference.plan.facts)
    return judge(compose(loaded, specs, reference.outputs, reference.plan.batch), reference)


@contextmanager
def _triaging_errors(
    what: str, log: Path, workdir: Path | None = None, kept: Path | None = None
) -> Iterator[None]:
    """Raise any failure as a typed error with its cause, and keep the compiler's folder."""
    try:
        yield
    except ConversionError:  # has its cause already
        raise
    except Exception as error:
        found = None if workdir is None or kept is None else _keep(workdir, kept)
        raise triage(error, what, log, kept=found) from error


def _keep(workdir: Path, kept: Path) -> Path | None:
    """Move a failed compiler's folder to where a person can look at it; None: it is empty."""
    if not any(workdir.iterdir()):
        return None
    kept.mkdir(parents=True, exist_ok=True)
    target = kept / f"{workdir.parent.name}-{workdir.name}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(workdir, target)
    older = sorted(kept.iterdir(), key=lambda folder: folder.stat().st_mtime)[:-_KEPT_FAILURES]
    for folder in older:
        shutil.rmtree(folder, ignore_errors=True)
    return target
