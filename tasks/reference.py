"""The eager reference: what the untouched checkpoint computes for every probe.

Runs in a child of its own and writes its outputs to a folder, so that the eager model and the
bundle are never in memory together. Before anything is compared with it, the reference has to
agree with itself: a second run, another attention implementation, and padded against unpadded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child import say
from tasks.errors import UnsupportedCheckpointError, first_line
from tasks.inputs import pad_right
from tasks.load import LoadOptions, ModelFacts, load_eager
from tasks.outputs import call_tuple, describe_outputs
from tasks.probes import Probe, plan_probes, timed
from tasks.verdict import Difference, compare, discriminating, within
from tasks.weights import compare_with_files, digests, named_tensors
from tracefleet.manifest import OutputSpec, Tolerance

if TYPE_CHECKING:
    import torch

    Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """Which probes a conversion gets; the same in the reference's and the gate's process.

    Attributes:
        facts: the model.
        lengths: standard lengths, ascending.
        whole: the lengths that get every probe; the others get the proving ones.
        batch: rows in one traced call.
        tolerance: bound on every difference.
    """

    facts: ModelFacts
    lengths: tuple[int, ...]
    whole: tuple[int, ...]
    batch: int
    tolerance: Tolerance


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where the eager outputs lie and what they are worth.

    Attributes:
        plan: which probes.
        outputs: elements of the tuple that each probe returned.
        weights: name -> digest of every parameter and buffer.
        folder: one safetensors file for each probe, by its index in the plan.
        vacuous: names of probes, as ``length/name``, that can't move this model.
        latency: milliseconds of one eager call of the traced shape, by length.
    """

    plan: ProbePlan
    outputs: tuple[OutputSpec, ...]
    weights: dict[str, str]
    folder: Path
    vacuous: frozenset[str]
    latency: dict[int, float]


def compute_reference(
    checkpoint: Path, options: LoadOptions, plan: ProbePlan, folder: Path
) -> Reference:
    """Compute and store the eager outputs of every probe; the whole job of one child.

    Raises:
        UnsafeCheckpointError: a loaded weight differs from the file's.
        UnsupportedCheckpointError: eager disagrees with itself, so that nothing can be compared
            with it, or an output never moves whatever the ids are.
    """
    import torch

    say("loading the eager reference")
    model = load_eager(checkpoint, options)
    compare_with_files(model, checkpoint)
    weights = digests(named_tensors(model))
    folder.mkdir(parents=True, exist_ok=True)
    outputs = describe_outputs(model, plan.facts)
    session = _Session(model, plan, outputs, folder)
    with torch.no_grad():
        session.run()
        session.check_itself()
    return Reference(
        plan=plan,
        outputs=outputs,
        weights=weights,
        folder=folder,
        vacuous=frozenset(session.vacuous),
        latency=session.latency,
    )


def save_outputs(path: Path, outputs: Outputs) -> None:
    """Write a tuple of outputs so that another process reads the same bits."""
    from safetensors.torch import save_file

    save_file({str(i): t.contiguous() for i, t in enumerate(outputs)}, path)


def load_outputs(path: Path) -> Outputs:
    """Read what ``save_outputs`` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return tuple(tensors[str(i)] for i in range(len(tensors)))


def valid_positions(
    spec: OutputSpec, feed: dict[str, torch.Tensor], shape: torch.Size
) -> torch.Tensor | None:
    """Return the mask of positions of an output that mean something, or None for all of them."""
    if len(spec.axes) < 2 or spec.axes[1] not in ("length", "decoder_length"):
        return None
    name = "attention_mask" if spec.axes[1] == "length" else "decoder_attention_mask"
    if name not in feed:
        return None
    return feed[name][:, : shape[1]].bool()


def differences(
    specs: tuple[OutputSpec, ...],
    tolerance: Tolerance,
    judged: Outputs,
    reference: Outputs,
    feed: dict[str, torch.Tensor],
) -> list[Difference]:
    """Compare two tuples of outputs on the positions that both have and ``feed`` shows."""
    found = []
    for spec, one, two in zip(specs, judged, reference, strict=True):
        if _has_length(spec):
            shared = min(one.shape[1], two.shape[1])
            one, two = one[:, :shared], two[:, :shared]
        found.append(compare(one, two, tolerance, valid_positions(spec, feed, two.shape)))
    return found


def moved(found: Iterable[Difference], tolerance: Tolerance) -> list[bool]:
    """Tell for each output whether it moved far more than the tolerance."""
    return [not within(d, discriminating(tolerance)) for d in found]


def _has_length(spec: OutputSpec) -> bool:
    return len(spec.axes) > 1 and spec.axes[1] in ("length", "decoder_length")


class _Session:
    """One pass over the plan with the model in memory."""

    def __init__(
        self, model: Any, plan: ProbePlan, outputs: tuple[OutputSpec, ...], folder: Path
    ) -> None:
        self.model, self.plan, self.specs, self.folder = model, plan, outputs, folder
        self.vacuous: set[str] = set()
        self.latency: dict[int, float] = {}
        self.ever_moved = [False] * len(outputs)

    def run(self) -> None:
        """Compute every probe's reference and find the vacuous ones."""
        first: Outputs | None = None
        announced = 0
        for index, probe in enumerate(plan_probes(self.plan)):
            if probe.length != announced:
                announced = probe.length
                say(f"eager reference at length {probe.length}")
            outputs = self._call(probe)
            save_outputs(self.folder / f"{index}.safetensors", outputs)
            if first is None:
                first = outputs
            else:
                self._judge(probe, outputs, first)

    def _call(self, probe: Probe) -> Outputs:
        started = time.perf_counter()
        try:
            outputs = call_tuple(self.model, probe.eager_feed, self.specs)
        except Exception as error:
            raise self._refusal(f"it fails on {probe.name}: {first_line(error)}") from error
        took = (time.perf_counter() - started) * 1e3
        if timed(probe, self.plan.batch):
            self.latency[probe.length] = min(took, self.latency.get(probe.length, took))
        self._refuse_nan(probe, outputs)
        return outputs

    def _refuse_nan(self, probe: Probe, outputs: Outputs) -> None:
        """Two NaN are no agreement: an overflow in half precision proves nothing."""
        for spec, tensor in zip(self.specs, outputs, strict=True):
            valid = valid_positions(spec, probe.eager_feed, tensor.shape)
            if bool((tensor if valid is None else tensor[valid]).isnan().any()):
                raise self._refusal(
                    f"output {spec.name} is NaN for {probe.name} at length {probe.length}; try "
                    "dtype bfloat16 or float32"
                )

    def _judge(self, probe: Probe, outputs: Outputs, first: Outputs) -> None:
        """Does this probe move the model? Padding and masks against themselves switched off."""
        control = first
        if probe.control is not None:
            control = call_tuple(self.model, probe.control, self.specs)
        rows = min(outputs[0].shape[0], control[0].shape[0])
        found = differences(
            self.specs,
            self.plan.tolerance,
            tuple(t[:rows] for t in control),
            tuple(t[:rows] for t in outputs),
            {name: t[:rows] for name, t in probe.eager_feed.items()},
        )
        answers = moved(found, self.plan.tolerance)
        if not any(answers):
            self.vacuous.add(f"{probe.length}/{probe.name}")
        if probe.control is None:
            self.ever_moved = [a or b for a, b in zip(self.ever_moved, answers, strict=True)]

    def check_itself(self) -> None:
        """Refuse a reference that is constant, keeps state, or depends on how it is computed."""
        for spec, answer in zip(self.specs, self.ever_moved, strict=True):
            if not answer:
                raise self._refusal(f"output {spec.name} never moves, whatever the ids are")
        probe = next(iter(plan_probes(self.plan)))
        stored = load_outputs(self.folder / "0.safetensors")
        again = self._call(probe)
        self._agree(probe, again, stored, "a second run gives another result (state or chance)", 0)
        self._check_attention(probe, stored)
        self._check_padding()

    def _check_attention(self, probe: Probe, stored: Outputs) -> None:
        config = self.model.config
        used = getattr(config, "_attn_implementation", None)
        if used != "sdpa":
            return
        self.model.set_attn_implementation("eager")
        try:
            outputs = self._call(probe)
        finally:
            self.model.set_attn_implementation(used)
        self._agree(probe, outputs, stored, "sdpa and eager attention disagree")

    def _check_padding(self) -> None:
        """The dispatcher pads on the right: eager itself must not mind."""
        for index, probe in enumerate(plan_probes(self.plan)):
            feed = probe.feed
            if probe.dispatch and feed["input_ids"].shape[1] < probe.length:
                padded = pad_right(self.plan.facts, feed, probe.length)
                outputs = call_tuple(self.model, padded, self.specs)
                stored = load_outputs(self.folder / f"{index}.safetensors")
                self._agree(probe, outputs, stored, "padding on the right changes the outputs")
                return

    def _agree(
        self,
        probe: Probe,
        judged: Outputs,
        reference: Outputs,
        complaint: str,
        bound: float | None = None,
    ) -> None:
        limit = self.plan.tolerance.rtol if bound is None else bound
        found = differences(self.specs, self.plan.tolerance, judged, reference, probe.eager_feed)
        worst = max(d.max_rel for d in found)
        if not all(within(d, limit) for d in found):
            raise self._refusal(
                f"{complaint}: relative difference expected at most {limit:g}, got {worst:.3g}"
            )

    def _refusal(self, complaint: str) -> UnsupportedCheckpointError:
        return UnsupportedCheckpointError(
            f"{self.plan.facts.architecture}: the eager model can't be a reference: {complaint}. "
            "A traced copy of it could not be proved right, so that none is published."
        )
