"""Run a device's programs through the gate: a step that neuronx and neuron share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.child_main import report_progress
from tasks.errors import BackendUnavailableError, TraceError
from tasks.model.feeds import input_specs
from tasks.validate.gate import judge
from tasks.validate.generation import judge_generation
from tasks.validate.generation_reference import GenerationReference
from tasks.validate.reference import Reference
from tasks.validate.verdict import ValidationReport
from tracefleet import errors
from tracefleet.generation_types import GenerationVerdict
from tracefleet.manifest_types import Toolchain
from tracefleet.reader import neuron
from tracefleet.reader.padded import write_search
from tracefleet.reader.programs import compose, join
from tracefleet.verdict_types import Tolerance

if TYPE_CHECKING:
    import torch


def validate_programs(
    programs: Mapping[int, Path],
    reference: Reference,
    compiled_by: Toolchain,
    target: str,
    *,
    backend: str,
) -> ValidationReport:
    """Run the whole gate on saved programs, on this host's device.

    Args:
        programs: Archive of each standard length, as it will be published.
        reference: Eager's outputs for every probe of its plan.
        compiled_by: Versions that compiled them.
        target: Instance family that they were compiled for.
        backend: ``neuronx`` or ``neuron``.

    Raises:
        BackendUnavailableError: This host's packages or device don't fit.
        TraceError: A program does not load.
        NumericsMismatchError: A probe failed, or the gate missed a negative control.
    """
    loaded = _load(programs, compiled_by, target, backend)
    specs = input_specs(reference.plan.facts)
    return judge(compose(loaded, specs, reference.outputs, reference.plan.batch), reference)


def validate_search(
    programs: Mapping[str, Mapping[int, Path]],
    reference: GenerationReference,
    tolerance: Tolerance,
    batch: int,
    compiled_by: Toolchain,
    target: str,
    *,
    backend: str,
) -> GenerationVerdict:
    """Run the gate of generation on saved programs, on this host's device.

    Args:
        programs: Archive of each standard length for each part of a search.
        reference: Eager's logits and answers.
        tolerance: Bound on a step's error.
        batch: Rows in one call of the encoder.
        compiled_by: Versions that compiled them.
        target: Instance family that they were compiled for.
        backend: ``neuronx`` or ``neuron``.

    Raises:
        BackendUnavailableError: This host's packages or device don't fit.
        TraceError: A program does not load.
        NumericsMismatchError: A check failed.
        GenerationError: Too many rows are near ties, or a planted fault was not seen.
    """
    loaded = {part: _load(files, compiled_by, target, backend) for part, files in programs.items()}
    search = write_search(loaded, reference.generation, batch)
    return judge_generation(join(search.modules, search.sources), reference, tolerance)


def _load(
    programs: Mapping[int, Path], compiled_by: Toolchain, target: str, backend: str
) -> dict[int, torch.jit.ScriptModule]:
    report_progress("loading the programs onto the device")
    try:
        neuron.check_host(backend, compiled_by, target)
        return {length: neuron.load(backend, str(path)) for length, path in programs.items()}
    except errors.BackendUnavailableError as error:
        raise BackendUnavailableError(str(error)) from error
    except errors.ArtifactError as error:
        raise TraceError(str(error), lasting=False) from error
