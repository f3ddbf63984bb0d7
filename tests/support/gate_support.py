"""The way through without processes: trace, reference and gate on tiny models, with faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.feeds import input_specs
from tasks.model.load import load_eager
from tasks.model.outputs import describe_outputs
from tasks.model.preflight import inspect
from tasks.model.quantise import quantise
from tasks.model.weights import digests, list_tensors
from tasks.samples.make import Samples, make_samples
from tasks.trace.bundle import TracedFile, write_bundle
from tasks.trace.compare import same_program
from tasks.trace.record import trace_lengths
from tasks.trace.untie import untie
from tasks.validate.compute import compute_reference
from tasks.validate.gate import validate_bundle
from tasks.validate.plan import ProbePlan
from tasks.validate.reference import Reference
from tasks.validate.verdict import TOLERANCES, ValidationReport
from tracefleet.manifest_types import INT8, General


@dataclasses.dataclass(kw_only=True)
class Bench:
    """One checkpoint on the bench; ``corrupt`` changes the model that is traced."""

    folder: Path
    work: Path
    task: str
    lengths: tuple[int, ...] = (8, 16)
    batch: int = 2
    dtype: str = "float32"
    whole: tuple[int, ...] | None = None
    general: General | None = None
    real: bool = False

    def __post_init__(self) -> None:
        self.options = LoadOptions(task=self.task, dtype=self.dtype)
        self.facts: ModelFacts = inspect(self.folder, self.options, self.lengths)
        self.work.mkdir(parents=True, exist_ok=True)
        self.samples: Samples | None = None
        if self.real:
            path = self.work / "samples.safetensors"
            self.samples = make_samples(self.folder, self.options, self.facts, self.lengths, path)

    def trace(
        self,
        corrupt: Callable[[Any], None] | None = None,
        *,
        traced_facts: ModelFacts | None = None,
    ) -> TracedFile:
        model = load_eager(self.folder, self.options)
        self.outputs = describe_outputs(model, self.facts)
        untie(model)
        if self.dtype == INT8:
            quantise(model)
        if corrupt is not None:
            corrupt(model)
        facts = traced_facts or self.facts
        graphs = {length: f"_traced_{length}" for length in self.lengths}
        traced_lengths = self.lengths
        if self.general is not None:
            traced_lengths = self.lengths[:1]
            graphs = dict.fromkeys(self.lengths, f"_traced_{self.lengths[0]}")
        traced = trace_lengths(model, facts, self.outputs, traced_lengths, self.batch)
        self.same = same_program(traced, traced_lengths)
        return write_bundle(
            traced,
            input_specs(self.facts),
            self.outputs,
            graphs,
            self.batch,
            self.work / "model.pt",
            self.general,
        )

    def plan(self) -> ProbePlan:
        return ProbePlan(
            facts=self.facts,
            lengths=self.lengths,
            whole=self.lengths if self.whole is None else self.whole,
            batch=self.batch,
            tolerance=TOLERANCES[self.dtype],
            general=self.general,
            samples=self.samples,
        )

    def reference(self) -> Reference:
        return compute_reference(self.folder, self.options, self.plan(), self.work / "reference")

    def validate(self, bundle: TracedFile, *, bits: bool = True) -> ValidationReport:
        """Run the gate; without ``bits`` the weights' digests pass, whatever they are."""
        reference = self.reference()
        if not bits:
            reference = blind_to_weights(bundle.path, reference)
        return validate_bundle(bundle.path, reference)


def blind_to_weights(bundle: Path, reference: Reference) -> Reference:
    """Return a reference that takes the bundle's weights for its own: the probes stand alone."""
    held = digests(list_tensors(torch.jit.load(bundle)))
    named = {name.removeprefix("model."): digest for name, digest in held.items()}
    return dataclasses.replace(reference, weights=named)
