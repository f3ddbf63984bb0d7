"""``tracefleet bench``: from arguments to figures, read top to bottom."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tracefleet.bench.cases import Case, Inputs, explain_unmixed, make_cases, prepare_inputs
from tracefleet.bench.conversions import choose_conversions, choose_lengths
from tracefleet.bench.machine import describe_machine
from tracefleet.bench.measure import Timing, measure
from tracefleet.bench.peers import Peer, gather_peers
from tracefleet.bench.plot import save_plot
from tracefleet.bench.request import STDOUT, Request, read_request
from tracefleet.bench.results import Figure, Report, describe
from tracefleet.bench.table import render_table
from tracefleet.printing import format_count, print_json
from tracefleet.store import open_existing

DESCRIPTION = (
    "Compare conversions with transformers and with ONNX Runtime on this machine. The peers take "
    "turns in one process; every shape is called before it is timed, and the outputs of its first "
    "and last row are compared with those of transformers. A peer that can't take part is named "
    "with its reason. The backend is jit, on the CPU."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``bench`` takes, beside STORE and SOURCE."""
    add = parser.add_argument
    add("--task", help="only this task, such as fill-mask")
    add("--backend", help="jit, which is also the default: nothing else is measured")
    add("--dtype", metavar="D,…", help="only these dtypes (default: every one published)")
    add("--batch", type=int, help="only conversions traced at this many rows")
    add("--channel", default="latest", help="this channel (default: latest)")
    add(
        "--against",
        metavar="P,…",
        help="peers that have to take part: transformers, onnx (default: those that can)",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="the checkpoint, where the source is no local folder and not in the hub's cache",
    )
    add(
        "--lengths",
        metavar="N,…",
        help="tokens of a row (default: up to three of the standard lengths)",
    )
    add("--batches", default="1,8,32", metavar="N,…", help="rows of a call (default: 1,8,32)")
    add(
        "--threads",
        metavar="N,…",
        help="numbers of threads, up to the cores (default: 1 and all cores)",
    )
    add("--rounds", default="5", metavar="N", help="turns of each peer in each case (default: 5)")
    add(
        "--texts",
        type=Path,
        metavar="FILE",
        help="texts to measure with, one a line (default: docstrings of Python's library)",
    )
    add(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="write all figures as one JSON document; without FILE print it instead of the table",
    )
    add("--plot", type=Path, metavar="FILE", help="draw the ratios: a .svg or .png")


def bench_command(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write what was asked for."""
    machine = describe_machine()
    request = read_request(arguments)
    store = open_existing(arguments.store)
    conversions = choose_conversions(
        store,
        arguments.source,
        task=arguments.task,
        dtypes=request.dtypes,
        batch=arguments.batch,
        channel=arguments.channel,
    )
    lengths = choose_lengths(conversions, request.lengths)
    inputs = prepare_inputs(store, conversions[0], request.texts)
    cases = make_cases(inputs, lengths, request.batches)
    with tempfile.TemporaryDirectory(prefix="tracefleet-bench-") as scratch:
        peers, absent = gather_peers(store, conversions, inputs, request, Path(scratch))
        figures = _measure(peers, cases, inputs, request)
    manifest = inputs.manifest
    report = Report(
        source=manifest.source,
        commit=manifest.commit,
        task=manifest.variant.task,
        inputs=inputs.described,
        unmixed=explain_unmixed(inputs),
        rounds=request.rounds,
        machine=machine,
        peers=tuple(peer.facts for peer in peers),
        absent=tuple(absent),
        figures=tuple(figures),
    )
    _publish(report, request)
    return int(not any(figure.rates for figure in figures))


def _measure(
    peers: Sequence[Peer], cases: Sequence[Case], inputs: Inputs, request: Request
) -> list[Figure]:
    """Measure, and tell on standard error how far it is."""
    figures: list[Figure] = []
    total = len(cases) * len(request.threads)
    _note(f"measuring {', '.join(peer.name for peer in peers)}")
    timing = Timing(rounds=request.rounds)
    measured = measure(peers, cases, request.threads, inputs.manifest.outputs, timing)
    for number, found in enumerate(measured, 1):
        one = found[0]
        length = "mixed lengths" if one.length is None else f"length {one.length}"
        threads, rows = format_count(one.threads, "thread"), format_count(one.rows, "row")
        _note(f"{number} of {total}: {threads}, {length}, {rows}")
        figures += found
    return figures


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _publish(report: Report, request: Request) -> None:
    """Print the table or the document, and write the files that were asked for."""
    described = describe(report)
    if request.json == STDOUT:
        print_json(described)
    else:
        print(render_table(report))
    if request.json not in (None, STDOUT):
        text = json.dumps(described, indent=2, ensure_ascii=False)
        Path(request.json).write_text(f"{text}\n", "utf-8")
    if request.plot is not None:
        save_plot(report, request.plot)
