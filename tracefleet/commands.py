"""The commands of ``tracefleet``; ``cli`` parses the arguments and calls one of them.

Each prints text for people, or one JSON document with ``--json``, and returns the exit code.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tracefleet.channel import Published
from tracefleet.errors import ArtifactError, NoSuchVariantError
from tracefleet.manifest import Manifest
from tracefleet.printing import Table, print_json
from tracefleet.published import Selection, find, load_manifest, open_verified, resolve
from tracefleet.reader.open import open_selected
from tracefleet.reader.outputs import Outputs
from tracefleet.selecting import describe_row, read_filters, select_one
from tracefleet.store import ReadableStore, open_existing
from tracefleet.text import TOKENIZER, load_tokenizer
from tracefleet.verify import FileCheck, verify

#: Rows of ``list`` that are read together and then printed; few, so that the first ones show soon.
_PAGE = 10
_THREADS = 16


def list_command(arguments: argparse.Namespace) -> int:
    """List channels with their current conversions, page by page; damaged ones on stderr."""
    store = open_existing(arguments.store)
    after = f"channels/{arguments.after}" if arguments.after else ""
    found = find(store, after=after, **read_filters(arguments))
    shown = itertools.islice(found, arguments.limit)
    rows: list[dict[str, Any]] = []
    table, damaged, last = Table(), 0, None
    while page := list(itertools.islice(shown, _PAGE)):
        for row in _describe_all(store, page):
            if isinstance(row, ArtifactError):
                print(f"error: {row}", file=sys.stderr)
                damaged += 1
            elif arguments.json:
                rows.append(row)
            else:
                table.add(row)
        if not arguments.json:
            table.flush()
        last = page[-1]
    if arguments.json:
        print_json(rows)
    elif last is None:
        print(f"nothing that fits is published in {store.url}")
    if last and arguments.limit is not None and next(found, None):
        print(f"more: --after {last.folder.removeprefix('channels/')}", file=sys.stderr)
    return 1 if damaged else 0


def _describe_all(
    store: ReadableStore, page: list[Published]
) -> list[dict[str, Any] | ArtifactError]:
    """Return one row for each channel, withdrawn ones too, or the error that reading it raised."""

    def describe(published: Published) -> dict[str, Any] | ArtifactError:
        try:
            selection = resolve(store, published)
            return describe_row(selection, load_manifest(store, selection, allow_withdrawn=True))
        except ArtifactError as error:
            return error

    # In threads: over a network each read waits for a response.
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(describe, page))


def verify_command(arguments: argparse.Namespace) -> int:
    """Compare every file of every channel that fits with its digest; damage goes to stderr."""
    store = open_existing(arguments.store)
    chosen = list(find(store, arguments.source, **read_filters(arguments)))
    if not chosen:
        raise NoSuchVariantError(f"{store.url}: nothing that fits is published, nothing to verify")
    found: list[FileCheck] = []
    known: dict[str, FileCheck] = {}
    for published in chosen:
        found += verify(store, published, known=known)
    # A name and its source lead to the same files, which are read and told once.
    checks = list(dict.fromkeys(found))
    damaged = [check for check in checks if not check.ok]
    if arguments.json:
        print_json([{**dataclasses.asdict(check), "ok": check.ok} for check in checks])
    else:
        files = "file" if len(checks) == 1 else "files"
        print(f"{len(checks)} {files} checked in {len(chosen)} channels, {len(damaged)} damaged")
        for check in checks:
            if check.withdrawn is not None:
                print(f"withdrawn {check.path}: {check.withdrawn}")
    for check in damaged:
        print(check, file=sys.stderr)
    return 1 if damaged else 0


def run_command(arguments: argparse.Namespace) -> int:
    """Run one conversion on texts or ids and print its outputs."""
    store, selection = select_one(arguments)
    manifest = load_manifest(store, selection)
    if arguments.text:
        inputs = _tokenize(store, selection, manifest, arguments.text)
    else:
        inputs = {"input_ids": [_parse_ids(row) for row in arguments.ids]}
    if arguments.decoder_ids:
        inputs["decoder_input_ids"] = [_parse_ids(row) for row in arguments.decoder_ids]
    outputs = open_selected(store, selection, device=arguments.device)(**inputs)
    if arguments.json:
        described = {
            name: {"shape": list(value.shape), "dtype": str(value.dtype), "values": value.tolist()}
            for name, value in outputs.items()
        }
        print_json({"source": manifest.source, "key": manifest.key, "outputs": described})
    else:
        _print_outputs(outputs)
    return 0


def _tokenize(
    store: ReadableStore, selection: Selection, manifest: Manifest, texts: list[str]
) -> dict[str, Any]:
    """Return the inputs for texts, from the conversion's own tokenizer."""
    file = next((file for file in manifest.files if file.path == TOKENIZER), None)
    if file is None:
        raise ValueError(
            f"--text: {manifest.source} was published without {TOKENIZER}; give --ids instead"
        )
    with open_verified(store, selection, file) as handle:
        tokenizer = load_tokenizer(handle.read())
    encoded = tokenizer.encode_batch(texts)
    inputs = {"input_ids": [row.ids for row in encoded]}
    if any(spec.name == "token_type_ids" for spec in manifest.inputs):
        inputs["token_type_ids"] = [row.type_ids for row in encoded]
    return inputs


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            f"ids: expected whole numbers such as '101 2023 102', got {text!r}"
        ) from None


def _print_outputs(outputs: Outputs) -> None:
    for name, value in outputs.items():
        shown = [f"{number:.6g}" for number in value.reshape(-1)[:6].tolist()]
        if value.size > len(shown):
            shown.append("…")
        print(f"{name} {tuple(value.shape)} {value.dtype}: {', '.join(shown)}")
