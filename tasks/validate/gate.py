"""The gate: does the saved file compute what the untouched checkpoint computes?

Judges the bytes on disk, loaded in a process that never traced anything, against stored eager
outputs. A mismatch stops the line. The gate also judges itself: it plants faults in the loaded
copy and has to catch them with the same probes, else it is blind and nothing is published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child import say
from tasks.errors import (
    NumericsMismatchError,
    TraceError,
    UnsafeCheckpointError,
    last_line,
)
from tasks.model.feeds import length_axis, random_feed
from tasks.model.quantise import packed_layers, spoiled
from tasks.model.weights import digests, named_tensors
from tasks.validate.faults import FACTOR, dense_weights, planted, spread
from tasks.validate.probes import Probe, plan_probes, timed
from tasks.validate.reference import WORTH_REPEATING, Reference, differences, load_outputs
from tasks.validate.verdict import Difference, ProbeResult, ValidationReport, incomparable
from tracefleet.manifest_types import DIFFERS, HOLDS, RAISES

if TYPE_CHECKING:
    import torch

    from tasks.model.feeds import Feed
    from tasks.validate.reference import Outputs

#: The first call records a profile, the second rewrites the graph by it, the third just runs.
_EXECUTOR_CALLS = ("first", "second", "third")
_SHOWN_FAILURES = 6


def validate_bundle(bundle: Path, reference: Reference) -> ValidationReport:
    """Run the whole gate on a saved bundle; the whole job of one child.

    Args:
        bundle: the archive as it will be published.
        reference: eager's weights, and its outputs for every probe of its plan.

    Raises:
        TraceError: the saved file does not load.
        UnsafeCheckpointError: a weight in the bundle differs from eager's.
        NumericsMismatchError: a probe failed, or the gate missed a planted fault.
    """
    say("loading the saved bundle")
    module = _load(bundle)
    return judge(module, reference, weights_matched=_check_weights(module, reference))


def judge(module: Any, reference: Reference, *, weights_matched: int = 0) -> ValidationReport:
    """Run every probe on a loaded module that has a bundle's methods.

    Args:
        module: the artifact, loaded from the bytes that will be published.
        reference: eager's outputs for every probe of its plan.
        weights_matched: tensors of the artifact that were compared with the checkpoint's.

    Raises:
        NumericsMismatchError: a probe failed, or the gate missed a planted fault.
    """
    import torch

    gate = _Gate(module, reference)
    with torch.no_grad():
        # The profiling executor spends seconds on the first two calls of every method, to rewrite
        # what it has watched. It gets one graph to show that its rewriting is right; every probe
        # then runs the graphs as they were recorded.
        gate.check_profiled()
        before = torch._C._jit_set_profiling_mode(False)
        try:
            gate.run_probes()
            gate.check_proved()
            gate.check_refusals()
            controls = gate.negative_controls()
        finally:
            torch._C._jit_set_profiling_mode(before)
    report = ValidationReport(
        tolerance=reference.plan.tolerance,
        probes=tuple(gate.results),
        negative_controls=controls,
        weights_matched=weights_matched,
        latency_eager=reference.latency,
        latency_traced=gate.latency,
        failures=tuple(gate.failures),
        measured=tuple(gate.measured),
        accuracy=reference.accuracy,
    )
    if not report.passed:
        raise NumericsMismatchError(_summary(report), report)
    return report


def _load(bundle: Path) -> torch.jit.ScriptModule:
    import torch

    try:
        module: torch.jit.ScriptModule = torch.jit.load(bundle).eval()
        return module
    except RuntimeError as error:
        raise TraceError(
            f"{bundle.name}: expected the saved bundle to load, got: {error}. "
            "The archive is not what was traced; nothing is published."
        ) from error


def _check_weights(module: torch.jit.ScriptModule, reference: Reference) -> int:
    """Compare every name in the bundle, untied copies and fused tensors included."""
    for name, digest in digests(named_tensors(module)).items():
        inner = name.removeprefix("model.")
        if reference.weights.get(inner) != digest:
            raise UnsafeCheckpointError(
                f"{inner}: expected the bundle to hold the reference's value bit for bit, got "
                "another one. Nothing was published; trace again, and report it if it stays."
            )
    return len(reference.weights)


class _Gate:
    """One loaded bundle under examination."""

    def __init__(self, module: Any, reference: Reference) -> None:
        self.module, self.plan, self.reference = module, reference.plan, reference
        self.outputs = tuple(spec.name for spec in reference.outputs)
        self.results: list[ProbeResult] = []
        self.failures: list[str] = []
        self.latency: dict[int, float] = {}
        self.measured: list[tuple[int, str, str]] = []

    def run_probes(self) -> None:
        """Compare every probe; all of them, so that the report shows the whole picture."""
        for index, probe in enumerate(plan_probes(self.plan)):
            if probe.measures:
                self._measure(index, probe)
                continue
            if not any(result.length == probe.length for result in self.results):
                say(f"validating length {probe.length}")
            if probe.optional and not self._answered(index):
                continue
            if probe.key in self.reference.refused:
                self._must_raise(f"forward_{probe.length}", probe.feed, probe.name)
                continue
            result = self._judge(index, self.reference.as_asked(probe))
            self.results.append(result)
            if not result.difference.passed:
                self.failures.append(_sentence(result))

    def check_proved(self) -> None:
        """A length without a single probe that can move the model is not proved by agreement."""
        for length in self.plan.lengths:
            if not any(r.length == length and not r.vacuous for r in self.results):
                self.failures.append(f"length {length}: expected a probe that counts, got none")

    def check_refusals(self) -> None:
        """Other shapes than were traced must raise, and so must inputs that are too long."""
        facts, batch, largest = self.plan.facts, self.plan.batch, self.plan.lengths[-1]
        varies = any(length_axis(one) is not None for one in facts.arguments)
        if varies:
            self._must_raise("forward", random_feed(facts, batch=1, length=largest + 1, seed=2))
        for length in self.plan.lengths:
            if not varies:
                feed = random_feed(facts, batch=1, length=length, seed=2)
                self._must_raise("forward", _narrower(feed))
            elif not facts.takes_padding and length - 1 not in (0, *self.plan.lengths):
                feed = random_feed(facts, batch=batch, length=length - 1, seed=2)
                self._must_raise("forward", feed)
            others = [(batch + 1, length), *([(batch, length + 1)] if varies else [])]
            for rows, tokens in others:
                feed = random_feed(facts, batch=rows, length=tokens, seed=2)
                self._must_raise(f"forward_{length}", feed)

    def check_profiled(self) -> None:
        """What the default executor of C++ and Triton makes of the first graph must agree."""
        probe = next(iter(plan_probes(self.plan)))
        for attempt in _EXECUTOR_CALLS:
            found = self._outcome(0, probe, probe.feed)
            if not all(difference.passed for difference in found):
                worst = max(found, key=lambda difference: difference.max_rel)
                self.failures.append(
                    f"{probe.name} at length {probe.length}, {attempt} call with the default "
                    f"executor: {worst.reason or f'relative error {worst.max_rel:.3g}'}"
                )

    def negative_controls(self) -> tuple[str, ...]:
        """Plant faults that the probes must catch, and return their names."""
        caught = ["wrong-weight"] if self._catches_wrong_weight() else []
        if not caught:
            self.failures.append(
                "negative control: expected a planted wrong weight to fail a probe, got a pass; "
                "the gate can't see this model's faults"
            )
        masks = [
            (i, self.reference.as_asked(p))
            for i, p in enumerate(plan_probes(self.plan))
            if p.control is not None
            and "mask" in _changed(p)
            and p.key not in self.reference.vacuous | self.reference.refused
        ]
        if masks:
            caught += ["dropped-mask"] if self._catches_dropped_mask(*masks[0]) else []
        return tuple(caught)

    def _measure(self, index: int, probe: Probe) -> None:
        """Run the bare graph where no consumer can: what it does there is told, not judged."""
        import torch

        assert probe.measures is not None
        if not self._answered(index):
            return
        try:
            outputs = getattr(self.module, self._graph(probe.length))(*probe.feed.values())
        except (torch.jit.Error, RuntimeError):
            self.measured.append((probe.length, probe.measures, RAISES))
            return
        found = self._differences(index, probe, outputs)
        holds = all(difference.passed for difference in found)
        self.measured.append((probe.length, probe.measures, HOLDS if holds else DIFFERS))

    def _answered(self, index: int) -> bool:
        """Whether eager ran this probe at all."""
        return (self.reference.folder / f"{index}.safetensors").exists()

    def _graph(self, length: int) -> str:
        """The traced method that serves a length: its own, or the shared one."""
        own = f"_traced_{length}"
        return own if hasattr(self.module, own) else f"_traced_{self.plan.lengths[0]}"

    def _judge(self, index: int, probe: Probe) -> ProbeResult:
        return ProbeResult(
            name=probe.name,
            length=probe.length,
            vacuous=probe.key in self.reference.vacuous,
            outputs=self.outputs,
            differences=tuple(self._outcome(index, probe, probe.feed)),
        )

    def _outcome(self, index: int, probe: Probe, feed: Feed) -> list[Difference]:
        """Call and compare; a bundle that raises has failed the probe like one that differs."""
        import torch

        try:
            outputs = self._call(probe, feed)
        except (torch.jit.Error, RuntimeError) as error:
            return [incomparable(f"raised: {last_line(error)}")] * len(self.reference.outputs)
        return self._differences(index, probe, outputs)

    def _call(self, probe: Probe, feed: Feed) -> Outputs:
        method: Callable[..., Outputs] = getattr(
            self.module, "forward" if probe.dispatch else f"forward_{probe.length}"
        )
        outputs, took = _clocked(method, feed)
        if feed is probe.feed and timed(self.plan.facts, probe, self.plan.batch):
            if probe.length not in self.latency and took < WORTH_REPEATING:
                took = min(took, _clocked(method, feed)[1])
            self.latency[probe.length] = min(took, self.latency.get(probe.length, took))
        return outputs

    def _differences(self, index: int, probe: Probe, outputs: Outputs) -> list[Difference]:
        return self._against(self.reference.folder / f"{index}.safetensors", probe, outputs)

    def _against(self, reference: Path, probe: Probe, outputs: Outputs) -> list[Difference]:
        stored = load_outputs(reference)
        found = differences(
            self.reference.outputs,
            self.plan.tolerance,
            outputs,
            stored,
            probe.eager_feed,
            self.reference.scales,
        )
        if probe.dispatch:  # sliced by the dispatcher: even the shape must be eager's
            for index, (one, two) in enumerate(zip(outputs, stored, strict=True)):
                if one.shape != two.shape:
                    wrong = f"expected shape {tuple(two.shape)}, got {tuple(one.shape)}"
                    found[index] = incomparable(wrong)
        return found

    def _must_raise(self, method: str, feed: Feed, probe: str = "") -> None:
        import torch

        try:
            getattr(self.module, method)(*feed.values())
        except (torch.jit.Error, RuntimeError):
            return
        shape = tuple(next(iter(feed.values())).shape)
        what = f"{probe} (which eager refuses)" if probe else f"shape {shape}"
        self.failures.append(f"{method}: expected {what} to be refused, got a result")

    def _catches_wrong_weight(self) -> bool:
        """Spoil one weight matrix at a time; the traced input's probe must fail for one of them."""
        probe = next(iter(plan_probes(self.plan)))
        if self.reference.spoilt is not None:
            return self._differs_from_spoilt(self.reference.spoilt, probe)
        for fault in self._faults():
            with fault:
                found = self._outcome(0, probe, probe.feed)
            if not all(difference.passed for difference in found):
                return True
        return False

    def _differs_from_spoilt(self, reference: Path, probe: Probe) -> bool:
        """Compare with an eager model that has a wrong weight, where the artifact's are sealed."""
        import torch

        try:
            outputs = self._call(probe, probe.feed)
        except (torch.jit.Error, RuntimeError):
            return False  # every probe says so already
        return not all(found.passed for found in self._against(reference, probe, outputs))

    def _faults(self) -> Iterator[AbstractContextManager[None]]:
        """Yield faults in a few matrices that every token goes through, spread over the model."""
        quantised = list(packed_layers(self.module).values())
        if quantised:
            yield from (spoiled(layer, FACTOR) for layer in spread(quantised))
            return
        yield from map(planted, dense_weights(self.module))

    def _catches_dropped_mask(self, index: int, probe: Probe) -> bool:
        """Call the bundle with its mask ignored; the probe must fail."""
        assert probe.control is not None
        found = self._outcome(index, probe, probe.control)
        if all(difference.passed for difference in found):
            self.failures.append(
                f"negative control: expected {probe.name} without its mask to fail, got a pass"
            )
            return False
        return True


def _clocked(method: Callable[..., Outputs], feed: Feed) -> tuple[Outputs, float]:
    started = time.perf_counter()
    outputs = method(*feed.values())
    return outputs, (time.perf_counter() - started) * 1e3


def _narrower(feed: Feed) -> Feed:
    """Cut the first input's last axis by one: an image of another size."""
    name, tensor = next(iter(feed.items()))
    return {**feed, name: tensor[..., :-1].contiguous()}


def _changed(probe: Probe) -> str:
    """Return which inputs a probe's control has otherwise."""
    import torch

    assert probe.control is not None
    names = [n for n, t in probe.control.items() if not torch.equal(t, probe.feed[n])]
    return " ".join(names)


def _sentence(result: ProbeResult) -> str:
    difference = result.difference
    got = difference.reason or f"relative error {difference.max_rel:.3g}"
    return f"{result.name} at length {result.length}: {result.output}: {got}"


def _summary(report: ValidationReport) -> str:
    shown = "; ".join(report.failures[:_SHOWN_FAILURES])
    more = len(report.failures) - _SHOWN_FAILURES
    return (
        f"the saved bundle does not compute what eager computes: expected every difference within "
        f"{report.tolerance.rtol:g} of the largest eager value, got {len(report.failures)} "
        f"failure(s): {shown}{f'; and {more} more' if more > 0 else ''}. Nothing was published. "
        "Convert at one length, or with batch 1, to narrow it down; the report lists every probe."
    )
