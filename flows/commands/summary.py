"""The table that a person sees after a conversion."""

from __future__ import annotations

from flows.commands.use import list_uses
from flows.engine.record import Conversion
from tasks.publish.point import Publication
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import JIT
from tracefleet.verdict_types import RANDOM, Validation

_HEADER = ("length", "max abs error", "relative", "verdict", "eager ms", "traced ms")


def summarise(result: Conversion) -> str:
    """Return what was published, where, and how good it is, for a terminal."""
    manifest = result.manifest
    size = sum(file.size for file in manifest.published)
    lines = [
        f"{_status(result)}: {manifest.source}  {manifest.variant.label}",
        *_verdict(result),
        f"bytes    {size:,} in {len(manifest.published)} files ({_archives(manifest)})",
        *_accuracy(manifest.validation),
        *_samples(result),
        f"key      {manifest.key}",
        f"at       {result.publication.url}",
        f"channel  {_channel(result.publication)}",
    ]
    lines += _name(result.publication)
    if result.report_url:
        lines.append(f"report   {result.report_url}")
    return "\n".join([*lines, *_uses(result)])


def _name(publication: Publication) -> list[str]:
    """Say what became of the name that it was to be published under."""
    name, named = publication.name, publication.named
    if name is None:
        return []
    if named is None:
        return [f"name     {name}: left as it is, like the channel"]
    told = f"name     {name} #{named.number}"
    if named.moved_from is not None:
        return [f"{told}, which stood for {named.moved_from} until now"]
    if named.points:
        return [told]
    did = "withdrawn" if named.withdrawal else "rolled back"
    return [f"{told}, {did} from this conversion and left so"]


def _uses(result: Conversion) -> list[str]:
    titles = {"python": "Python", "cpp": "C++", "triton": "Triton"}
    uses = list_uses(result).items()
    return [f"{titles[kind]:<8} {line}" for kind, line in uses]


def _status(result: Conversion) -> str:
    if not result.validated:
        return "compiled before" if result.fresh else "compiled, and not validated"
    if result.publication.withdrawal is not None:
        return "withdrawn, and left so"
    return "already published" if result.fresh else "published and validated"


def _verdict(result: Conversion) -> list[str]:
    validation = result.manifest.validation
    if not result.validated:
        return [
            f"verdict  {validation.verdict}: no device here could run it. On a host that has one:",
            f"         tracefleet validate {result.publication.url}",
        ]
    caught = ", ".join(validation.negative_controls)
    return [*_table([_HEADER, *_rows(result)]), f"caught   planted faults: {caught}"]


def _archives(manifest: Manifest) -> str:
    size = sum(archive.size for archive in manifest.archives)
    if manifest.variant.backend == JIT:
        return f"bundle {size:,}"
    return f"{len(manifest.archives)} programs {size:,}"


def _samples(result: Conversion) -> list[str]:
    """Say what was proved on real inputs, and why nothing was."""
    validation = result.manifest.validation
    if validation.samples is not None:
        return [f"samples  {validation.samples.size:,} bytes: run them with `tracefleet check`"]
    if validation.without_samples is not None:
        return [f"samples  none, random inputs alone: {validation.without_samples}"]
    return []


def _accuracy(validation: Validation) -> list[str]:
    found = validation.accuracy
    if found is None:
        return []
    figures = (
        f"relative error up to {found.max_rel_error:.2e}, cosine at least {found.min_cosine:.4f}, "
        f"top-1 agreement {found.top1_agreement:.3f}"
    )
    if found.rank_correlation is not None:
        figures += f", rank correlation of similarities {found.rank_correlation:.4f}"
    inputs = found.inputs or RANDOM
    return [f"accuracy quantised against float32 on {inputs} inputs: {figures}"]


def _channel(publication: Publication) -> str:
    current = f"{publication.channel} #{publication.number}"
    if publication.withdrawal is not None:
        number, reason = publication.withdrawal
        return (
            f"{current}, this conversion was withdrawn: {reason}. Readers refuse it; if it is "
            f"right all the same, `tracefleet reinstate --number {number}` brings it back"
        )
    if publication.rolled_back_number is None:
        return current
    return (
        f"{current}, rolled back from this conversion: `tracefleet rollback --number "
        f"{publication.rolled_back_number}` brings it back"
    )


def _rows(result: Conversion) -> list[tuple[str, ...]]:
    report = result.report
    eager = report.latency_eager if report else {}
    traced = report.latency_traced if report else {}
    rows: list[tuple[str, ...]] = []
    for one in result.manifest.validation.lengths:
        verdict = "passed" if one.passed else "FAILED"
        errors = (f"{one.max_abs_error:.2e}", f"{one.max_rel_error:.2e}")
        times = (_milliseconds(eager, one.length), _milliseconds(traced, one.length))
        rows.append((str(one.length), *errors, verdict, *times))
    return rows


def _milliseconds(latency: dict[int, float], length: int) -> str:
    return f"{latency[length]:.1f}" if length in latency else "-"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]
