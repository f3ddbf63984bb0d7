"""Record a checkpoint's graphs for its standard lengths, in one process, over one set of weights.

Most architectures have the same program at every length: then one graph serves all of them, and
only the shortest and the longest length are traced to compare. Others (Longformer, LED, models that
bake a length in) get a graph for each. Either way the gate proves every length that is served.

The recorded module has a method ``_traced_<length>`` for each graph; ``tasks.trace.bundle`` adds
the guarded public methods and the dispatcher. Runs in a child of its own: each trace leaks a few
megabytes, and only a fresh process makes the same bytes twice (class names count up).
"""

from __future__ import annotations

import contextlib
import enum
import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.errors import ConversionError, TraceError
from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.feeds import example_feed, input_specs
from tasks.model.general import make_general
from tasks.model.generation import Choice
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple, describe_outputs
from tasks.model.quantise import quantise
from tasks.model.state import sparing_buffers
from tasks.trace.bundle import TracedFile, write_bundle
from tasks.trace.compare import OneGraph, has_topk_or_sort, same_program
from tasks.trace.generation import METHODS, NO_SEARCH, add_generation
from tasks.trace.linear import fast_linear
from tasks.trace.patches import recordable
from tasks.trace.untie import untie_with_proof
from tracefleet.generation_types import Generation
from tracefleet.manifest_types import INT8, General, OutputSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


class Reach(enum.IntEnum):
    """What one graph may serve."""

    EACH = 0
    """Its own length alone."""
    SHARED = 1
    """Every standard length, in the traced batch."""
    GENERAL = 2
    """Every length up to the largest, and every number of rows."""


@dataclass(frozen=True, kw_only=True)
class TraceResult:
    """Result of tracing.

    Attributes:
        files: Bundle on disk, or the program of each length.
        outputs: Elements of the returned tuple.
        tied_groups: Names that shared storage before untying.
        same_program: Whether the graphs of all lengths are one program but for literal lengths, so
            that what the whole probe set proves at one length holds for the others.
        shared: Whether one graph serves every length.
        general: Shapes at which this one graph is to run calls as they are; None: it is not.
        routed: Why it is not; None: it is, or it was not asked for.
        device: Device on which the gate runs it.
        follows_device: Whether it runs on other devices too; the gate finds out.
        has_topk_or_sort: Whether the program uses top-k or sort, whose ties padding may break
            differently.
        generation: What ``generate`` does; None: there is none.
        without_generation: Why there is none; None: there is, or the task has none.
    """

    files: tuple[TracedFile, ...]
    outputs: tuple[OutputSpec, ...]
    tied_groups: tuple[tuple[str, ...], ...]
    same_program: bool
    shared: bool
    has_topk_or_sort: bool
    general: General | None = None
    routed: str | None = None
    device: str = "cpu"
    follows_device: bool = False
    generation: Generation | None = None
    without_generation: str | None = None

    @property
    def file(self) -> TracedFile:
        """The bundle."""
        (bundle,) = self.files
        return bundle


def trace_checkpoint(
    folder: Path,
    options: LoadOptions,
    facts: ModelFacts,
    lengths: tuple[int, ...],
    batch: int,
    target: Path,
    reach: Reach = Reach.GENERAL,
    choice: Choice = "none",
    fast: bool = True,
) -> TraceResult:
    """Load, untie, trace and write one bundle for all lengths; the whole job of one child.

    Args:
        folder: Folder of the checkpoint.
        options: Task, dtype and what is trusted.
        facts: Facts of the model, from ``tasks.model.preflight.inspect``.
        lengths: Standard lengths, ascending.
        batch: Rows in one traced call.
        target: File of the bundle; its name should be ``model.pt``.
        reach: What one graph may serve at most, if its programs at other shapes are equal.
        choice: How the bundle's ``generate`` searches; ``none``: it has no such method.
        fast: Whether float32 linear layers are oneDNN's, which rounds otherwise than eager.

    Raises:
        UnsupportedCheckpointError: Eager can't run it from ids, or int8 has nothing to quantise.
        BackendUnavailableError: The dtype is int8 and this machine has no engine for it.
        TiedWeightsError: Untying changed an output bit.
        TraceError: torch.jit can't record or save it.
    """
    report_progress("loading the checkpoint")
    model = load_eager(folder, options)
    outputs = describe_outputs(model, facts)
    groups = untie_with_proof(model, facts, outputs, lengths[0], batch)
    if options.dtype == INT8:
        report_progress("quantising its linear layers")
        quantise(model)
    # A caller who computes gradients gets none: oneDNN's layers have no backward pass.
    model.requires_grad_(False)
    record = functools.partial(trace_lengths, model, facts, outputs, fast=fast)
    traced = record(lengths[:1], batch)
    one = OneGraph(traced, lengths, batch, record)
    shared = reach >= Reach.SHARED and one.serves_every_length()
    general = routed = None
    if reach == Reach.GENERAL:
        routed = _find_difference(one, facts, shared=shared)
        general = make_general(facts, lengths, batch) if routed is None else None
    if len(lengths) > 1 and not shared:
        traced = record(lengths, batch)
    same = shared or same_program(traced, lengths)
    topk = has_topk_or_sort(traced, lengths[0])
    search = NO_SEARCH
    if choice != "none":
        again = functools.partial(record, lengths[:1] if shared else lengths, batch)
        traced, search = add_generation(traced, model, facts, lengths, choice, again)
    graphs = {length: f"_traced_{length}" for length in lengths}
    if shared:
        graphs = dict.fromkeys(lengths, f"_traced_{lengths[0]}")
    report_progress(f"writing the bundle ({_describe(shared or len(lengths) == 1, general)})")
    # Nothing can be read from the module afterwards: its weights move to the meta device.
    specs = input_specs(facts)
    file = write_bundle(traced, specs, outputs, graphs, batch, target, general, search.source)
    return TraceResult(
        files=(file,),
        outputs=outputs,
        tied_groups=groups,
        same_program=same,
        shared=shared,
        has_topk_or_sort=topk,
        general=general,
        routed=routed,
        generation=search.generation,
        without_generation=search.missing,
    )


def _find_difference(one: OneGraph, facts: ModelFacts, *, shared: bool) -> str | None:
    """Say at which shape a graph's program is another one; None: at none that was traced."""
    shortest, longest = one.lengths[0], one.lengths[-1]
    if len(one.lengths) > 1 and not shared:
        return f"the programs of lengths {shortest} and {longest} differ"
    if len(one.lengths) == 1 and facts.varies_in_length and not one.serves_another_length():
        return f"the programs of length {shortest} and of half of it differ"
    if not one.serves_every_batch():
        return f"the programs of {one.batch} and {one.batch + 1} rows differ"
    return None


def _describe(shared: bool, general: General | None) -> str:
    if general is not None:
        return "one graph for every shape"
    return "one graph" if shared else "a graph for each length"


def trace_lengths(
    model: nn.Module,
    facts: ModelFacts,
    outputs: tuple[OutputSpec, ...],
    lengths: tuple[int, ...],
    batch: int,
    more: Mapping[str, tuple[Any, ...]] | None = None,
    *,
    fast: bool = True,
) -> torch.jit.ScriptModule:
    """Trace an untied model in eval mode; see ``trace_checkpoint`` for the arguments.

    ``more`` has inputs for each of ``tasks.trace.generation``'s methods, to be recorded too.

    Raises:
        TraceError: The model can't be recorded; the message names the length.
    """
    import torch

    reached: list[int] = []
    recorder = _make_recorder(model, facts, outputs, lengths, reached, more or {})
    examples = {
        f"_traced_{length}": tuple(example_feed(facts, batch=batch, length=length).values())
        for length in lengths
    }
    examples |= more or {}
    try:
        layers = fast_linear() if fast else contextlib.nullcontext()
        with torch.no_grad(), warnings.catch_warnings(), recordable(model), layers:
            # Most of these warnings are noise (1,019 of 1,022 sound models emit them); the gate
            # decides on numbers instead.
            warnings.simplefilter("ignore")
            traced: torch.jit.ScriptModule = torch.jit.trace_module(
                recorder, examples, check_trace=False
            )
            return traced
    except ConversionError:
        raise
    except Exception as error:
        raise TraceError(
            f"{facts.architecture} at length {(reached or [*lengths, 0])[-1]}: expected "
            f"torch.jit.trace to record it, got {type(error).__name__}: {error}. "
            "This architecture can't be a TorchScript artifact with these versions: try others, or "
            "report it with the checkpoint's config."
        ) from error


def _make_recorder(
    model: nn.Module,
    facts: ModelFacts,
    outputs: tuple[OutputSpec, ...],
    lengths: tuple[int, ...],
    reached: list[int],
    more: Collection[str],
) -> nn.Module:
    """Wrap a model for recording: positional tensors in, a flat tuple out, one method a length."""
    from torch import nn

    class Bundle(nn.Module):
        # The name stands in every archive: no move of this file may change the bytes.
        __module__ = "tracefleet.archive"

        def __init__(self) -> None:
            super().__init__()
            self.model = model

    def method(length: int) -> Callable[..., Any]:
        def record(self: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            reached.append(length)
            report_progress(f"tracing length {length}")
            feed = dict(zip(facts.inputs, tensors, strict=True))
            with sparing_buffers(self.model):
                return call_tuple(self.model, feed, outputs)

        return record

    for length in lengths:
        setattr(Bundle, f"_traced_{length}", method(length))
    for name in more:
        setattr(Bundle, name, METHODS[name])
    return Bundle().eval()
