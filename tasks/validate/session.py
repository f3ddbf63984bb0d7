"""One pass of the eager model over a plan of probes, and whether eager agrees with itself.

Before anything is compared with it, the reference has to agree with itself: a second run, another
attention implementation, and padded against unpadded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child import say
from tasks.errors import PaddingChangesError, UnsupportedCheckpointError, first_line
from tasks.model.feeds import pad_right, random_feed, tokens_of
from tasks.model.outputs import as_loaded, call_tuple
from tasks.model.versions import eager_attention
from tasks.validate.faults import dense_weights, planted
from tasks.validate.probes import Probe, ProbePlan, plan_probes, timed
from tasks.validate.reference import (
    WORTH_REPEATING,
    differences,
    load_outputs,
    moved,
    save_outputs,
    valid_positions,
)
from tasks.validate.verdict import within
from tracefleet.manifest_types import OutputSpec

if TYPE_CHECKING:
    import torch

    from tasks.model.feeds import Feed
    from tasks.validate.reference import Outputs

_SELECTION_SEEDS, _SELECTION_BASE = 16, 5000


def _scale(output: torch.Tensor) -> float:
    finite = output[output.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


class Session:
    """One pass over the plan with the model in memory."""

    def __init__(
        self, model: Any, plan: ProbePlan, outputs: tuple[OutputSpec, ...], folder: Path
    ) -> None:
        self.model, self.plan, self.specs, self.folder = model, plan, outputs, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.vacuous: set[str] = set()
        self.padded: set[str] = set()
        self.refused: set[str] = set()
        self.latency: dict[int, float] = {}
        self.ever_moved = [False] * len(outputs)
        self.scales = (0.0,) * len(outputs)

    def run(self) -> None:
        """Compute every probe's reference and find the vacuous ones."""
        first: Outputs | None = None
        announced = 0
        for index, probe in enumerate(plan_probes(self.plan)):
            if probe.length != announced:
                announced = probe.length
                say(f"eager reference at length {probe.length}")
            if probe.measures:
                self._measure(index, probe)
                continue
            asked = self._askable(probe)
            if asked is None:
                continue
            probe, outputs = asked, self._call(asked)
            save_outputs(self.folder / f"{index}.safetensors", outputs)
            if first is None:
                first = outputs
                self.scales = tuple(_scale(tensor) for tensor in outputs)
            else:
                self._judge(probe, outputs, first)

    def _askable(self, probe: Probe) -> Probe | None:
        """Return the probe as eager can answer it: padded where it refuses the unpadded input.

        None: it refuses this padding or mask altogether; then the bundle has to refuse it too.
        """
        if probe.optional:
            return probe if self._runs(probe.feed) else None
        if probe.control is probe.truth is None or self._runs(probe.eager_feed):
            return probe
        if probe.truth is not None and self._runs(probe.feed):
            self.padded.add(probe.key)
            return dataclasses.replace(probe, truth=None)
        self.refused.add(probe.key)
        return None

    def _asked(self, probe: Probe) -> Probe:
        return dataclasses.replace(probe, truth=None) if probe.key in self.padded else probe

    def _runs(self, feed: Feed) -> bool:
        try:
            self._outputs(feed)
        except Exception:  # every architecture has its own
            return False
        return True

    def _outputs(self, feed: Feed) -> Outputs:
        with as_loaded(self.model):
            return call_tuple(self.model, feed, self.specs)

    def _measure(self, index: int, probe: Probe) -> None:
        """Store what eager gives at another shape, if it runs there at all."""
        with contextlib.suppress(Exception):  # no file: eager itself refuses that shape
            outputs = self._outputs(probe.feed)
            save_outputs(self.folder / f"{index}.safetensors", outputs)

    def _call(self, probe: Probe) -> Outputs:
        with as_loaded(self.model):
            started = time.perf_counter()
            try:
                outputs = self._answer(probe)
            except Exception as error:
                raise self._refusal(f"it fails on {probe.name}: {first_line(error)}") from error
            took = (time.perf_counter() - started) * 1e3
            if timed(self.plan.facts, probe, self.plan.batch):
                if probe.length not in self.latency and took < WORTH_REPEATING:
                    started = time.perf_counter()
                    call_tuple(self.model, probe.eager_feed, self.specs)
                    took = min(took, (time.perf_counter() - started) * 1e3)
                self.latency[probe.length] = min(took, self.latency.get(probe.length, took))
        self._refuse_nan(probe, outputs)
        return outputs

    def _answer(self, probe: Probe) -> Outputs:
        return call_tuple(self.model, probe.eager_feed, self.specs)

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
            control = self._outputs(probe.control)
        rows = min(outputs[0].shape[0], control[0].shape[0])
        found = differences(
            self.specs,
            self.plan.tolerance,
            tuple(t[:rows] for t in control),
            tuple(t[:rows] for t in outputs),
            {name: t[:rows] for name, t in probe.eager_feed.items()},
            self.scales,
        )
        answers = moved(found, self.plan.tolerance)
        if not any(answers):
            self.vacuous.add(probe.key)
        if probe.control is None:
            self.ever_moved = [a or b for a, b in zip(self.ever_moved, answers, strict=True)]

    def plant_fault(self) -> Path:
        """Store what eager gives for the first probe with one wrong weight that moves it.

        Raises:
            UnsupportedCheckpointError: no weight moves it.
        """
        probe = next(iter(plan_probes(self.plan)))
        stored = load_outputs(self.folder / "0.safetensors")
        for weight in dense_weights(self.model):
            with planted(weight):
                outputs = self._outputs(probe.eager_feed)
            found = differences(
                self.specs, self.plan.tolerance, outputs, stored, probe.eager_feed, self.scales
            )
            if any(moved(found, self.plan.tolerance)):
                path = self.folder / "wrong-weight.safetensors"
                save_outputs(path, outputs)
                return path
        raise self._refusal("no wrong weight moves its outputs")

    def check_itself(self) -> None:
        """Refuse a reference that is constant, keeps state, or depends on how it is computed."""
        for spec, answer in zip(self.specs, self.ever_moved, strict=True):
            if not answer:
                raise self._refusal(f"output {spec.name} never moves, whatever the inputs are")
        self._check_second_run()
        self._check_attention()
        self._check_padding()

    def _check_second_run(self) -> None:
        probe = next(iter(plan_probes(self.plan)))
        stored = load_outputs(self.folder / "0.safetensors")
        with as_loaded(self.model):
            call_tuple(self.model, probe.eager_feed, self.specs)
            again = call_tuple(self.model, probe.eager_feed, self.specs)
        self._agree(probe, again, stored, "a second run gives another result (state or chance)", 0)

    def _check_attention(self) -> None:
        if getattr(self.model.config, "_attn_implementation", None) != "sdpa":
            return
        probe = next(iter(plan_probes(self.plan)))
        stored = load_outputs(self.folder / "0.safetensors")
        with eager_attention(self.model):
            outputs = self._call(probe)
        self._agree(probe, outputs, stored, "sdpa and eager attention disagree")

    def _check_padding(self) -> None:
        """The dispatcher pads on the right: eager itself must not mind.

        Tried at the shortest and the longest length, as sparse attention minds long inputs alone;
        by padding much as well as little, wherever there are probes for it.
        """
        facts = self.plan.facts
        probes = [self._asked(probe) for probe in plan_probes(self.plan)]
        short = {i: p for i, p in enumerate(probes) if p.truth and p.key not in self.refused}
        tried = {self.plan.lengths[0], self.plan.lengths[-1]} - {p.length for p in short.values()}
        for index, probe in enumerate(probes):
            tokens = max(tokens_of(facts, probe.feed).values(), default=probe.length)
            if probe.dispatch and tokens < probe.length and probe.length in tried:
                tried.remove(probe.length)
                short[index] = probe
        for index, probe in short.items():
            stored = load_outputs(self.folder / f"{index}.safetensors")
            self._check_padded(probe, stored)
        if self.plan.selects and facts.takes_padding:
            self._check_selection()

    def _check_selection(self) -> None:
        """Try many inputs: which of several equal values a top-k takes depends on what follows.

        AXK2's and DeepSeek V3.2's sparse attention has such ties between positions; a few inputs
        show nothing, the next one is off by half.
        """
        facts, batch = self.plan.facts, self.plan.batch
        for length in self.plan.lengths:
            for real in sorted({length - 1, 3 * length // 4} - {0}):
                for seed in range(_SELECTION_SEEDS):
                    feed = random_feed(facts, batch=batch, length=real, seed=_SELECTION_BASE + seed)
                    probe = Probe(name=f"selection-{real}-{seed}", length=length, feed=feed)
                    self._check_padded(probe, self._outputs(feed))

    def _check_padded(self, probe: Probe, stored: Outputs) -> None:
        padded = pad_right(self.plan.facts, probe.eager_feed, probe.length)
        outputs = self._outputs(padded)
        try:
            self._agree(probe, outputs, stored, "padding on the right changes the outputs")
        except UnsupportedCheckpointError as error:
            raise PaddingChangesError(str(error)) from None

    def _agree(
        self,
        probe: Probe,
        judged: Outputs,
        reference: Outputs,
        complaint: str,
        bound: float | None = None,
    ) -> None:
        limit = self.plan.tolerance.rtol if bound is None else bound
        found = differences(
            self.specs, self.plan.tolerance, judged, reference, probe.eager_feed, self.scales
        )
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
