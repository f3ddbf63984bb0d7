"""Programs of a device: what each length needs, found before anything is compiled.

``tasks.backends.compiling`` makes them, ``tasks.backends.device_gate`` runs them through the gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.backends.base import Job
from tasks.backends.kept_failures import triaging_errors
from tasks.backends.padded import plan_search
from tasks.child_main import report_progress
from tasks.errors import GenerationError
from tasks.model.facts import ModelFacts
from tasks.model.feeds import example_feed
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple, describe_outputs
from tasks.model.state import sparing_buffers
from tasks.trace.compare import has_topk_or_sort
from tasks.trace.patches import recordable
from tasks.trace.record import trace_lengths
from tasks.trace.untie import untie_with_proof
from tracefleet.generation_types import Generation
from tracefleet.manifest_types import OutputSpec
from tracefleet.program_files import FORWARD, SEARCH, program_path

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.model.feeds import Feed


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program of a conversion.

    Attributes:
        length: Standard length.
        part: One of ``tracefleet.program_files``.
    """

    length: int
    part: str = FORWARD

    @property
    def name(self) -> str:
        """Name for people and for steps: ``16``, ``decode-16``."""
        return str(self.length) if self.part == FORWARD else f"{self.part}-{self.length}"

    @property
    def published(self) -> str:
        """Path in the conversion's folder."""
        return program_path(self.length, self.part)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Facts of a model's graph, found before anything is compiled.

    Attributes:
        outputs: Elements of the tuple that every program returns.
        tied_groups: Names that shared storage before untying.
        has_topk_or_sort: Whether the program uses top-k or sort, whose ties padding may break
            differently.
        generation: What a search over the programs does; None: there is none.
        without_generation: Why there is none; None: there is, or it was not asked for.
    """

    outputs: tuple[OutputSpec, ...]
    tied_groups: tuple[tuple[str, ...], ...]
    has_topk_or_sort: bool
    generation: Generation | None = None
    without_generation: str | None = None

    @property
    def programs(self) -> tuple[str, ...]:
        """Parts of which each length has a program."""
        return (FORWARD,) if self.generation is None else (FORWARD, *SEARCH)

    def leaving_generation(self, why: str | None) -> Prepared:
        """Return the facts of a model that has its one forward alone."""
        return replace(self, generation=None, without_generation=why)


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
        with recordable(model), triaging_errors("operators", log):
            analyze(module, example_feed(job.facts, batch=job.batch, length=first))
    topk = has_topk_or_sort(traced, first)
    prepared = Prepared(outputs=outputs, tied_groups=groups, has_topk_or_sort=topk)
    if job.generation == "none":
        return prepared
    try:
        return replace(prepared, generation=plan_search(model, job))
    except GenerationError as error:
        return prepared.leaving_generation(str(error))


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
