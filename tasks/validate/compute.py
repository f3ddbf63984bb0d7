"""The eager reference: what the untouched checkpoint computes for every probe."""

from __future__ import annotations

from pathlib import Path

from tasks.child_main import report_progress
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.outputs import describe_outputs
from tasks.model.weights import compare_with_files, digests, list_tensors
from tasks.validate.plan import ProbePlan
from tasks.validate.reference import Reference
from tasks.validate.reference_pass import ReferencePass
from tasks.validate.reference_pass_int8 import QuantisedReferencePass
from tasks.validate.self_check import check_itself
from tracefleet.manifest_types import INT8


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
        eager.run()
        check_itself(eager)
        corrupted = eager.store_corrupted() if plan.opaque else None
        if quantised:
            eager = QuantisedReferencePass(eager, folder)
            accuracy = eager.run_quantised()
            now = digests(list_tensors(model))
            # Calls must not change a weight: what is not quantised keeps its first digest.
            weights = {name: weights.get(name, digest) for name, digest in now.items()}
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
    )
