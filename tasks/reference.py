"""The eager reference: what the untouched checkpoint computes for every probe.

Runs in a child of its own and writes its outputs to a folder, so that the eager model and the
bundle are never in memory together. Before anything is compared with it, the reference has to
agree with itself: a second run, another attention implementation, and padded against unpadded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child import say
from tasks.errors import PaddingChangesError, UnsupportedCheckpointError, first_line
from tasks.inputs import pad_right, random_feed, tokens_of
from tasks.load import LoadOptions, ModelFacts, load_eager
from tasks.outputs import as_loaded, call_tuple, describe_outputs
from tasks.probes import Probe, plan_probes, timed
from tasks.quantise import INT8, check_accuracy, quantise
from tasks.verdict import Difference, compare, discriminating, within
from tasks.weights import compare_with_files, digests, named_tensors
from tracefleet.manifest import Accuracy, OutputSpec, Tolerance

if TYPE_CHECKING:
    import torch

    from tasks.inputs import Feed

    Outputs = tuple[torch.Tensor, ...]

#: Milliseconds; the first call at a length also prepares it (a bundle's takes up to a hundred times
#: a later one's). A call that is longer than this is timed as it came, to not hold up the gate.
WORTH_REPEATING = 150.0


_SELECTION_SEEDS, _SELECTION_BASE = 16, 5000


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """Which probes a conversion gets; the same in the reference's and the gate's process.

    Attributes:
        facts: the model.
        lengths: standard lengths, ascending.
        whole: the lengths that get every probe; the others get the proving ones.
        batch: rows in one traced call.
        tolerance: bound on every difference.
        selects: the program takes the largest of several values (top-k, sort).
    """

    facts: ModelFacts
    lengths: tuple[int, ...]
    whole: tuple[int, ...]
    batch: int
    tolerance: Tolerance
    selects: bool = False


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where the eager outputs lie and what they are worth.

    Attributes:
        plan: which probes.
        outputs: elements of the tuple that each probe returned.
        weights: name -> digest of every parameter and buffer.
        folder: one safetensors file for each probe, by its index in the plan.
        vacuous: keys of probes that can't move this model.
        latency: milliseconds of one eager call of the traced shape, by length.
        scales: max|eager| of each output for the first probe.
        padded: keys of probes whose unpadded input eager refuses: it was given the padded one.
        refused: keys of probes that eager refuses altogether.
        accuracy: what quantisation costs; None: nothing is quantised.
    """

    plan: ProbePlan
    outputs: tuple[OutputSpec, ...]
    weights: dict[str, str]
    folder: Path
    vacuous: frozenset[str]
    latency: dict[int, float]
    scales: tuple[float, ...]
    padded: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    accuracy: Accuracy | None = None

    def as_asked(self, probe: Probe) -> Probe:
        """Return the probe as eager answered it."""
        return dataclasses.replace(probe, truth=None) if probe.key in self.padded else probe


def compute_reference(
    checkpoint: Path, options: LoadOptions, plan: ProbePlan, folder: Path
) -> Reference:
    """Compute and store the eager outputs of every probe; the whole job of one child.

    Raises:
        UnsafeCheckpointError: a loaded weight differs from the file's.
        UnsupportedCheckpointError: eager disagrees with itself, so that nothing can be compared
            with it, or an output never moves whatever the inputs are.
        NumericsMismatchError: the model does not bear int8.
    """
    import torch

    say("loading the eager reference")
    model = load_eager(checkpoint, options)
    compare_with_files(getattr(model, "inner", model), checkpoint)
    weights = digests(named_tensors(model))
    outputs = describe_outputs(model, plan.facts)
    quantised, accuracy = options.dtype == INT8, None
    session = _Session(model, plan, outputs, folder / "float32" if quantised else folder)
    with torch.no_grad():
        session.run()
        session.check_itself()
        if quantised:
            session = _QuantisedSession(session, folder)
            accuracy = session.run_quantised()
            now = digests(named_tensors(model))
            # What is as it was keeps the digest from before the first call.
            weights = {name: weights.get(name, digest) for name, digest in now.items()}
    return Reference(
        plan=plan,
        outputs=outputs,
        weights=weights,
        folder=folder,
        vacuous=frozenset(session.vacuous),
        latency=session.latency,
        scales=session.scales,
        padded=frozenset(session.padded),
        refused=frozenset(session.refused),
        accuracy=accuracy,
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
    if spec.length_axis != 1:
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
    scales: tuple[float, ...],
) -> list[Difference]:
    """Compare two tuples of outputs on the positions that both have and ``feed`` shows."""
    found = []
    for spec, one, two, scale in zip(specs, judged, reference, scales, strict=True):
        if (axis := spec.length_axis) is not None and one.dim() == two.dim():
            shared = min(one.shape[axis], two.shape[axis])
            one, two = one.narrow(axis, 0, shared), two.narrow(axis, 0, shared)
        valid = valid_positions(spec, feed, two.shape)
        found.append(compare(one, two, tolerance, valid, scale))
    return found


def moved(found: Iterable[Difference], tolerance: Tolerance) -> list[bool]:
    """Tell for each output whether it moved far more than the tolerance."""
    return [not within(d, discriminating(tolerance)) for d in found]


def _scale(output: torch.Tensor) -> float:
    finite = output[output.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


class _Session:
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
        config = self.model.config
        used = getattr(config, "_attn_implementation", None)
        if used != "sdpa":
            return
        probe = next(iter(plan_probes(self.plan)))
        stored = load_outputs(self.folder / "0.safetensors")
        self.model.set_attn_implementation("eager")
        try:
            outputs = self._call(probe)
        finally:
            self.model.set_attn_implementation(used)
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


class _QuantisedSession(_Session):
    """The second pass of an int8 conversion: the same probes through the quantised model.

    A value halfway between two int8 levels goes to one or the other by its last bit, and from
    there on two results part by as much as quantisation itself errs. Padding and another attention
    do change last bits. So that they do no harm is shown on the float32 model, in the first pass;
    here eager gets what the bundle's graph gets, in the same shape, and has to agree to the bit.
    """

    def __init__(self, floats: _Session, folder: Path) -> None:
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
