"""The report's sentences and figures, the same on the page and in the markdown summary."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tasks.report.conversion.facts import ReportFacts
from tasks.validate.difference import least_movement
from tasks.validate.verdict import MEASURED, TOLERANCES, ProbeResult, ValidationReport
from tracefleet.manifest_types import JIT, General, InputSpec, OutputSpec
from tracefleet.verdict_types import DIFFERS, HOLDS, RAISES, RANDOM, UNTRIED

GUARDED = "The bundle guards its graphs; this is what they would do without the guard."
GENERAL = "Proved: calls run as they are, unpadded; one run takes"
GENERALITY = {
    HOLDS: "as eager",
    DIFFERS: "silently different",
    RAISES: "an error",
    UNTRIED: "not tried",
}
BOTH_SIDES = {
    HOLDS: "the same with padding behind as well",
    DIFFERS: "another result with padding behind as well: the reader never adds any",
    UNTRIED: "unknown with padding behind as well: no mask, or nothing is padded",
}
CONTROLS = {
    "wrong-weight": "one weight matrix was corrupted, and the traced input's probe failed",
    "dropped-mask": "the attention mask was ignored, and a padded or masked probe failed",
}
#: The start of a probe's name -> what it tries.
_PROBES = {
    "traced-input": "the input that was traced",
    "fresh-": "other random ids",
    "constant-ids": "the same id everywhere",
    "repeated-ids": "two alternating ids",
    "edge-ids": "first and last of the vocabulary",
    "right-pad-": "padding behind this many tokens",
    "left-pad": "padding in front",
    "hole": "tokens masked in the middle",
    "one-token": "all tokens masked but one",
    "decoder-hole": "decoder tokens masked",
    "other-": "this argument changed",
    "general-left-pad-": "rows × tokens with padding in front, run as they are",
    "general-": "rows × tokens, run as they are",
    "batch-": "this many rows, through the dispatcher",
    "dispatch-short-encoder": "encoder shorter than decoder",
    "dispatch-short-decoder": "decoder shorter than encoder",
    "dispatch-": "this many tokens, through the dispatcher",
}
_MASKED = ("right-pad-", "left-pad", "hole", "one-token", "decoder-hole")
_ROUTED = ("dispatch-", "batch-")
_EXECUTOR = "with the default executor"


def number(value: float) -> str:
    """Return a small number as a person writes it: 0.23, 5e-7."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def figure(error: float) -> str:
    """Return an error as a person reads it."""
    if error == 0:
        return "exact"
    return number(error) if math.isfinite(error) else "no figure"


def milliseconds(time: float) -> str:
    """Return a time with the two digits that one or two calls are worth."""
    if time < 1:
        return f"{time:.2f}"
    return f"{time:.1f}" if time < 9.95 else f"{float(f'{time:.2g}'):,.0f}"


def speedup(eager: float, traced: float) -> str:
    """Return how many times as fast the bundle is, to one digit after the point."""
    return f"about {eager / traced:.1f}×"


def megabytes(peak: int | None) -> str:
    """Return a step's peak memory; a dash if it was not measured."""
    return f"{peak / 1e6:,.0f} MB" if peak else "–"


def size(count: int) -> str:
    """Return a number of bytes with its unit."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def headline(report: ValidationReport) -> str:
    """Return the verdict in a few words."""
    return "Validated." if report.passed else "Refused: nothing was published."


def proof(report: ValidationReport) -> list[str]:
    """Return what a passed gate has shown."""
    verdicts, rtol = report.lengths(), report.tolerance.rtol
    worst = max((v.max_rel_error for v in verdicts), default=0.0)
    margin = f", {rtol / worst:,.0f} times below" if 0 < 2 * worst <= rtol else ", within"
    error = f"the worst relative error is {figure(worst)}{margin} the tolerance of {number(rtol)}"
    counted = sum(verdict.probes for verdict in verdicts)
    lengths = ", ".join(str(verdict.length) for verdict in verdicts)
    plural = "s" if len(verdicts) > 1 else ""
    agreement = error if worst else "every output is exact"
    model = "untouched" if report.accuracy is None else "quantised"
    return [
        f"The saved bundle agrees with the {model} model on {counted} probes at the standard "
        f"length{plural} {lengths}: {agreement}.",
        f"{weights(report)}.",
        f"Planted faults were caught: {', '.join(report.negative_controls) or 'none'}.",
    ]


def weights(report: ValidationReport) -> str:
    """Say what the bundle's weights were compared with."""
    if not report.weights_matched:
        return (
            "The programs' weights can't be read: eager's equal the checkpoint's file bit for bit, "
            "and the programs' outputs are eager's"
        )
    origin = "checkpoint's file" if report.accuracy is None else "quantised model's"
    return f"{report.weights_matched} tensors equal the {origin} bit for bit"


def failures(report: ValidationReport) -> list[str]:
    """Return what failed: one sentence for each length, then the gate's other failures.

    The gate's own list has a sentence for each probe; the page shows those in its tables.
    """
    failed = [probe for probe in report.probes if not probe.difference.passed]
    shown = tuple(f"{probe.name} at length {probe.length}: " for probe in failed)
    by_length = [_failed_at(report, v.length) for v in report.lengths() if not v.passed]
    rest = [one for one in report.failures if not (shown and one.startswith(shown))]
    repeated = [one for one in rest if _EXECUTOR in one]
    if repeated:
        where, error = repeated[0].partition(", ")[0], repeated[0].rpartition(": ")[2]
        calls = f"{len(repeated)} of the first calls of {where}"
        summary = f"As C++ and Triton run it (default executor), {calls} fail too: {error}."
        rest = [summary, *(one for one in rest if _EXECUTOR not in one)]
    return by_length + rest


def _failed_at(report: ValidationReport, length: int) -> str:
    probes = [probe for probe in report.probes if probe.length == length]
    failed = [probe for probe in probes if not probe.difference.passed]
    worst = max(failed, key=lambda probe: probe.difference.max_rel)
    found = worst.difference
    got = found.reason or (
        f"relative error {figure(found.max_rel)}, "
        f"{found.max_rel / report.tolerance.rtol:,.0f} times the tolerance"
    )
    return (
        f"Length {length}: {len(failed)} of {len(probes)} probes fail. Worst: {worst.name}, "
        f"output {worst.output}: {got}. {_hint(probes, failed)}"
    ).rstrip()


def _hint(probes: list[ProbeResult], failed: list[ProbeResult]) -> str:
    """Say where to look, if the pattern of failures shows it."""
    names = {probe.name for probe in failed}
    if not any(probe.name == "traced-input" for probe in probes):
        return ""  # a length with few probes has no pattern
    if "traced-input" in names:
        return "Even the input that was traced comes out wrong: a weight or the program differs."
    if all(name.startswith(_MASKED) for name in names):
        return "Only masked and padded inputs fail: the graph does not use its mask as eager does."
    if all(name.startswith(_ROUTED) for name in names):
        return "Only calls through the dispatcher fail: it routes, pads, slices and splits rows."
    return "The traced input agrees: the graph has recorded what belongs to that input alone."


def warnings(facts: ReportFacts, report: ValidationReport) -> Iterator[str]:
    """Yield what a reader should know although the gate passed."""
    if "accept_tolerance_risk" in facts.options:
        yield "The tolerance is above its ceiling, as the request accepted: faults may pass."
    silent = [v.length for v in report.lengths() if not v.probes]
    if silent:
        yield f"No probe counts at length {', '.join(map(str, silent))}."
    if not facts.weight_bytes and facts.variant.backend == JIT:
        yield "The bundle holds no weights."


def tolerance_source(facts: ReportFacts, report: ValidationReport) -> str:
    """Say where the tolerance comes from, and whether the request overrode it."""
    dtype = facts.variant.dtype
    own = f"the pipeline's own for {dtype}"
    if facts.variant.backend != JIT:
        own += f" on {facts.variant.backend} with its cast (docs/gate.md)"
    elif dtype in MEASURED:
        worst, conversions = MEASURED[dtype]
        own += f" ({conversions} correct conversions were off by at most {number(worst)})"
    if "rtol" not in facts.options:
        return f"It is {own}; the request did not override it."
    if facts.variant.backend == JIT:
        own = f"{number(TOLERANCES[dtype].rtol)}, {own}"
    return f"Overridden by the request: {number(report.tolerance.rtol)} and not {own}."


def vacuous(report: ValidationReport) -> str:
    """Say which probes prove nothing, and why."""
    names = dict.fromkeys(probe.name for probe in report.probes if probe.vacuous)
    bound = number(least_movement(report.tolerance))
    return (
        f"{', '.join(names)} prove nothing here and do not count: they change eager's own output "
        f"by less than a relative {bound}, so that a faulty graph would agree as well. (A causal "
        "model never looks at padding behind its tokens.) They were compared all the same."
    )


def accuracy(report: ValidationReport) -> str:
    """Say what quantisation costs; nothing where nothing is quantised."""
    found = report.accuracy
    if found is None:
        return ""
    rank = found.rank_correlation
    order = "" if rank is None else f", rank correlation of pairs' similarities {rank:.4f}"
    return (
        f"What quantisation costs, against float32, on {found.inputs or RANDOM} inputs: relative "
        f"error up to {number(found.max_rel_error)}, cosine at least {found.min_cosine:.4f}, the "
        f"same top-1 in {found.top1_agreement:.1%} of positions{order}. The errors below "
        "are the saved bundle's, against the quantised model."
    )


def graphs(facts: ReportFacts, report: ValidationReport) -> str:
    """Say how many graphs there are, and why not every length has every probe."""
    probes = "Every probe ran at the shortest length and the decisive ones at the others"
    if report.general is not None:
        return f"One graph serves every length and number of rows. {probes}."
    if len(report.lengths()) < 2:
        return "One length, one graph, every probe."
    if facts.shared:
        return f"One graph serves every length. {probes}."
    if facts.same_program:
        return f"One graph for each length, the same program but for literal lengths. {probes}."
    return "One graph for each length; their programs differ, so that every probe ran at each."


def generality(report: ValidationReport) -> str:
    """Say what was proved or measured of the graphs at other shapes, and what the words mean."""
    if report.general is not None:
        return f"{GENERAL} {_limit(report.general)}."
    found = {word for v in report.lengths() for word in (v.other_lengths, v.other_batches)}
    untried = "Not tried: eager itself refuses such shapes, or there are none."
    return f"{GUARDED} {untried}" if UNTRIED in found else GUARDED


def _limit(general: General) -> str:
    rows = f"at most {general.rows} rows"
    return rows if general.tokens is None else f"{rows} or {general.tokens:,} tokens"


def bundle_size(facts: ReportFacts) -> str:
    """Return the bundle's size beside its weights'."""
    if not facts.weight_bytes:
        return size(facts.bundle_bytes)
    ratio = facts.bundle_bytes / facts.weight_bytes
    return f"{size(facts.bundle_bytes)}, {ratio:.3f} times its weights ({size(facts.weight_bytes)})"


def tries(probe: str) -> str:
    """Return what a probe tries; nothing if its name is new here."""
    return next((text for start, text in _PROBES.items() if probe.startswith(start)), "")


def padding(spec: InputSpec) -> str:
    """Say what the dispatcher does about an input that is too short, or left out."""
    if spec.length_axis is None:
        padded = "taken as it is"
    elif spec.pad_value is None:
        padded = "never padded"
    else:
        padded = f"padded with {spec.pad_value}"
    left_out = "has to be given" if spec.fill_value is None else f"{spec.fill_value} everywhere"
    return f"{padded}; {left_out}"


def shape(spec: InputSpec | OutputSpec) -> str:
    """Return the axes of a tensor."""
    return " × ".join(spec.axes) or "scalar"


def toolchain(facts: ReportFacts) -> str:
    """Return the versions that shaped the bytes."""
    used = facts.toolchain
    compiler = f", compiler {used.compiler}" if used.compiler else ""
    return f"torch {used.torch}, transformers {used.transformers}, Python {used.python}{compiler}"
