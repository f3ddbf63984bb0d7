"""``tracefleet check``: run a conversion's golden samples here, and print what became of them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from tracefleet.check import OTHER, SAME, CheckReport, check
from tracefleet.errors import (
    ArtifactError,
    BackendUnavailableError,
    NoSamplesError,
    NoSuchVariantError,
    WithdrawnError,
)
from tracefleet.printing import format_count, print_json
from tracefleet.published import Selection, find, load_manifest, resolve
from tracefleet.reader.open import open_selected
from tracefleet.selecting import read_filters, select_one
from tracefleet.store import ReadableStore, open_existing
from tracefleet.triton.check import check_server

DESCRIPTION = """\
Run a conversion's golden samples on this machine, and compare with what eager computed where it was
proved. Without SOURCE: every conversion of the channel. verify compares digests, check runs the
golden samples, validate (of the pipeline) runs the whole gate. Needs no transformers.
"""
#: What keeps one of several from being checked, and is no fault of its bytes.
_NOT_HERE = (NoSamplesError, BackendUnavailableError, WithdrawnError)
_HEADER = ("sample", "output", "error", "allowed", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that no other command has."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--device", help="device to run on, such as cuda (default: the CPU)")
    where.add_argument(
        "--triton", metavar="URL", help="check what this server serves, such as http://host:8000"
    )
    parser.add_argument(
        "--triton-model",
        default="model",
        metavar="NAME",
        help="name of the model on the server (default: model)",
    )


def check_command(arguments: argparse.Namespace) -> int:
    """Check one conversion, or every one that fits, here or on a server; 1 if anything differs."""
    if arguments.source is not None:
        store, selection = select_one(arguments)
        report, place = _run(arguments, store, selection)
        if arguments.json:
            print_json(_describe(report))
        else:
            _print_report(store, selection, report, place)
        return 0 if report.ok else 1
    if arguments.triton is not None:
        raise ValueError("--triton: expected a SOURCE, which the server serves, got none")
    return _check_all(arguments)


def _check_all(arguments: argparse.Namespace) -> int:
    """Check every conversion that fits; those that can't be checked here are told."""
    store = open_existing(arguments.store)
    found: list[dict[str, Any]] = []
    for published in find(store, None, **read_filters(arguments)):
        row = {"slug": published.slug, "variant": published.variant}
        try:
            selection = resolve(store, published)
            report, place = _run(arguments, store, selection)
        except _NOT_HERE as reason:
            found.append({**row, "ok": None, "reason": str(reason)})
            _tell(arguments, f"{published.slug}  {published.variant}: not checked: {reason}")
            continue
        except ArtifactError as error:
            found.append({**row, "ok": False, "reason": str(error)})
            print(f"error: {published.slug}  {published.variant}: {error}", file=sys.stderr)
            continue
        found.append({**row, **_describe(report)})
        if not arguments.json:
            _print_report(store, selection, report, place)
    if arguments.json:
        print_json(found)
    checked = [row["ok"] for row in found if row["ok"] is not None]
    if not checked:
        raise NoSuchVariantError(f"{store.url}: nothing that fits can be checked here")
    return 0 if all(checked) else 1


def _tell(arguments: argparse.Namespace, line: str) -> None:
    if not arguments.json:
        print(line)


def _describe(report: CheckReport) -> dict[str, Any]:
    return {"ok": report.ok, **dataclasses.asdict(report)}


def _print_report(
    store: ReadableStore, selection: Selection, report: CheckReport, place: str
) -> None:
    manifest = load_manifest(store, selection)
    print(f"{manifest.source}  {manifest.variant.label}  on {place}")
    _print_table(report)
    print(_sum_up(report))
    for line in _describe_failures(report):
        print(f"error: {line}", file=sys.stderr)


def _run(
    arguments: argparse.Namespace, store: ReadableStore, selection: Selection
) -> tuple[CheckReport, str]:
    if arguments.triton is not None:
        report = check_server(store, selection, arguments.triton, arguments.triton_model)
        return report, f"{arguments.triton}, model {arguments.triton_model}"
    model = open_selected(store, selection, device=arguments.device)
    import torch

    return check(model), f"{model.device}, torch {torch.__version__}"


def _print_table(report: CheckReport) -> None:
    rows = [_HEADER]
    for one in report.outputs:
        verdict = "same" if one.ok else "DIFFERS"
        error = "-" if one.error is None else f"{one.error:.2e}"
        rows.append((one.sample, one.output, error, f"{one.bound:.2e}", verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _sum_up(report: CheckReport) -> str:
    wrong = sum(not one.ok for one in report.outputs)
    samples = format_count(len({one.sample for one in report.outputs}), "sample")
    outputs = format_count(len(report.outputs), "output")
    verdict = f"{wrong} differ" if wrong else "all as eager computed them"
    return f"{samples}, {outputs}: {verdict}; text to ids: {_sum_up_tokenizer(report)}"


def _sum_up_tokenizer(report: CheckReport) -> str:
    tried = [result for _, result in report.tokenizer if result in (SAME, OTHER)]
    if not tried:
        return "not tried (tokenizer.json alone does not make them)"
    return f"{tried.count(SAME)} of {len(tried)} the same"


def _describe_failures(report: CheckReport) -> list[str]:
    lines = []
    for one in report.outputs:
        if not one.ok:
            got = one.reason or f"error {one.error:.3g}, expected at most {one.bound:.3g}"
            lines.append(f"{one.sample}: {one.output}: {got}")
    for sample, result in report.tokenizer:
        if result == OTHER:
            lines.append(f"{sample}: this machine's tokenizers makes other ids of its text")
    return lines
