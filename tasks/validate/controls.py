"""Negative controls: faults that the gate's own probes have to catch, else it is blind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tasks.model.quantise import corrupting_layer, find_packed_layers
from tasks.validate.artifact import Artifact
from tasks.validate.difference import all_passed
from tasks.validate.faults import FACTOR, corrupting_weight, dense_weights, sample_evenly
from tasks.validate.plan import first_probe, plan_probes
from tasks.validate.probes import Probe
from tasks.validate.reference import as_run


def run_controls(artifact: Artifact) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Corrupt a weight and ignore the mask.

    Returns:
        Names of the faults that were caught, and a sentence for each that was not.
    """
    caught, missed = [], []
    if catches_wrong_weight(artifact):
        caught.append("wrong-weight")
    else:
        missed.append(
            "negative control: expected a corrupted weight to fail a probe, got a pass; "
            "the gate can't see this model's faults"
        )
    masked = _find_masked_probe(artifact)
    if masked is not None:
        index, probe = masked
        if _catches_dropped_mask(artifact, index, probe):
            caught.append("dropped-mask")
        else:
            missed.append(
                f"negative control: expected {probe.name} without its mask to fail, got a pass"
            )
    return tuple(caught), tuple(missed)


def catches_wrong_weight(artifact: Artifact) -> bool:
    """Corrupt one weight at a time; the first probe must fail for one of them."""
    probe = first_probe(artifact.plan)
    if artifact.reference.corrupted is not None:
        return _differs_from_corrupted(artifact, artifact.reference.corrupted, probe)
    # One weight alone may be without effect on this input: an expert's that was not hit.
    for corruption in _corruptions(artifact):
        with corruption:
            found = artifact.compare(0, probe, probe.feed)
        if not all_passed(found):
            return True
    return False


def _corruptions(artifact: Artifact) -> Iterator[AbstractContextManager[None]]:
    """Yield corruptions of a few weights that every token goes through, all over the model."""
    quantised = list(find_packed_layers(artifact.module).values())
    for layer in sample_evenly(quantised):
        yield corrupting_layer(layer, FACTOR)
    if not quantised:
        yield from map(corrupting_weight, dense_weights(artifact.module))


def _differs_from_corrupted(artifact: Artifact, corrupted: Path, probe: Probe) -> bool:
    """Compare with an eager model that has a wrong weight, as the artifact's are out of reach."""
    import torch

    try:
        outputs = artifact.call(probe, probe.feed)
    except (torch.jit.Error, RuntimeError):
        return False  # every probe has failed already
    found = artifact.compare_with(corrupted, probe, outputs)
    return not all_passed(found)


def _find_masked_probe(artifact: Artifact) -> tuple[int, Probe] | None:
    """Return the first probe whose mask moves the model, with its index."""
    reference = artifact.reference
    for index, probe in enumerate(plan_probes(artifact.plan)):
        # A vacuous probe passes without its mask as well, and what eager refused has no reference.
        counts = probe.key not in reference.vacuous and artifact.path(index).exists()
        if counts and _changes_mask(probe):
            return index, as_run(probe, reference.padded)
    return None


def _changes_mask(probe: Probe) -> bool:
    """Tell whether a probe's control has another mask than its feed."""
    import torch

    for name, tensor in (probe.control or {}).items():
        if "mask" in name and not torch.equal(tensor, probe.feed[name]):
            return True
    return False


def _catches_dropped_mask(artifact: Artifact, index: int, probe: Probe) -> bool:
    """Call the artifact with its mask ignored; the probe must fail."""
    assert probe.control is not None
    found = artifact.compare(index, probe, probe.control)
    return not all_passed(found)
