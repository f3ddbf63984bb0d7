"""The gate of ``generate``: does the saved bundle generate what the untouched checkpoint does?

First the logits of ``prefill`` and of every step, teacher-forced, in caches of every size: ids
alone would hide an error. Then whole answers, id for id, except where eager's own choice was closer
than ten times the error of a step: such a row proves nothing, and a spare one has to. Faults that
are planted into the calls of ``step`` have to be seen, else the gate is blind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.errors import GenerationError, NumericsMismatchError, last_line
from tasks.validate.forced_steps import check_steps
from tasks.validate.generation_cases import CUT_OFF, RANDOM, RANDOM_ROWS, Case
from tasks.validate.generation_reference import GenerationReference
from tracefleet.generation_types import GenerationVerdict
from tracefleet.reader.search import cut_answer
from tracefleet.verdict_types import Tolerance

if TYPE_CHECKING:
    import torch

#: A choice of eager's that was closer than so many errors of a step is a near tie.
_NEAR = 10.0
_SHOWN = 4
_EARLY, _LIMIT = "stops early", "reaches the limit"


def validate_generation(
    bundle: Path, reference: GenerationReference, tolerance: Tolerance
) -> GenerationVerdict:
    """Run the gate of ``generate`` on a saved bundle; the whole job of one child.

    Args:
        bundle: Archive as it will be published.
        reference: Eager's logits and answers.
        tolerance: Bound on a step's error.

    Raises:
        NumericsMismatchError: A check failed.
        GenerationError: Too many rows are near ties to prove anything, or a planted fault was not
            seen.
    """
    import torch

    return judge_generation(torch.jit.load(bundle).eval(), reference, tolerance)


def judge_generation(
    module: Any, reference: GenerationReference, tolerance: Tolerance
) -> GenerationVerdict:
    """Run the gate of ``generate`` on a loaded module that has a bundle's methods.

    Raises:
        NumericsMismatchError: A check failed.
        GenerationError: Too many rows are near ties to prove anything, or a planted fault was not
            seen.
    """
    import torch
    from safetensors.torch import load_file

    report_progress("validating generation")
    held = load_file(reference.path)
    with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        steps = check_steps(module, reference, held, tolerance)
        findings = _Findings(near=_NEAR * steps.max_abs_error, failures=dict(steps.failures))
        for case in reference.cases:
            for beams in reference.beams:
                _compare(module, reference, held, case, beams, findings)
    _refuse(reference, findings, steps.missed)
    unproved = [name for name in (_EARLY, _LIMIT) if name not in findings.seen]
    return GenerationVerdict(
        max_rel_error=steps.max_rel_error,
        beams=reference.beams,
        rows=findings.rows,
        near_ties=findings.near_ties,
        unproved=(*unproved, *findings.unproved),
        faults=steps.faults,
    )


@dataclass(kw_only=True)
class _Findings:
    """What the answers showed.

    Attributes:
        near: Distance of two scores below which a choice is a near tie.
        failures: Name of each check that failed, and what it found.
        rows: Answers that were equal and prove something.
        near_ties: Answers that prove nothing.
        seen: Whether a proved answer stopped early, and whether one reached the limit.
        unproved: Cases of which no row, or too few, prove anything.
    """

    near: float
    failures: dict[str, str]
    rows: int = 0
    near_ties: int = 0
    seen: set[str] = field(default_factory=set)
    unproved: list[str] = field(default_factory=list)


def _compare(
    module: Any,
    reference: GenerationReference,
    held: dict[str, torch.Tensor],
    case: Case,
    beams: int,
    findings: _Findings,
) -> None:
    """Compare one call's answers row by row."""
    import torch

    ids, mask = held[f"{case.name}/input_ids"], held[f"{case.name}/attention_mask"]
    expected, ties = held[f"{case.name}/{beams}"], held[f"{case.name}/{beams}/ties"]
    where = _name(case.name, beams)
    try:
        got = module.generate(ids, mask, case.limit, beams)
    except RuntimeError as error:
        findings.failures[where] = f"raised: {last_line(error)}"
        return
    proved, eos = 0, reference.generation.eos
    for row, pair in enumerate(zip(got.tolist(), expected.tolist(), strict=True)):
        one, two = (cut_answer(answer, eos) for answer in pair)
        if float(ties[row]) < findings.near:
            findings.near_ties += 1
        elif one != two:
            findings.failures[where] = f"row {row}: expected {two[:12]}, got {one[:12]}"
        else:
            findings.rows += 1
            findings.seen.add(_EARLY if len(one) <= case.limit else _LIMIT)
            shown = case.rows is None or row in case.rows
            proved += shown and len(one) > case.longer
    if bool((ties >= findings.near).all()) and not torch.equal(got, expected):
        findings.failures[where] = f"expected {expected[:, -3:].tolist()} at the ends"
    if proved < case.needed:
        findings.unproved.append(where)


def _refuse(reference: GenerationReference, findings: _Findings, missed: tuple[str, ...]) -> None:
    """Refuse what failed, and what proves too little."""
    if findings.failures:
        shown = [f"{name} ({found})" for name, found in findings.failures.items()][:_SHOWN]
        raise NumericsMismatchError(
            "generate: expected the checkpoint's own logits and ids, got others in these checks: "
            f"{'; '.join(shown)}. Nothing was published. Ask for generation 'none' "
            "(--generation none) to publish its one forward alone."
        )
    if missed:
        raise GenerationError(
            f"generate: expected planted faults to be seen, got none of {', '.join(missed)} within "
            "this tolerance: nothing shows that its answers are right. Convert with float32, or "
            "without a cast, to generate."
        )
    for beams in reference.beams:
        if {_name(RANDOM, beams), _name(CUT_OFF, beams)} <= set(findings.unproved):
            raise GenerationError(
                f"generate: expected {RANDOM_ROWS} random rows whose choices are clear, got too "
                "few: the others are near ties, which prove nothing."
            )


def _name(case: str, beams: int) -> str:
    return f"{case} with {beams} beam(s)"
