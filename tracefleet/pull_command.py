"""``tracefleet pull``: copy conversions into folders or a model repository, or print their URLs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from tracefleet.errors import NoSuchVariantError
from tracefleet.manifest_types import FileEntry
from tracefleet.names import is_name
from tracefleet.printing import print_json
from tracefleet.published import Selection, find, load_manifest, resolve, select
from tracefleet.pull import pull
from tracefleet.sagemaker.archive import check_form as check_archive
from tracefleet.sagemaker.archive import write_archive
from tracefleet.selecting import read_filters
from tracefleet.spelling import option
from tracefleet.store import ReadableStore, open_existing
from tracefleet.triton.config import DEFAULT, Serving
from tracefleet.triton.repository import (
    Model,
    add_model,
    check_form,
    check_model_name,
    name_models,
)
from tracefleet.triton.texts import SUFFIX, add_text_model, check_text_form, check_text_names

_FOLDER, _TRITON, _SAGEMAKER = "folder", "triton", "sagemaker"

EPILOG = """\
With one SOURCE, or in a store of one, DIR is its conversion's folder: a Triton model repository
with its manifest. With several, or a store of several, DIR holds a folder for each, named as in the
store.

With --as triton DIR is a model repository with a model for each conversion, under a readable name;
a later pull adds the channel's newer number as a version. It may be there already.
With --text each model has another one beside it, NAME-text, that takes texts and gives answers.

With --as sagemaker DIR gets model.tar.gz: the conversion, the reader and handlers for SageMaker's
containers; with several conversions a folder for each, named as in the store.

exit codes: 0 done; 1 damage or an error (see standard error); 2 wrong usage.

examples:
  tracefleet pull ./store org/name --to ./model
  tracefleet pull s3://bucket/models --to ./models
  tracefleet pull ./store org/name other/name --to ./repository --as triton
  tracefleet pull ./store org/name --to ./endpoint --as sagemaker
  tracefleet pull ./store org/name --to ./repository --as triton --text
  tracefleet pull s3://bucket/models org/name --presign --expires 600
"""


def add_arguments(parser: argparse.ArgumentParser, source: str) -> None:
    """Add what ``pull`` takes beside STORE; ``source`` says what a SOURCE is."""
    add = parser.add_argument
    add("sources", metavar="SOURCE", nargs="*", help=f"{source}; left out: all sources")
    add("--to", type=Path, metavar="DIR", help="folder to create, absent or empty")
    text = (
        "folder: as in the store; triton: a model repository; sagemaker: model.tar.gz "
        "(default: folder)"
    )
    forms = (_FOLDER, _TRITON, _SAGEMAKER)
    add("--as", dest="form", choices=forms, default=_FOLDER, help=text)
    text = "name of the model (default: the conversion's name, or its source's last word)"
    add("--model-name", metavar="NAME", type=option(check_model_name, "--model-name"), help=text)
    text = "triton: a second model of each conversion, NAME-text: texts in, answers out"
    add("--text", action="store_true", help=text)
    add("--gpu", action="store_true", help="triton: run on the host's GPUs (default: its CPU)")
    text = "triton: calls at a time of a model, which share its weights (default: 2)"
    add("--instances", type=int, metavar="N", help=text)
    add("--presign", action="store_true", help="print URLs of the files instead (s3:// stores)")
    text = "validity of the URLs in seconds (default: 3600)"
    add("--expires", type=int, default=3600, metavar="S", help=text)


def pull_command(arguments: argparse.Namespace) -> int:
    """Copy conversions, or print URLs from which others can download them."""
    sources, target = _read_places(arguments)
    store, filters = open_existing(arguments.store), read_filters(arguments)
    if not sources:
        sources = _find_sources(store, filters)
    alone = len(sources) == 1
    # All are chosen before the first is copied: a source that is not there costs no time.
    chosen = [select(store, source, **filters) for source in sources]
    found = []
    if arguments.form == _TRITON:
        if not arguments.sources:
            chosen = _prefer_names(store, chosen, filters)
        found = _write_repository(store, chosen, arguments)
        chosen = []
    if arguments.form == _SAGEMAKER:
        # Looked at before the first is written: one that has no form leaves nothing behind.
        for one in chosen:
            check_archive(load_manifest(store, one))
    for one in chosen:
        if target is None:
            found.append(_presign(store, one, arguments))
            continue
        folder = target if alone else target / one.published.slug
        write = _archive if arguments.form == _SAGEMAKER else _copy
        found.append(write(store, one, folder, arguments))
    if arguments.json:
        print_json(found[0] if alone and len(found) == 1 else found)
    return 0


def _find_sources(store: ReadableStore, filters: dict[str, Any]) -> list[str]:
    """Return the slug of each source with a conversion that fits; names lead to the same ones.

    A copy of a single channel may hold a name alone: then it is the name.
    """
    found = list(find(store, None, **filters))
    sources = {one.slug for one in found if not is_name(one.slug)}
    alone = {one.slug for one in found if resolve(store, one).slug not in sources}
    if not found:
        raise NoSuchVariantError(f"{store.url}: nothing that fits is published, nothing to pull")
    return sorted(sources | alone)


def _prefer_names(
    store: ReadableStore, chosen: list[Selection], filters: dict[str, Any]
) -> list[Selection]:
    """Return the conversions by the names that they are published under, where they have some."""
    slugs = sorted({one.slug for one in find(store, None, **filters)})
    named = [select(store, slug, **filters) for slug in slugs if is_name(slug)]
    folders = {one.folder for one in named}
    return [*named, *(one for one in chosen if one.folder not in folders)]


def _read_places(arguments: argparse.Namespace) -> tuple[list[str], Path | None]:
    """Return the sources and the target; none of the latter: URLs are asked for."""
    sources, target = list(arguments.sources), arguments.to
    if target is None and not arguments.presign and len(sources) == 2:
        target = Path(sources.pop())
        print(f"pull: the folder's new form is --to {target}", file=sys.stderr)
    if (target is None) != arguments.presign:
        arguments.refuse("pull: expected either --to DIR or --presign")
    if arguments.form != _FOLDER and target is None:
        arguments.refuse(f"pull: --as {arguments.form} expected --to DIR, got --presign")
    for name in ("model_name", "text", "gpu", "instances"):
        if getattr(arguments, name) not in (None, False) and arguments.form != _TRITON:
            arguments.refuse(f"pull: --{name.replace('_', '-')} expected --as triton beside it")
    if arguments.model_name is not None and len(sources) > 1:
        arguments.refuse("pull: --model-name expected one SOURCE, got several")
    if arguments.instances is not None and arguments.instances < 1:
        arguments.refuse(f"pull: --instances expected at least 1, got {arguments.instances}")
    return sources, target


def _write_repository(
    store: ReadableStore, chosen: list[Selection], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Write a model for each conversion; all are looked at before the first is written."""
    pairs = [(one, load_manifest(store, one)) for one in chosen]
    models = name_models(pairs, arguments.to)
    if arguments.model_name is not None:
        if len(models) > 1:
            arguments.refuse(f"pull: --model-name expected one conversion, got {len(models)}")
        models = [dataclasses.replace(models[0], name=arguments.model_name)]
    serving = Serving(
        gpu=arguments.gpu,
        instances=arguments.instances or DEFAULT.instances,
        versions=2 if arguments.text else DEFAULT.versions,
    )
    for model in models:
        check_form(store, model, gpu=serving.gpu)
    if arguments.text:
        check_text_names(models, arguments.to)
        for model in models:
            check_text_form(model)
    found = []
    for model in models:
        # The one that is asked before the one that asks it.
        found.append(_tell(model, "", add_model(store, model, arguments.to, serving), arguments))
        if arguments.text:
            files = add_text_model(store, model, arguments.to, serving)
            found.append(_tell(model, SUFFIX, files, arguments))
    return found


def _tell(
    model: Model, suffix: str, files: list[Path], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Say which model was written, and return its row."""
    name, version = f"{model.name}{suffix}", model.selection.number
    if not arguments.json:
        print(f"{arguments.to / name}: version {version} of {model.manifest.source}")
    row = {"model": name, "version": version, "key": model.manifest.key}
    return {**row, "files": [str(file) for file in files]}


def _copy(
    store: ReadableStore, selection: Selection, target: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    manifest = pull(store, selection, target)
    files = [str(target / file.path) for file in manifest.published]
    if not arguments.json:
        print(f"{target}: {len(files) + 1} files of {manifest.source}, all checked")
    return {"dest": str(target), "key": manifest.key, "files": files}


def _archive(
    store: ReadableStore, selection: Selection, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    path, manifest = write_archive(store, selection, folder), load_manifest(store, selection)
    if not arguments.json:
        print(f"{path}: {manifest.source}, {path.stat().st_size} bytes, all checked")
    return {"dest": str(path), "key": manifest.key, "files": [str(path)]}


def _presign(
    store: ReadableStore, selection: Selection, arguments: argparse.Namespace
) -> dict[str, Any]:
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
        for file in (own, *manifest.published)
    ]
    if not arguments.json:
        for one in signed:
            print(f"{one['path']}\n  sha256 {one['sha256']}\n  {one['url']}")
    return {"key": manifest.key, "expires": arguments.expires, "files": signed}
