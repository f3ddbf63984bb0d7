"""The eager reference: what the untouched checkpoint computes for every probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.child_main import report_progress
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple, describe_outputs
from tasks.model.weights import compare_with_files, count_bytes, digests, list_tensors
from tasks.validate.devices import use_full_precision
from tasks.validate.golden import write_golden
from tasks.validate.left_out import find_required
from tasks.validate.plan import ProbePlan, first_probe
from tasks.validate.reference import Reference, compare_outputs, load_outputs
from tasks.validate.reference_pass import ReferencePass
from tasks.validate.reference_pass_int8 import QuantisedReferencePass
from tasks.validate.self_check import check_itself
from tracefleet.manifest_types import INT8

if TYPE_CHECKING:
    from tasks.validate.reference import Outputs


def compute_reference(
    checkpoint: Path, options: LoadOptions, plan: ProbePlan, folder: Path
) -> Reference:
    """Compute and store the eager outputs of every probe; the whole job of one child.

    Raises:
        UnsafeCheckpointError: A loaded weight differs from the file's.
        UnsupportedCheckpointError: Eager disagrees with itself, so that nothing can be compared
            with it, or an output never moves whatever the inputs are.
        NumericsMismatchError: The quantised model is too far from the float32 one.
    """
    import torch

    report_progress("loading the eager reference")
    model = load_eager(checkpoint, options)
    compare_with_files(getattr(model, "inner", model), checkpoint)
    weights = digests(list_tensors(model))
    outputs = describe_outputs(model, plan.facts)
    quantised, accuracy = options.dtype == INT8, None
    eager = ReferencePass(model, plan, outputs, folder / "float32" if quantised else folder)
    with torch.no_grad():
        on_cpu = _run_on_cpu(eager, plan)
        use_full_precision(plan.device)
        model.to(plan.device)
        eager.run()
        check_itself(eager)
        required = find_required(eager)
        corrupted = eager.store_corrupted() if plan.opaque else None
        if quantised:
            eager = QuantisedReferencePass(eager, folder)
            accuracy = eager.run_quantised()
            now = digests(list_tensors(model))
            # Calls must not change a weight: what is not quantised keeps its first digest.
            weights = {name: weights.get(name, digest) for name, digest in now.items()}
    extra = accuracy.max_rel_error if accuracy else 0.0
    golden = write_golden(eager, weight_bytes=count_bytes(model), extra=extra)
    return Reference(
        plan=plan,
        outputs=outputs,
        weights=weights,
        folder=folder,
        vacuous=frozenset(eager.vacuous),
        latency=eager.latency,
        scales=eager.scales,
        padded=frozenset(eager.padded),
        refused=frozenset(eager.refused),
        accuracy=accuracy,
        corrupted=corrupted,
        distance=_find_distance(eager, on_cpu),
        required=required,
        golden=golden,
        moved_by_both=frozenset(eager.moved_by_both),
    )


def _run_on_cpu(eager: ReferencePass, plan: ProbePlan) -> Outputs | None:
    """Return the first probe's outputs on the CPU if the gate runs on another device."""
    if plan.device == "cpu":
        return None
    return call_tuple(eager.model, first_probe(plan).eager_feed, eager.specs)


def _find_distance(eager: ReferencePass, on_cpu: Outputs | None) -> float:
    """Return how far eager on its device is from eager on the CPU, for the first probe."""
    if on_cpu is None:
        return 0.0
    plan, there = eager.plan, load_outputs(eager.path(0))
    feed = first_probe(plan).eager_feed
    found = compare_outputs(eager.specs, plan.tolerance, there, on_cpu, feed, eager.scales)
    return max(difference.max_rel for difference in found)
