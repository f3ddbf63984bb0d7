"""The eager side of an int8 conversion: exact against its own kind, and what it costs.

Two questions are kept apart: does the bundle compute what the quantised model computes, and how far
is the quantised model from the checkpoint's own precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.model.feeds import pad_right, tokens_of
from tasks.model.outputs import call_tuple
from tasks.model.quantise import check_accuracy, quantise
from tasks.validate.difference import Difference, all_passed, worst_of
from tasks.validate.plan import plan_probes
from tasks.validate.probes import LEFT_PADDING, Probe
from tasks.validate.reference import as_run, compare_outputs, load_outputs
from tasks.validate.reference_pass import ReferencePass
from tasks.validate.self_check import check_second_run
from tracefleet.manifest_types import OutputSpec
from tracefleet.verdict_types import RANDOM, REAL, Accuracy

if TYPE_CHECKING:
    import torch

    from tasks.validate.reference import Outputs

#: With fewer vectors there are too few pairs to rank.
_FEWEST_VECTORS = 5


class QuantisedReferencePass(ReferencePass):
    """The second pass of an int8 conversion: the same probes through the quantised model.

    A value halfway between two int8 levels goes to one or the other by its last bit, and from
    there on two results differ by as much as quantisation itself errs. Padding and another
    attention do change last bits. The first pass shows on the float32 model that they do no harm;
    here eager gets what the bundle's graph gets, in the same shape, and has to agree to the bit.
    """

    def __init__(self, floats: ReferencePass, folder: Path) -> None:
        super().__init__(floats.model, floats.plan, floats.specs, folder)
        self.floats = floats
        self.refused = floats.refused

    def run_quantised(self) -> Accuracy:
        """Quantise the first pass's model, run it, and return what that costs.

        Raises:
            UnsupportedCheckpointError: The quantised model fails, or is not deterministic.
            NumericsMismatchError: It is too far from the float32 model.
        """
        report_progress("the quantised model")
        self._note_padding_on_both_sides()
        quantise(self.model)
        self.run()
        check_second_run(self)
        # Whether a probe moves the model, and how long eager takes, are the float32 model's.
        self.vacuous, self.latency = self.floats.vacuous, self.floats.latency
        accuracy = self._measure_accuracy()
        check_accuracy(accuracy)
        return accuracy

    def _note_padding_on_both_sides(self) -> None:
        """Note which left-padded rows change in float32 when they are padded right as well."""
        # The quantised model gets them padded as its bundle does, and so agrees in any case.
        for index, probe in enumerate(plan_probes(self.plan)):
            stored = self.floats.path(index)
            if probe.measured != LEFT_PADDING or not stored.exists():
                continue
            padded = pad_right(self.plan.facts, probe.feed, probe.length)
            outputs, own = self.floats.outputs(padded), load_outputs(stored)
            tolerance, scales = self.plan.tolerance, self.floats.scales
            feed = probe.eager_feed
            found = compare_outputs(self.specs, tolerance, outputs, own, feed, scales)
            if not all_passed(found):
                self.moved_by_both.add(probe.key)

    def run_eager(self, probe: Probe) -> Outputs:
        """Pad as the dispatcher does, and cut the outputs back."""
        feed, facts = probe.feed, self.plan.facts
        tokens = tokens_of(facts, feed)
        if not probe.dispatch or not self.plan.pads(max(tokens.values(), default=1)):
            return call_tuple(self.model, feed, self.specs)
        outputs = call_tuple(self.model, pad_right(facts, feed, probe.length), self.specs)
        shortened = []
        for spec, tensor in zip(self.specs, outputs, strict=True):
            axis = spec.length_axis
            if axis is not None:
                tensor = tensor.narrow(axis, 0, tokens[spec.axes[axis]])
            shortened.append(tensor)
        return tuple(shortened)

    def _list_forms(self, probe: Probe) -> list[Probe]:
        if probe.key in self.refused:
            return []
        return [probe] if probe.reference_feed is None else [as_run(probe, {probe.key})]

    def _join_rows(self, probe: Probe) -> Outputs | None:
        """Return nothing: rows of another shape have other last bits."""
        return None

    def _note_movement(self, probe: Probe, outputs: Outputs, first: Outputs) -> None:
        """Do nothing: the first pass did."""

    def _measure_accuracy(self) -> Accuracy:
        """Compare with float32 on real inputs, or on fresh ids where there are none."""
        real = [index for index, probe in self._find_run() if _is_real(probe)]
        if real:
            return self._compare_real(real)
        # The other probes are no usual inputs.
        found: list[Difference] = []
        for index, probe in self._find_run():
            alone = not probe.general or probe.reference_feed is not None
            usual = probe.dispatch and (alone or probe.reference_rows) and not probe.left_padded
            if usual or probe.name.startswith("fresh-"):
                found += self._compare_with_floats(index, probe)
        return _sum_up(found, RANDOM, top1=worst_of(found).top1, rank=None)

    def _find_run(self) -> Iterator[tuple[int, Probe]]:
        """Yield the probes that both models ran, with their indices."""
        for index, probe in enumerate(plan_probes(self.plan)):
            if self.path(index).exists() and self.floats.path(index).exists():
                yield index, probe

    def _compare_real(self, real: Sequence[int]) -> Accuracy:
        """Compare on real inputs, each by itself."""
        probes = dict(self._find_run())
        found: list[Difference] = []
        for index in real:
            found += self._compare_with_floats(index, probes[index])
        top1 = sum(one.top1 for one in found) / len(found)
        return _sum_up(found, REAL, top1=top1, rank=self._correlate(real))

    def _correlate(self, real: Sequence[int]) -> float | None:
        """Return the rank correlation of all pairs' similarities; None: there are no vectors."""
        ours, floats = [], []
        for index in real:
            ours.append(_find_vector(self.specs, load_outputs(self.path(index))))
            floats.append(_find_vector(self.specs, load_outputs(self.floats.path(index))))
        if ours[0] is None or len(ours) < _FEWEST_VECTORS:
            return None
        return correlate_similarities(ours, floats)

    def _compare_with_floats(self, index: int, probe: Probe) -> list[Difference]:
        return compare_outputs(
            self.specs,
            self.plan.tolerance,
            load_outputs(self.path(index)),
            load_outputs(self.floats.path(index)),
            probe.eager_feed,
            self.scales,
        )


def correlate_similarities(one: Sequence[Any], two: Sequence[Any]) -> float:
    """Return Spearman's rank correlation of the cosines of all pairs in two lists of vectors.

    It tells how far a search that sorts by similarity finds the same neighbours (Spearman, "The
    Proof and Measurement of Association between Two Things", 1904).
    """
    import torch

    ranks = [_rank_similarities(torch.stack(list(vectors)).float()) for vectors in (one, two)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _rank_similarities(vectors: torch.Tensor) -> torch.Tensor:
    import torch

    unit = torch.nn.functional.normalize(vectors, dim=-1)
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1)
    similarities = (unit @ unit.T)[rows, columns]
    return similarities.argsort().argsort().double()


def _find_vector(specs: Sequence[OutputSpec], outputs: Outputs) -> torch.Tensor | None:
    """Return one vector for a row: the first output that is no logits, its tokens' mean if any."""
    for spec, output in zip(specs, outputs, strict=True):
        if spec.name.endswith("logits"):
            continue
        if len(spec.axes) == 2:
            return output[0]
        if spec.axes[:2] == ("batch", "length") and output.dim() == 3:
            return output[0].mean(0)
    return None


def _is_real(probe: Probe) -> bool:
    """Tell whether a probe is one real input at its own length."""
    return bool(probe.sample) and probe.reference_feed is None


def _sum_up(
    found: Sequence[Difference], inputs: str, *, top1: float, rank: float | None
) -> Accuracy:
    worst = worst_of(found)
    return Accuracy(
        max_rel_error=worst.max_rel,
        min_cosine=round(worst.cosine, 9),
        top1_agreement=round(top1, 9),
        inputs=inputs,
        rank_correlation=None if rank is None else round(rank, 9),
    )
