"""What each command of ``tracefleet`` does; ``cli`` parses the arguments and calls one of them.

Each prints for a person, or one JSON document with ``--json``, and returns the exit code.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tracefleet.channel import Published
from tracefleet.errors import ArtifactError, NoSuchVariantError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import FileEntry
from tracefleet.published import Selection, find, load_manifest, open_verified, resolve, select
from tracefleet.pull import pull
from tracefleet.reader.model import Outputs
from tracefleet.reader.open import open_selected
from tracefleet.store import ReadableStore, open_store
from tracefleet.verify import verify

_TOKENIZER = "model/tokenizer.json"
#: Rows of ``list`` that are looked up together and printed at once (few: the first ones come soon),
#: and by how many threads.
_PAGE = 10
_READERS = 16


def _filters(arguments: argparse.Namespace) -> dict[str, Any]:
    return {n: getattr(arguments, n) for n in ("task", "backend", "dtype", "batch", "channel")}


def _selected(arguments: argparse.Namespace) -> tuple[ReadableStore, Selection]:
    store = open_store(arguments.store)
    return store, select(store, arguments.source, **_filters(arguments))


def list_command(arguments: argparse.Namespace) -> int:
    """List channels with their current conversions, page by page; damaged ones on stderr."""
    store = open_store(arguments.store)
    after = f"channels/{arguments.after}" if arguments.after else ""
    found = find(store, after=after, **_filters(arguments))
    shown = itertools.islice(found, arguments.limit)
    lines: list[dict[str, Any]] = []
    table, damaged, last = _Table(), 0, None
    while page := list(itertools.islice(shown, _PAGE)):
        for line in _looked_up(store, page):
            if isinstance(line, ArtifactError):
                print(f"error: {line}", file=sys.stderr)
                damaged += 1
            elif arguments.json:
                lines.append(line)
            else:
                table.add(line)
        if not arguments.json:
            table.flush()
        last = page[-1]
    if arguments.json:
        _print_json(lines)
    elif last is None:
        print(f"nothing that fits is published in {store.url}")
    if last and arguments.limit is not None and next(found, None):
        print(f"more: --after {last.folder.removeprefix('channels/')}", file=sys.stderr)
    return 1 if damaged else 0


def _looked_up(store: ReadableStore, page: list[Published]) -> list[dict[str, Any] | ArtifactError]:
    """Read many entries and manifests side by side: over a network each waits for an answer."""

    def look_up(published: Published) -> dict[str, Any] | ArtifactError:
        try:
            selection = resolve(store, published)
            return _line(selection, load_manifest(store, selection))
        except ArtifactError as error:
            return error

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(look_up, page))


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


class _Table:
    """Rows in columns, printed as they come: columns only ever get wider."""

    def __init__(self) -> None:
        self._rows: list[list[str]] = []
        self._widths: list[int] = []

    def add(self, line: dict[str, Any]) -> None:
        """Take one row."""
        shown = {
            **line,
            "lengths": ",".join(map(str, line["lengths"])),
            "size": _human_size(line["size"]),
            "key": line["key"][:12],
        }
        if not self._widths:
            self._rows.append(list(shown))
            self._widths = [0] * len(shown)
        self._rows.append([str(cell) for cell in shown.values()])

    def flush(self) -> None:
        """Print the rows taken since the last time."""
        for column in range(len(self._widths)):
            cells = (len(row[column]) for row in self._rows)
            self._widths[column] = max(self._widths[column], *cells, 0)
        for row in self._rows:
            cells_of = (cell.ljust(width) for cell, width in zip(row, self._widths, strict=True))
            print("  ".join(cells_of).rstrip())
        self._rows.clear()
        sys.stdout.flush()


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
    chosen = list(find(store, arguments.source, **_filters(arguments)))
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
    """Copy one conversion to a folder, or print URLs that others can fetch it by."""
    store, selection = _selected(arguments)
    if arguments.presign:
        return _presign(store, selection, arguments)
    manifest = pull(store, selection, arguments.dest)
    files = [str(arguments.dest / file.path) for file in manifest.files]
    if arguments.json:
        _print_json({"dest": str(arguments.dest), "key": manifest.key, "files": files})
    else:
        print(f"{arguments.dest}: {len(files) + 1} files of {manifest.source}, all checked")
    return 0


def _presign(store: ReadableStore, selection: Selection, arguments: argparse.Namespace) -> int:
    manifest = load_manifest(store, selection)
    own = FileEntry(
        path=manifest.file_name,
        size=len(manifest.to_bytes()),
        sha256=manifest.digest,
        media_type="application/json",
    )
    signed = [
        {
            "path": file.path,
            "size": file.size,
            "sha256": file.sha256,
            "url": store.presign(selection.path_of(file), seconds=arguments.expires),
        }
        for file in (own, *manifest.files)
    ]
    if arguments.json:
        _print_json({"key": manifest.key, "expires": arguments.expires, "files": signed})
        return 0
    for one in signed:
        print(f"{one['path']}\n  sha256 {one['sha256']}\n  {one['url']}")
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
    store: ReadableStore, selection: Selection, manifest: Manifest, texts: list[str]
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
