"""What a report says beside the gate's own record."""

from __future__ import annotations

from dataclasses import dataclass

from tracefleet.manifest_types import InputSpec, OutputSpec, Toolchain, Variant


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the page says beside the validation.

    Attributes:
        source: where the checkpoint came from.
        commit: what it resolved to.
        variant: task, backend, dtype, batch.
        options: what else the request chose, as the manifest records it.
        inputs: positional arguments of ``forward``.
        outputs: elements of the returned tuple.
        shared: one and the same graph serves every length.
        same_program: the graphs of all lengths are one program.
        toolchain: versions.
        tied_groups: names that shared storage.
        seconds: wall time of each step.
        peak_bytes: largest resident size of each step's child.
        bundle_bytes: size of the bundle; 0 if there is none.
        weight_bytes: of that, weights.
    """

    source: str
    commit: str
    variant: Variant
    options: dict[str, str]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    shared: bool
    same_program: bool
    toolchain: Toolchain
    tied_groups: tuple[tuple[str, ...], ...]
    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    bundle_bytes: int
    weight_bytes: int
