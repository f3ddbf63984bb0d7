"""One pass of the eager model over a plan of probes: ``tasks.validate.self_check`` judges it."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.errors import UnsupportedCheckpointError, first_line
from tasks.model.outputs import call_tuple, move
from tasks.model.state import restoring_module_state
from tasks.validate.faults import corrupting_weight, dense_weights
from tasks.validate.latency import keep_latency, time_call
from tasks.validate.plan import ProbePlan, first_probe, is_timed, plan_probes
from tasks.validate.probes import Probe
from tasks.validate.reference import (
    as_run,
    compare_outputs,
    find_movement,
    hash_feed,
    load_outputs,
    save_outputs,
    stack_rows,
    valid_positions,
)
from tracefleet.manifest_types import OutputSpec

if TYPE_CHECKING:
    import torch

    from tasks.model.feeds import Feed
    from tasks.validate.reference import Outputs


class ReferencePass:
    """One pass over the plan with the model in memory.

    Attributes:
        vacuous: Keys of probes that don't move the model.
        padded: Keys of probes that eager ran padded, as it refuses their unpadded input.
        refused: Keys of probes that eager refuses altogether.
        latency: Milliseconds of one call, by length.
        moved_by_both: Keys of left-padded probes whose float32 result is another with padding on
            the right as well; only a quantised model's pass looks for them.
        ever_moved: Whether any probe moved each output.
        scales: max|eager| of each output for the first probe.
    """

    def __init__(
        self, model: Any, plan: ProbePlan, outputs: tuple[OutputSpec, ...], folder: Path
    ) -> None:
        self.model, self.plan, self.specs, self.folder = model, plan, outputs, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.vacuous: set[str] = set()
        self.padded: set[str] = set()
        self.refused: set[str] = set()
        self.latency: dict[int, float] = {}
        self.moved_by_both: set[str] = set()
        self.ever_moved = [False] * len(outputs)
        self.scales = (0.0,) * len(outputs)
        self._known: dict[str, int] = {}

    def run(self) -> None:
        """Compute every probe's reference and find the vacuous ones."""
        first: Outputs | None = None
        announced = ""
        for index, planned in enumerate(plan_probes(self.plan)):
            if planned.place != announced:
                announced = planned.place
                report_progress(f"eager reference at {announced}")
            if planned.measured:
                self._store_measured(index, planned)
                continue
            if planned.general:
                self._store_general(index, planned, first)
                continue
            accepted = self._call_accepted(planned)
            if accepted is None:
                continue
            probe, outputs = accepted
            save_outputs(self.path(index), outputs)
            self._known.setdefault(hash_feed(probe.eager_feed), index)
            if first is None:
                first = outputs
                self.scales = tuple(find_largest(tensor) for tensor in outputs)
            else:
                self._note_movement(probe, outputs, first)

    def store_corrupted(self) -> Path:
        """Store eager's outputs for the first probe with one wrong weight that moves it.

        Raises:
            UnsupportedCheckpointError: No weight moves it.
        """
        probe = first_probe(self.plan)
        stored = load_outputs(self.path(0))
        for weight in dense_weights(self.model):
            with corrupting_weight(weight):
                outputs = self.outputs(probe.eager_feed)
            if any(self._find_movement(probe.eager_feed, outputs, stored)):
                path = self.folder / "wrong-weight.safetensors"
                save_outputs(path, outputs)
                return path
        raise self.refusal("no wrong weight moves its outputs")

    def _call_accepted(self, planned: Probe) -> tuple[Probe, Outputs] | None:
        """Run a probe in the first form that eager accepts, and return that with its outputs.

        None: it refuses this padding or mask altogether; then the bundle has to refuse it too,
        unless it is optional.
        """
        failure: Exception | None = None
        for probe in self._list_forms(planned):
            try:
                outputs = self._join_rows(probe) or self._time(probe)
            except Exception as error:  # every architecture has its own
                failure = error
                continue
            self._refuse_nan(probe, outputs)
            if probe is not planned:
                self.padded.add(planned.key)
            return probe, outputs
        if planned.optional:
            return None
        if planned.control is planned.reference_feed is None and failure is not None:
            raise self._failure(planned, failure)
        self.refused.add(planned.key)
        return None

    def _list_forms(self, probe: Probe) -> list[Probe]:
        """Return the forms in which eager may run a probe: as it is, or padded as the bundle's."""
        return [probe] if probe.reference_feed is None else [probe, as_run(probe, {probe.key})]

    def _choose_form(self, planned: Probe) -> Probe:
        probe = self._list_forms(planned)[0]
        if probe is not planned:
            self.padded.add(planned.key)
        return probe

    def path(self, index: int) -> Path:
        """Return the file of a probe's outputs."""
        return self.folder / f"{index}.safetensors"

    def outputs(self, feed: Feed) -> Outputs:
        """Return eager's outputs on a feed; the model is afterwards as it was before."""
        with restoring_module_state(self.model):
            return self._run(feed)

    def _store_measured(self, index: int, planned: Probe) -> None:
        """Store eager's outputs for what is not judged, if it runs there at all."""
        probe = self._choose_form(planned)
        with contextlib.suppress(UnsupportedCheckpointError):  # no file: eager itself refuses
            outputs = self._call_once(probe, probe.eager_feed)
            save_outputs(self.path(index), outputs)

    def _store_general(self, index: int, planned: Probe, first: Outputs | None) -> None:
        """Store eager's outputs; no file, and so no general graph, where it can't run the shape."""
        probe = self._choose_form(planned)
        with contextlib.suppress(UnsupportedCheckpointError):
            outputs = self._join_rows(probe) or self._call_once(probe, probe.eager_feed)
            save_outputs(self.path(index), outputs)
            if not probe.reference_rows:
                self._known.setdefault(hash_feed(probe.eager_feed), index)
            if first is not None:
                self._note_movement(probe, outputs, first)

    def _call_once(self, probe: Probe, feed: Feed) -> Outputs:
        """Run eager on a feed of a general probe, unless another one had the same."""
        known = self._known.get(hash_feed(feed))
        if known is not None:
            return load_outputs(self.path(known))
        if feed is not probe.eager_feed:
            probe = dataclasses.replace(probe, feed=feed, reference_feed=None)
        return self.call(probe)

    def _join_rows(self, probe: Probe) -> Outputs | None:
        """Return the outputs of a probe's rows by themselves, filled up with zeros to its length.

        None: it has none, or an output's length is on an axis where no mask could hide the zeros.
        """
        hidden = all(spec.length_axis in (None, 1) for spec in self.specs)
        if not probe.reference_rows or not hidden:
            return None
        rows = [self._call_once(probe, feed) for feed in probe.reference_rows]
        joined = []
        for spec, parts in zip(self.specs, zip(*rows, strict=True), strict=True):
            joined.append(stack_rows(spec, parts, probe.length))
        return tuple(joined)

    def call(self, probe: Probe) -> Outputs:
        """Run eager on a probe and time it.

        Raises:
            UnsupportedCheckpointError: It fails, or an output is NaN.
        """
        try:
            outputs = self._time(probe)
        except Exception as error:
            raise self._failure(probe, error) from error
        self._refuse_nan(probe, outputs)
        return outputs

    def _time(self, probe: Probe) -> Outputs:
        with restoring_module_state(self.model):
            outputs, took = time_call(self.run_eager, probe)
            if is_timed(self.plan, probe):
                again = None if self.plan.is_general else lambda: self.run_eager(probe)
                keep_latency(self.latency, probe.length, took, again)
        return outputs

    def _failure(self, probe: Probe, error: Exception) -> UnsupportedCheckpointError:
        return self.refusal(f"it fails on {probe.name}: {first_line(error)}")

    def run_eager(self, probe: Probe) -> Outputs:
        """Run eager on a probe's inputs."""
        return self._run(probe.eager_feed)

    def _run(self, feed: Feed) -> Outputs:
        device = self.plan.device
        outputs = call_tuple(self.model, move(feed, device), self.specs)
        return tuple(output.cpu() for output in outputs)

    def _refuse_nan(self, probe: Probe, outputs: Outputs) -> None:
        # Two NaN are no agreement: an overflow in half precision proves nothing.
        for spec, tensor in zip(self.specs, outputs, strict=True):
            valid = valid_positions(spec, probe.eager_feed, tensor.shape)
            shown = tensor if valid is None else tensor[valid]
            if bool(shown.isnan().any()):
                raise self.refusal(
                    f"output {spec.name} is NaN for {probe.name} at length {probe.length}; try "
                    "dtype bfloat16 or float32"
                )

    def _note_movement(self, probe: Probe, outputs: Outputs, first: Outputs) -> None:
        """Note whether a probe moves the model, from its control or from the first probe."""
        control = first
        if probe.control is not None:
            control = self.outputs(probe.control)
        # The first probe may have fewer rows than this one.
        rows = min(outputs[0].shape[0], control[0].shape[0])
        feed = {name: tensor[:rows] for name, tensor in probe.eager_feed.items()}
        moved = self._find_movement(feed, _cut(control, rows), _cut(outputs, rows))
        if not any(moved):
            self.vacuous.add(probe.key)
        if probe.control is None:
            pairs = zip(self.ever_moved, moved, strict=True)
            self.ever_moved = [before or now for before, now in pairs]

    def _find_movement(self, feed: Feed, one: Outputs, two: Outputs) -> list[bool]:
        tolerance = self.plan.tolerance
        found = compare_outputs(self.specs, tolerance, one, two, feed, self.scales)
        return find_movement(found, tolerance)

    def refusal(self, complaint: str) -> UnsupportedCheckpointError:
        """Return the error of a model that can't be a reference."""
        return UnsupportedCheckpointError(
            f"{self.plan.facts.architecture}: the eager model can't be a reference: {complaint}. "
            "A traced copy of it could not be proved right, so that none is published. "
            "Serve it with transformers, or ask for another task."
        )


def find_largest(output: torch.Tensor) -> float:
    """Return the largest absolute value of an output that is finite; 0 if there is none."""
    finite = output[output.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _cut(outputs: Outputs, rows: int) -> Outputs:
    return tuple(tensor[:rows] for tensor in outputs)
