"""Types of backends: a backend, the job that it gets, and what it returns.

``tasks.backends.registry`` finds backends by name; ``tasks.backends.prove`` and ``prove_programs``
have their two procedures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

from tasks.backends.options import Options
from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.feeds import input_specs
from tasks.model.generation import Choice
from tasks.samples.make import NO_SAMPLES, Samples
from tasks.steps import Steps
from tasks.trace.record import TraceResult
from tasks.validate.plan import ProbePlan
from tasks.validate.verdict import NO_GOLDEN, ValidationReport
from tracefleet import spelling
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import General, InputSpec, Toolchain
from tracefleet.verdict_types import Tolerance

#: Every backend of the vocabulary; not each can run on every machine.
BACKENDS = spelling.BACKENDS


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Programs that were compiled where no device could run them, downloaded again.

    Attributes:
        manifest: Manifest of the candidate.
        programs: Programs on this machine by their published paths, every byte checked.
    """

    manifest: Manifest
    programs: dict[str, Path]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One artifact to make and to prove.

    Attributes:
        folder: Folder of the checkpoint.
        options: Task, dtype and what is trusted.
        facts: Facts of the model, from ``tasks.model.preflight.inspect``.
        lengths: Standard lengths, ascending.
        batch: Rows in one call.
        tolerance: Bound on every difference.
        compiling: Options of the backend's compiler; None: it has no compiler.
        target: Instance family that a device's programs are for.
        work: Folder of this conversion alone.
        failed: Folder that keeps the compiler's files of failed compilations.
        device: Whether this host has the device.
        candidate: Programs that are to be proved instead of new ones; None: compile.
        may_be_general: Whether one graph may serve every shape, if that is proved.
        samples: Real inputs of the checkpoint; empty: none were made yet.
        generation: How the artifact's ``generate`` searches; ``none``: it has no such method.
        fast_linear: Whether a bundle's float32 linear layers are oneDNN's.
    """

    folder: Path
    options: LoadOptions
    facts: ModelFacts
    lengths: tuple[int, ...]
    batch: int
    tolerance: Tolerance
    compiling: Options | None
    target: str
    work: Path
    failed: Path
    device: bool = False
    candidate: Candidate | None = None
    may_be_general: bool = True
    samples: Samples = NO_SAMPLES
    generation: Choice = "none"
    fast_linear: bool = True

    def without_padding(self) -> Job:
        """Return the job without padding, for a model whose outputs depend on it."""
        return dataclasses.replace(self, facts=self.facts.without_padding())

    def requiring(self, names: Container[str]) -> Job:
        """Return the job of a model whose callers have to give these inputs."""
        return dataclasses.replace(self, facts=self.facts.requiring(names))

    def plan(
        self,
        *,
        whole: tuple[int, ...],
        has_topk_or_sort: bool,
        opaque: bool = False,
        general: General | None = None,
    ) -> ProbePlan:
        """Return the probes; see `ProbePlan` for the arguments."""
        return ProbePlan(
            facts=self.facts,
            lengths=self.lengths,
            whole=whole,
            batch=self.batch,
            tolerance=self.tolerance,
            has_topk_or_sort=has_topk_or_sort,
            opaque=opaque,
            general=general,
            samples=self.samples,
        )


@dataclass(frozen=True, kw_only=True)
class Proved:
    """An artifact that was traced, with the gate's report.

    Attributes:
        facts: Facts of the model, with padding disabled if it changes eager's outputs.
        traced: Files of the artifact and facts of its programs.
        report: Report of the gate; None: no device here could run the files.
        samples: Real inputs of the checkpoint, and what the manifest says about texts.
    """

    facts: ModelFacts
    traced: TraceResult
    report: ValidationReport | None
    samples: Samples

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Inputs of the artifact, in the order of its arguments."""
        return input_specs(self.facts)

    @property
    def golden(self) -> dict[str, Path]:
        """Local file of the golden samples by its published path; empty if there are none."""
        golden = self.report.golden if self.report else NO_GOLDEN
        return {} if golden.path is None else {golden.published: golden.path}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to make an artifact and to prove it.

    Attributes:
        name: One of ``BACKENDS``.
        toolchain: Reads the versions that shape the artifact; imports no torch.
        has_device: Tells in a child whether this host can run the artifact.
        prove: Makes the artifact of a job and runs it through the gate.
    """

    name: str
    toolchain: Callable[[], Toolchain]
    has_device: Callable[[], bool]
    prove: Callable[[Job, Steps], Proved]
