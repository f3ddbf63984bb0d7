"""``tracefleet show``: the facts of one conversion, for people."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from tracefleet.devices import find_verdicts
from tracefleet.errors import StoreError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import InputSpec, OutputSpec
from tracefleet.printing import format_size, print_json
from tracefleet.published import Selection, load_manifest
from tracefleet.reader.left_padding import describe_left_padding
from tracefleet.selecting import describe_row, select_one
from tracefleet.store import ReadableStore
from tracefleet.verdict_types import VALIDATED


def show_command(arguments: argparse.Namespace) -> int:
    """Print the checked manifest of one conversion, and whether it was withdrawn."""
    store, selection = select_one(arguments)
    manifest = load_manifest(store, selection, allow_withdrawn=True)
    if arguments.json:
        reason = selection.entry.withdrawn
        print_json(dataclasses.asdict(manifest) | ({"withdrawn": reason} if reason else {}))
        return 0
    for name, value in _list_facts(store, selection, manifest).items():
        if value is not None:
            print(f"{name:<10} {value}")
    for length in manifest.validation.lengths:
        verdict = "passed" if length.passed else "FAILED"
        measured = f"max abs error {length.max_abs_error:.2e}, {length.probes} probes, {verdict}"
        print(f"length {length.length:<4}{measured}")
    for file in manifest.published:
        print(f"file       {file.path} {file.size} bytes sha256 {file.sha256}")
    return 0


def _list_facts(store: ReadableStore, selection: Selection, manifest: Manifest) -> dict[str, Any]:
    tolerance = manifest.validation.tolerance
    versions = dataclasses.asdict(manifest.toolchain).items()
    row = describe_row(selection, manifest)
    return {
        **row,
        "lengths": ", ".join(map(str, manifest.lengths)),
        "size": format_size(row["size"]),
        "commit": manifest.commit,
        "license": manifest.license or "not declared",
        "inputs": _format_specs(manifest.inputs),
        "outputs": _format_specs(manifest.outputs),
        "any shape": _describe_shapes(manifest),
        "generates": _describe_generation(manifest),
        "left pads": describe_left_padding(manifest.validation),
        "devices": _describe_devices(store, selection, manifest),
        "untied": "; ".join(map(" = ".join, manifest.tied_groups)) or "nothing was tied",
        "toolchain": ", ".join(f"{name} {version}" for name, version in versions if version),
        "opens with": manifest.opens_with,
        "tolerance": f"atol {tolerance.atol:g} + rtol {tolerance.rtol:g}",
        "samples": _describe_samples(manifest),
        **_describe_accuracy(manifest),
        "report": _find_report(store, selection),
    }


def _find_report(store: ReadableStore, selection: Selection) -> str | None:
    """Return the URL of the report of the run that published it; none: it is not there."""
    attested = f"attestations/{selection.folder.removeprefix('conversions/')}"
    try:
        for name in reversed(store.names(attested)):
            report = f"reports/{name.removesuffix('.json')}"
            if "index.html" in store.names(report):
                return f"{store.url}/{report}/index.html"
    except StoreError:  # without a network, or without the rights: the facts are worth printing
        return None
    return None


def _describe_generation(manifest: Manifest) -> str | None:
    """Say how an encoder-decoder generates, and what was proved; nothing of other models."""
    made = manifest.generation
    if made is None:
        why = manifest.without_generation
        return None if why is None else f"no: {why}"
    search = "greedily" if made.num_beams == 1 else f"with {made.num_beams} beams"
    told = f"{search}, up to {made.max_new_tokens} tokens unless asked otherwise"
    verdict = made.verdict
    if verdict is None:
        return told
    beams = ", ".join(map(str, verdict.beams))
    proved = f"{verdict.rows} answers equal with {beams} beams, {verdict.near_ties} near ties"
    unproved = f"; not shown: {', '.join(verdict.unproved)}" if verdict.unproved else ""
    return f"{told}; {proved}{unproved}"


def _describe_samples(manifest: Manifest) -> str:
    """Say whether the conversion can be checked on another machine."""
    samples, reason = manifest.validation.samples, manifest.validation.without_samples
    if samples is None:
        return f"none: {reason or 'its schema has none'}"
    return f"{format_size(samples.size)}; run them here with `tracefleet check`"


def _describe_accuracy(manifest: Manifest) -> dict[str, str]:
    """Say how far a quantised model is from float32; nothing where nothing is quantised."""
    accuracy = manifest.validation.accuracy
    if accuracy is None:
        return {}
    figures = [f"smallest cosine {accuracy.min_cosine:.4f}"]
    if manifest.outputs[0].name.endswith("logits"):
        figures.append(f"equal labels {accuracy.top1_agreement:.1%}")
    if accuracy.rank_correlation is not None:
        figures.append(f"rank correlation of similarities {accuracy.rank_correlation:.4f}")
    return {"accuracy": f"{', '.join(figures)}, on {accuracy.inputs or 'random'} inputs"}


def _describe_devices(store: ReadableStore, selection: Selection, manifest: Manifest) -> str:
    """Say on which devices the gate was run, and whether the conversion runs on others."""
    first = manifest.device or "cpu"
    proved = [] if manifest.validation.verdict != VALIDATED else [first]
    for verdict in find_verdicts(store, selection.folder, manifest):
        proved.append(f"{verdict.device} ({verdict.name}, torch {verdict.toolchain.torch})")
    known = f"proved on {', '.join(proved)}" if proved else "proved on none"
    others = "runs where its inputs are" if manifest.follows_device else f"runs on {first} alone"
    return f"{known}; {others}"


def _describe_shapes(manifest: Manifest) -> str:
    """Say whether rows run at their own length, and why not."""
    general = manifest.general
    if general is None:
        return f"no, padded to a standard length: {manifest.routed or 'its recipe did not try'}"
    if general.tokens is None:
        return f"up to {general.rows} rows at once"
    largest = manifest.lengths[-1]
    return (
        f"{general.shortest} to {largest} tokens as they are, up to {general.rows} rows or "
        f"{general.tokens} tokens at once"
    )


def _format_specs(specs: Sequence[InputSpec | OutputSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} ({', '.join(spec.axes)})" for spec in specs)
