"""What each command of ``tracefleet`` does; ``cli`` parses the arguments and calls one of them.

Each prints for a person, or one JSON document with ``--json``, and returns the exit code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from tracefleet.checks import verify
from tracefleet.copying import pull
from tracefleet.errors import ArtifactError, NoSuchVariantError
from tracefleet.manifest import Manifest
from tracefleet.model import Outputs
from tracefleet.published import Selection, find, load_manifest, open_verified, resolve, select
from tracefleet.reader import open_selected
from tracefleet.store import Store, open_store

_TOKENIZER = "model/tokenizer.json"


def _filters(arguments: argparse.Namespace) -> dict[str, Any]:
    return {n: getattr(arguments, n) for n in ("task", "backend", "dtype", "batch", "channel")}


def _selected(arguments: argparse.Namespace) -> tuple[Store, Selection]:
    store = open_store(arguments.store)
    return store, select(store, arguments.source, **_filters(arguments))


def list_command(arguments: argparse.Namespace) -> int:
    """List every channel that fits, with its current conversion; damaged ones on stderr."""
    store = open_store(arguments.store)
    lines, damaged = [], []
    for published in find(store, **_filters(arguments)):
        try:
            selection = resolve(store, published)
            lines.append(_line(selection, load_manifest(store, selection)))
        except ArtifactError as error:
            damaged.append(str(error))
    if arguments.json:
        _print_json(lines)
    elif lines:
        _print_table(lines)
    else:
        print(f"nothing that fits is published in {store.url}")
    for message in damaged:
        print(f"error: {message}", file=sys.stderr)
    return 1 if damaged else 0


def _line(selection: Selection, manifest: Manifest) -> dict[str, Any]:
    return {
        "source": manifest.source,
        "variant": manifest.variant.label,
        "channel": selection.published.channel,
        "seq": selection.number,
        "lengths": list(manifest.lengths),
        "verdict": manifest.validation.verdict,
        "size": sum(file.size for file in manifest.files),
        "key": manifest.key,
    }


def _print_table(lines: list[dict[str, Any]]) -> None:
    shown = [
        {
            **line,
            "lengths": ",".join(map(str, line["lengths"])),
            "size": _human_size(line["size"]),
            "key": line["key"][:12],
        }
        for line in lines
    ]
    rows = [list(shown[0]), *([str(cell) for cell in line.values()] for line in shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def show_command(arguments: argparse.Namespace) -> int:
    """Print the checked manifest of one conversion."""
    store, selection = _selected(arguments)
    manifest = load_manifest(store, selection)
    if arguments.json:
        _print_json(dataclasses.asdict(manifest))
        return 0
    checks = manifest.validation
    facts = {
        **_line(selection, manifest),
        "lengths": ", ".join(map(str, manifest.lengths)),
        "size": _human_size(sum(file.size for file in manifest.files)),
        "commit": manifest.commit,
        "license": manifest.license or "not declared",
        "inputs": ", ".join(f"{i.name} {i.dtype} ({', '.join(i.axes)})" for i in manifest.inputs),
        "outputs": ", ".join(f"{o.name} {o.dtype} ({', '.join(o.axes)})" for o in manifest.outputs),
        "untied": "; ".join(" = ".join(g) for g in manifest.tied_groups) or "nothing was tied",
        "toolchain": ", ".join(
            f"{k} {v}" for k, v in dataclasses.asdict(manifest.toolchain).items() if v
        ),
        "tolerance": f"atol {checks.tolerance.atol:g} + rtol {checks.tolerance.rtol:g}",
    }
    for name, value in facts.items():
        print(f"{name:<10} {value}")
    for length in checks.lengths:
        print(f"length {length.length:<4}max abs error {length.max_abs_error:.2e}, "
              f"{length.probes} probes, {'passed' if length.passed else 'FAILED'}")  # fmt: skip
    for file in manifest.files:
        print(f"file       {file.path} {file.size} bytes sha256 {file.sha256}")
    return 0


def verify_command(arguments: argparse.Namespace) -> int:
    """Check every file of every channel that fits, and name each damaged one on stderr."""
    store = open_store(arguments.store)
    chosen = find(store, arguments.source, **_filters(arguments))
    if not chosen:
        raise NoSuchVariantError(f"{store.url}: nothing that fits is published, nothing to verify")
    checks = [check for published in chosen for check in verify(store, published)]
    damaged = [check for check in checks if not check.ok]
    if arguments.json:
        _print_json([{**dataclasses.asdict(check), "ok": check.ok} for check in checks])
    else:
        files = "file" if len(checks) == 1 else "files"
        print(f"{len(checks)} {files} checked in {len(chosen)} channels, {len(damaged)} damaged")
    for check in damaged:
        print(check, file=sys.stderr)
    return 1 if damaged else 0


def pull_command(arguments: argparse.Namespace) -> int:
    """Copy one conversion to a folder."""
    store, selection = _selected(arguments)
    manifest = pull(store, selection, arguments.dest)
    files = [str(arguments.dest / file.path) for file in manifest.files]
    if arguments.json:
        _print_json({"dest": str(arguments.dest), "key": manifest.key, "files": files})
    else:
        print(f"{arguments.dest}: {len(files) + 1} files of {manifest.source}, all checked")
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Run one conversion on texts or ids and print what comes out."""
    store, selection = _selected(arguments)
    manifest = load_manifest(store, selection)
    if arguments.text:
        inputs = _tokenized(store, selection, manifest, arguments.text)
    else:
        inputs = {"input_ids": [_ids(row) for row in arguments.ids]}
    if arguments.decoder_ids:
        inputs["decoder_input_ids"] = [_ids(row) for row in arguments.decoder_ids]
    outputs = open_selected(store, selection)(**inputs)
    if arguments.json:
        described = {
            name: {"shape": list(value.shape), "dtype": str(value.dtype), "values": value.tolist()}
            for name, value in outputs.items()
        }
        _print_json({"source": manifest.source, "key": manifest.key, "outputs": described})
    else:
        _print_outputs(outputs)
    return 0


def _tokenized(
    store: Store, selection: Selection, manifest: Manifest, texts: list[str]
) -> dict[str, Any]:
    """Return the inputs that the conversion's own tokenizer makes of texts."""
    file = next((file for file in manifest.files if file.path == _TOKENIZER), None)
    if file is None:
        raise ValueError(
            f"--text: {manifest.source} was published without {_TOKENIZER}; give --ids instead"
        )
    from tokenizers import Tokenizer

    with open_verified(store, selection, file) as handle:
        tokenizer = Tokenizer.from_str(handle.read().decode())
    # The checkpoint's own limits would cut the text without a word.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(texts)
    inputs = {"input_ids": [row.ids for row in encoded]}
    if any(spec.name == "token_type_ids" for spec in manifest.inputs):
        inputs["token_type_ids"] = [row.type_ids for row in encoded]
    return inputs


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            f"ids: expected whole numbers such as '101 2023 102', got {text!r}"
        ) from None


def _print_outputs(outputs: Outputs) -> None:
    for name, value in outputs.items():
        first = ", ".join(f"{number:.6g}" for number in value.reshape(-1)[:6].tolist())
        print(
            f"{name} {tuple(value.shape)} {value.dtype}: {first}{', …' if value.size > 6 else ''}"
        )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _human_size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
