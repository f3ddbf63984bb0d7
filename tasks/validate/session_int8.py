"""The eager side of an int8 conversion: exact against its own kind, and what it costs.

Two questions are kept apart: does the bundle compute what the quantised model computes, and how far
is the quantised model from the checkpoint's own precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.child import say
from tasks.model.feeds import pad_right, tokens_of
from tasks.model.outputs import call_tuple
from tasks.model.quantise import check_accuracy, quantise
from tasks.validate.probes import Probe, plan_probes
from tasks.validate.reference import differences, load_outputs
from tasks.validate.session import Session
from tasks.validate.verdict import Difference
from tracefleet.manifest_types import Accuracy

if TYPE_CHECKING:
    from tasks.validate.reference import Outputs


class QuantisedSession(Session):
    """The second pass of an int8 conversion: the same probes through the quantised model.

    A value halfway between two int8 levels goes to one or the other by its last bit, and from
    there on two results part by as much as quantisation itself errs. Padding and another attention
    do change last bits. So that they do no harm is shown on the float32 model, in the first pass;
    here eager gets what the bundle's graph gets, in the same shape, and has to agree to the bit.
    """

    def __init__(self, floats: Session, folder: Path) -> None:
        super().__init__(floats.model, floats.plan, floats.specs, folder)
        self.floats = floats
        self.refused = floats.refused

    def run_quantised(self) -> Accuracy:
        """Quantise the first pass's model, run it, and return what that costs.

        Raises:
            UnsupportedCheckpointError: the quantised model can't be called, or has moods.
            NumericsMismatchError: it costs too much.
        """
        say("the quantised model")
        quantise(self.model)
        self.run()
        self._check_second_run()
        # What moves the model, and how long eager takes, is float32's to say.
        self.vacuous, self.latency = self.floats.vacuous, self.floats.latency
        accuracy = self._accuracy()
        check_accuracy(accuracy)
        return accuracy

    def _askable(self, probe: Probe) -> Probe | None:
        if probe.key in self.refused or (probe.optional and not self._runs(probe.feed)):
            return None
        if probe.truth is not None:
            self.padded.add(probe.key)
        return self._asked(probe)

    def _answer(self, probe: Probe) -> Outputs:
        """Pad as the dispatcher does, and cut the outputs back."""
        feed, facts = probe.feed, self.plan.facts
        if not probe.dispatch:
            return call_tuple(self.model, feed, self.specs)
        outputs = call_tuple(self.model, pad_right(facts, feed, probe.length), self.specs)
        tokens = tokens_of(facts, feed)
        return tuple(
            tensor
            if (axis := spec.length_axis) is None
            else tensor.narrow(axis, 0, tokens[spec.axes[axis]])
            for spec, tensor in zip(self.specs, outputs, strict=True)
        )

    def _judge(self, probe: Probe, outputs: Outputs, first: Outputs) -> None:
        """Leave it to the first pass."""

    def _accuracy(self) -> Accuracy:
        """Compare with float32 wherever ids are fresh: the other probes are no usual inputs."""
        found: list[Difference] = []
        for index, probe in enumerate(plan_probes(self.plan)):
            if probe.dispatch or probe.name.startswith("fresh-"):
                one, two = (
                    load_outputs(s.folder / f"{index}.safetensors") for s in (self, self.floats)
                )
                found += differences(
                    self.specs, self.plan.tolerance, one, two, probe.eager_feed, self.scales
                )
        return Accuracy(
            max_rel_error=max(d.max_rel for d in found),
            min_cosine=round(min(d.cosine for d in found), 9),
            top1_agreement=round(min(d.top1 for d in found), 9),
        )
