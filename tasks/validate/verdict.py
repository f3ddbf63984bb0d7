"""What the gate concludes from all differences: its tolerances, and its report."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from tasks.validate.difference import Difference, worst_of
from tasks.validate.probes import LEFT_PADDING
from tracefleet.golden import MEDIA_TYPE
from tracefleet.manifest_types import FileEntry, General
from tracefleet.verdict_types import (
    DIFFERS,
    HOLDS,
    RAISES,
    UNTRIED,
    Accuracy,
    LengthVerdict,
    Tolerance,
    samples_path,
)

#: dtype -> (largest error seen, number of correct conversions), measured by `flows sweep` (November
#: 2026, docs/gate.md); faults were at least 0.1.
MEASURED = {"float32": (6.3e-6, 424), "float16": (2.5e-3, 50), "bfloat16": (2.0e-2, 50)}
#: int8 against the quantised eager model, called in the bundle's own shapes: exactly 0 in each of
#: 2,117 probes (44 tiny architectures, three layers of BERT-base, all-MiniLM-L6-v2 for two tasks).
#: More can't be allowed: in other shapes (padded against unpadded), whose last bits differ, that
#: model's error was anything from 1e-7 to 0.1.
TOLERANCES = {
    "float32": Tolerance(atol=0.0, rtol=1e-5),
    "float16": Tolerance(atol=0.0, rtol=5e-3),
    "bfloat16": Tolerance(atol=0.0, rtol=3e-2),
    "int8": Tolerance(atol=0.0, rtol=1e-5),
}


@dataclass(frozen=True, kw_only=True)
class GoldenFile:
    """A file of golden samples on this machine.

    Attributes:
        path: The file; None: there is none.
        size: Number of its bytes.
        sha256: Hex digest of its bytes.
        missing: Why there is none; None: there is one.
    """

    path: Path | None = None
    size: int = 0
    sha256: str = ""
    missing: str | None = None

    @property
    def published(self) -> str:
        """Its path in the conversion's folder, by its digest: each machine has its own bytes."""
        return samples_path(self.sha256)

    @property
    def entry(self) -> FileEntry | None:
        """The manifest's entry; None: there is no file."""
        if self.path is None:
            return None
        return FileEntry(
            path=self.published, size=self.size, sha256=self.sha256, media_type=MEDIA_TYPE
        )


#: Of a run that made none.
NO_GOLDEN = GoldenFile()


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """One probe's verdict on every output.

    Attributes:
        name: Name of the probe.
        length: Standard length whose graph it tested.
        vacuous: Whether it can't move this model, so that it proves nothing here.
        outputs: Names of the outputs; one tuple for all probes, so that a report is pickled small.
        differences: Traced against eager, one for each output.
    """

    name: str
    length: int
    vacuous: bool
    outputs: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def difference(self) -> Difference:
        """Difference of the worst output."""
        return self.differences[self._worst]

    @property
    def output(self) -> str:
        """Name of the worst output."""
        return self.outputs[self._worst]

    @property
    def _worst(self) -> int:
        found = self.differences
        return max(
            range(len(found)), key=lambda index: (not found[index].passed, found[index].max_rel)
        )


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """The gate's whole record, for people; the manifest keeps its digest-worthy part.

    Attributes:
        tolerance: Bound that was applied.
        probes: Every comparison.
        negative_controls: Names of the deliberate faults that were caught.
        weights_matched: Number of the bundle's tensors that equal the checkpoint's bit for bit.
        latency_eager: Milliseconds of one eager call, by length.
        latency_traced: Milliseconds of one traced call, by length.
        failures: Sentence for each check that failed; empty means passed.
        measured: Standard length, what was measured and the result: the bare graph along the axis
            ``length`` or ``batch``, or ``left_padding``.
        accuracy: Cost of quantisation; None: nothing is quantised.
        general: Shapes at which probes ran without padding; None: the artifact pads.
        follows_device: Whether nothing in the artifact binds it to the device of its recording.
        golden: Golden samples, to be published.
    """

    tolerance: Tolerance
    probes: tuple[ProbeResult, ...]
    negative_controls: tuple[str, ...]
    weights_matched: int
    latency_eager: dict[int, float]
    latency_traced: dict[int, float]
    failures: tuple[str, ...]
    measured: tuple[tuple[int, str, str], ...] = ()
    accuracy: Accuracy | None = None
    general: General | None = None
    follows_device: bool = False
    golden: GoldenFile = NO_GOLDEN

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def left_padding(self) -> str:
        """Whether rows with padding on their left, or a hole, hold with padding on their right."""
        found = {result for _, what, result in self.measured if what == LEFT_PADDING}
        if not found:
            return UNTRIED
        return HOLDS if found == {HOLDS} else DIFFERS

    def lengths(self) -> tuple[LengthVerdict, ...]:
        """Return the worst of all probes for each length, as the manifest publishes it."""
        lengths = sorted({probe.length for probe in self.probes})
        return tuple(self._verdict(length) for length in lengths)

    def by_output(self, length: int) -> dict[str, Difference]:
        """Return the worst of all probes for each output at one length."""
        found: dict[str, list[Difference]] = {}
        for probe in self.probes:
            if probe.length == length:
                for output, difference in zip(probe.outputs, probe.differences, strict=True):
                    found.setdefault(output, []).append(difference)
        return {output: worst_of(differences) for output, differences in found.items()}

    def _verdict(self, length: int) -> LengthVerdict:
        probes = [probe for probe in self.probes if probe.length == length]
        found = worst_of(list(itertools.chain(*(probe.differences for probe in probes))))
        vacuous = tuple(probe.name for probe in probes if probe.vacuous)
        return LengthVerdict(
            length=length,
            probes=len(probes) - len(vacuous),
            vacuous=vacuous,
            max_abs_error=found.max_abs,
            max_rel_error=found.max_rel,
            min_cosine=round(found.cosine, 9),
            top1_agreement=round(found.top1, 9),
            passed=found.passed,
            other_lengths=self._generality(length, "length"),
            other_batches=self._generality(length, "batch"),
        )

    def _generality(self, length: int, axis: str) -> str:
        """Return the worst result; lengths without their own share what others measured."""
        if self.general is not None:  # its probes are judged, so that they all hold
            return UNTRIED if axis == "length" and self.general.tokens is None else HOLDS
        own, all_lengths = set(), set()
        for measured_length, measured_axis, result in self.measured:
            if measured_axis == axis:
                all_lengths.add(result)
                if measured_length == length:
                    own.add(result)
        for result in (DIFFERS, RAISES, HOLDS):
            if result in (own or all_lengths):
                return result
        return UNTRIED
