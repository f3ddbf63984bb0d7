"""The eager reference: what the untouched checkpoint computes for every probe."""

from __future__ import annotations

from pathlib import Path

from tasks.child import say
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.outputs import describe_outputs
from tasks.model.quantise import INT8
from tasks.model.weights import compare_with_files, digests, named_tensors
from tasks.validate.probes import ProbePlan
from tasks.validate.reference import Reference
from tasks.validate.session import Session
from tasks.validate.session_int8 import QuantisedSession


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
    session = Session(model, plan, outputs, folder / "float32" if quantised else folder)
    with torch.no_grad():
        session.run()
        session.check_itself()
        spoilt = session.plant_fault() if plan.opaque else None
        if quantised:
            session = QuantisedSession(session, folder)
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
        spoilt=spoilt,
    )
