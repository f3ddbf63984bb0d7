"""Record a checkpoint's graphs for its standard lengths, in one process, over one set of weights.

Most architectures have the same program at every length: then one graph serves all of them, and
only the shortest and the longest length are traced to compare. Others (Longformer, LED, models that
bake a length in) get a graph for each. Either way the gate proves every length that is served.

The recorded module has a method ``_traced_<length>`` for each graph; ``tasks.trace.bundle`` adds
the guarded public methods and the dispatcher. Runs in a child of its own: each trace leaks a few
megabytes, and only a fresh process makes the same bytes twice (class names count up).
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.errors import TraceError
from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.feeds import example_feed, input_specs
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple, describe_outputs, restoring_module_state
from tasks.model.quantise import INT8, quantise
from tasks.trace.bundle import TracedFile, write_bundle
from tasks.trace.patches import recordable
from tasks.trace.untie import untie_with_proof
from tracefleet.manifest_types import OutputSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

_SELECTING = ("aten::topk", "aten::sort", "aten::argsort", "aten::kthvalue")
_INTEGER = re.compile(r"-?\d+")
#: Source positions, and the counters that make class names unique within one process.
_NOISE = re.compile(r"#.*|___torch_mangle_\d+\.")


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
        has_topk_or_sort: Whether the program uses top-k or sort, whose ties padding may break
            differently.
    """

    files: tuple[TracedFile, ...]
    outputs: tuple[OutputSpec, ...]
    tied_groups: tuple[tuple[str, ...], ...]
    same_program: bool
    shared: bool
    has_topk_or_sort: bool

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
    share: bool = True,
) -> TraceResult:
    """Load, untie, trace and write one bundle for all lengths; the whole job of one child.

    Args:
        folder: Folder of the checkpoint.
        options: Task, dtype and what is trusted.
        facts: Facts of the model, from ``tasks.model.preflight.inspect``.
        lengths: Standard lengths, ascending.
        batch: Rows in one traced call.
        target: File of the bundle; its name should be ``model.pt``.
        share: Whether one graph may serve all lengths if the shortest and the longest are equal.

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
    record = functools.partial(trace_lengths, model, facts, outputs, batch=batch)
    traced = record(lengths[:1])
    several = len(lengths) > 1
    shared = share and several and same_graph(traced, lengths[0], record(lengths[-1:]), lengths[-1])
    if several and not shared:
        traced = record(lengths)
    same = shared or same_program(traced, lengths)
    topk = has_topk_or_sort(traced, lengths[0])
    graphs = {length: f"_traced_{length}" for length in lengths}
    if shared:
        graphs = dict.fromkeys(lengths, f"_traced_{lengths[0]}")
    report_progress(f"writing the bundle ({'one graph' if shared else 'a graph for each length'})")
    # Nothing can be read from the module afterwards: its weights move to the meta device.
    file = write_bundle(traced, input_specs(facts), outputs, graphs, batch, target)
    return TraceResult(
        files=(file,),
        outputs=outputs,
        tied_groups=groups,
        same_program=same,
        shared=shared,
        has_topk_or_sort=topk,
    )


def trace_lengths(
    model: nn.Module,
    facts: ModelFacts,
    outputs: tuple[OutputSpec, ...],
    lengths: tuple[int, ...],
    batch: int,
) -> torch.jit.ScriptModule:
    """Trace an untied model in eval mode; see ``trace_checkpoint`` for the arguments.

    Raises:
        TraceError: The model can't be recorded; the message names the length.
    """
    import torch

    reached: list[int] = []
    recorder = _make_recorder(model, facts, outputs, lengths, reached)
    examples = {
        f"_traced_{length}": tuple(example_feed(facts, batch=batch, length=length).values())
        for length in lengths
    }
    try:
        with torch.no_grad(), warnings.catch_warnings(), recordable(model):
            # Most of these warnings are noise (1,019 of 1,022 sound models emit them); the gate
            # decides on numbers instead.
            warnings.simplefilter("ignore")
            traced: torch.jit.ScriptModule = torch.jit.trace_module(
                recorder, examples, check_trace=False
            )
            return traced
    except Exception as error:
        raise TraceError(
            f"{facts.architecture} at length {reached[-1] if reached else lengths[0]}: expected "
            f"torch.jit.trace to record it, got {type(error).__name__}: {error}. "
            "This architecture can't be a TorchScript artifact with these versions."
        ) from error


def same_graph(one: Any, first: int, two: Any, second: int) -> bool:
    """Tell whether two traced modules hold the very same program, baked tensors included."""
    return _are_equal(_read_program(one, first), _read_program(two, second), lambda a, b: a == b)


def same_program(traced: Any, lengths: tuple[int, ...]) -> bool:
    """Tell whether a module's graphs are equal but for integers that are their own lengths."""
    first, reference = lengths[0], _read_program(traced, lengths[0])
    return all(
        _are_equal(
            reference,
            _read_program(traced, length),
            functools.partial(_are_equal_but_for_length, first=first, second=length),
        )
        for length in lengths[1:]
    )


def has_topk_or_sort(traced: Any, length: int) -> bool:
    """Tell whether a length's program uses top-k or sort."""
    graph = getattr(traced, f"_traced_{length}").inlined_graph
    return any(graph.findAllNodes(kind, recurse=True) for kind in _SELECTING)


def _make_recorder(
    model: nn.Module,
    facts: ModelFacts,
    outputs: tuple[OutputSpec, ...],
    lengths: tuple[int, ...],
    reached: list[int],
) -> nn.Module:
    """Wrap a model for recording: positional tensors in, a flat tuple out, one method a length."""
    from torch import nn

    class Traced(nn.Module):
        # The name stands in every archive: no move of this file may change the bytes.
        __module__ = "tasks.trace"

        def __init__(self) -> None:
            super().__init__()
            self.model = model

    def method(length: int) -> Callable[..., Any]:
        def record(self: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            reached.append(length)
            report_progress(f"tracing length {length}")
            feed = dict(zip(facts.inputs, tensors, strict=True))
            with restoring_module_state(self.model):
                return call_tuple(self.model, feed, outputs)

        return record

    for length in lengths:
        setattr(Traced, f"_traced_{length}", method(length))
    return Traced().eval()


def _read_program(traced: Any, length: int) -> tuple[list[str], list[Any]]:
    """Return a length's inlined graph as lines, and the tensors baked into it."""
    import torch

    graph = getattr(traced, f"_traced_{length}").inlined_graph.copy()
    torch._C._jit_pass_erase_shape_information(graph)
    torch._C._jit_pass_canonicalize(graph)
    lines = _NOISE.sub("", str(graph)).splitlines()
    return lines, list(_find_baked_tensors(graph))


def _find_baked_tensors(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        is_constant = node.kind() == "prim::Constant" and node.hasAttribute("value")
        if is_constant and node.kindOf("value") == "t":
            yield node.t("value")
        for inner in node.blocks():
            yield from _find_baked_tensors(inner)


def _are_equal(
    one: tuple[list[str], list[Any]],
    two: tuple[list[str], list[Any]],
    equal_lines: Callable[[str, str], bool],
) -> bool:
    import torch

    (lines, tensors), (other_lines, other_tensors) = one, two
    if len(lines) != len(other_lines) or len(tensors) != len(other_tensors):
        return False
    return all(map(torch.equal, tensors, other_tensors)) and all(
        map(equal_lines, lines, other_lines)
    )


def _are_equal_but_for_length(one: str, two: str, first: int, second: int) -> bool:
    if one == two:
        return True
    if _INTEGER.sub("#", one) != _INTEGER.sub("#", two):
        return False
    pairs = zip(_INTEGER.findall(one), _INTEGER.findall(two), strict=True)
    return all(a == b or (a, b) == (str(first), str(second)) for a, b in pairs)
