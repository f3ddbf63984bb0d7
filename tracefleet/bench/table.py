"""A comparison as a table for the terminal, with its legend."""

from __future__ import annotations

from collections.abc import Iterator

from tracefleet.bench.cases import PADDED_ROWS
from tracefleet.bench.results import Figure, Report
from tracefleet.printing import format_count

#: A peer whose results differ by more is marked: its speed alone says nothing.
_ALIKE = 0.01
_MARK = "*"
#: Load of a core, before anything was measured, from which figures are not to be trusted.
_BUSY = 0.25


def render_table(report: Report) -> str:
    """Return the whole page: what was measured, a line for each case, the legend."""
    parts = [_describe(report), _align(_list_rows(report)), _explain(report)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _describe(report: Report) -> Iterator[str]:
    yield f"{report.source}, {report.task}"
    cores = format_count(report.machine.cores, "core")
    yield f"{report.machine.cpu}, {cores}; inputs: {report.inputs}"
    rounds = format_count(report.rounds, "round")
    yield (
        f"rows a second: median of {rounds} (slowest-fastest), and how many times that of "
        f"{report.reference}"
    )


def _list_rows(report: Report) -> Iterator[list[str]]:
    yield ["threads", "length", "rows", *(_mark(report, one.name) for one in report.peers)]
    for (threads, length, rows), figures in report.cases.items():
        tokens = "mixed" if length is None else str(length)
        cells = [_show(report, figures[one.name]) for one in report.peers]
        yield [str(threads), tokens, str(rows), *cells]


def _show(report: Report, figure: Figure) -> str:
    if not figure.rates:
        return "failed"
    slowest, fastest = _shorten(min(figure.rates)), _shorten(max(figure.rates))
    text = f"{_shorten(figure.median)} ({slowest}-{fastest})"
    ratio = report.ratio(figure)
    if figure.peer == report.reference or ratio is None:
        return text
    return f"{text} ×{ratio:.2f}"


def _shorten(rate: float) -> str:
    """Return a rate with three digits or more."""
    decimals = 0 if rate >= 100 else 1
    return f"{rate:.{decimals if rate >= 10 else 2}f}"


def _align(rows: Iterator[list[str]]) -> Iterator[str]:
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _differs(report: Report, name: str) -> bool:
    difference = report.difference(name)
    return difference is not None and difference > _ALIKE


def _mark(report: Report, name: str) -> str:
    return f"{name}{_MARK}" if _differs(report, name) else name


def _explain(report: Report) -> Iterator[str]:
    """Yield the legend: how far each peer's results are off, what failed, who is missing."""
    mixed = next((rows for _, length, rows in report.cases if length is None), None)
    if mixed is not None:
        yield (
            f"mixed: {mixed} texts of unequal lengths, by tracefleet in one call, by the others in "
            f"padded batches of {PADDED_ROWS} in the same order"
        )
    yield "largest relative difference of the outputs, first and last row of every case:"
    names = [_mark(report, one.name) for one in report.peers]
    width = max(map(len, names))
    for name, peer in zip(names, report.peers, strict=True):
        yield f"  {name:<{width}}  {_show_difference(report, peer.name):<13}  {peer.details}"
    if any(_differs(report, one.name) for one in report.peers):
        yield f"  {_MARK} more than {_ALIKE:.0%} off: less accurate, or another computation"
    yield from _list_failures(report)
    for absent in report.absent:
        yield f"not measured: {absent.name}: {absent.reason}"
    if report.unmixed:
        yield f"not measured: mixed lengths: {report.unmixed}"
    machine = report.machine
    if machine.load is not None and machine.load > machine.cores * _BUSY:
        cores = format_count(machine.cores, "core")
        yield (
            f"the machine was busy before this began (load {machine.load:.1f} on {cores}): do not "
            "trust these figures, least of all with several threads"
        )


def _show_difference(report: Report, name: str) -> str:
    if name == report.reference:
        return "the reference"
    difference = report.difference(name)
    return "not compared" if difference is None else f"{difference:.1e}"


def _list_failures(report: Report) -> Iterator[str]:
    for figure in report.figures:
        if figure.failed is not None:
            length = "mixed" if figure.length is None else figure.length
            threads, rows = format_count(figure.threads, "thread"), format_count(figure.rows, "row")
            yield f"failed: {figure.peer}: {threads}, length {length}, {rows}: {figure.failed}"
