"""A model repository of Triton: a model for each conversion, under a name that people can read.

``<repository>/<name>/config.pbtxt``, ``labels.txt`` and ``<number>/model.pt``, where the number is
that of the channel: a later pull adds a version beside the one that a server has open. The manifest
beside each ``model.pt`` says whose it is. Everything appears complete or not at all, so that a
server may look at any moment.
"""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tracefleet.devices import explain_refusal, read_verdict
from tracefleet.errors import ManifestError, NoFormError, StoreError
from tracefleet.manifest import MANIFEST, Manifest, parse
from tracefleet.manifest_types import JIT
from tracefleet.published import Selection, explaining_missing
from tracefleet.store import ReadableStore
from tracefleet.store.durable import name_temp
from tracefleet.triton.config import LABELS, Serving, find_obstacle, format_labels, make_config

_MODEL, _CONFIG, _CHANNEL, _GPU = "model.pt", "config.pbtxt", "channel", "cuda"
#: A folder can't be made, or moved in one step, beside what is a volume of its own.
_ANOTHER_PLACE = (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
_FOREIGN = (
    "expected no folder, or a model that `tracefleet pull --as triton` wrote, got another one. "
    "Choose another repository, or a name with --model-name."
)
#: Characters that Triton, URLs and file systems all take in a name; a dot would name a backend.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A conversion that a repository is to serve.

    Attributes:
        name: name of the model.
        selection: conversion that its channel points to.
        manifest: its checked manifest.
    """

    name: str
    selection: Selection
    manifest: Manifest

    @property
    def channel(self) -> str:
        """Folder in the store of the channel whose numbers are the versions."""
        return self.selection.published.folder


def name_models(
    chosen: Iterable[tuple[Selection, Manifest]], repository: Path | None = None
) -> list[Model]:
    """Give each conversion a readable name: as short as it is the only one of it.

    Args:
        chosen: conversions with their checked manifests.
        repository: one in which those that are there already keep their names.

    Raises:
        NoFormError: two conversions are of one channel.
    """
    pairs = list(chosen)
    kept = {} if repository is None else _find_kept(repository)
    for parts in range(4):
        names = []
        for one, manifest in pairs:
            known = kept.get(one.published.folder)
            names.append(known or _name(manifest, one, parts))
        if len(set(names)) == len(names):
            found = zip(names, pairs, strict=True)
            return [Model(name=name, selection=one, manifest=made) for name, (one, made) in found]
    raise NoFormError(
        "triton: expected conversions of different names or variants, got one twice. Pull them one "
        "by one with --model-name."
    )


def _find_kept(repository: Path) -> dict[str, str]:
    """Return the name of each model that a repository has, by its channel."""
    folders = sorted(path.parent for path in repository.glob(f"*/{_CHANNEL}"))
    return {_read_channel(folder): folder.name for folder in folders}


def _read_channel(folder: Path) -> str:
    return (folder / _CHANNEL).read_text(errors="replace").strip()


def check_model_name(name: str) -> str:
    """Return a name that a model can have.

    Raises:
        ValueError: it can't be one.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            "model name: expected at most 80 lower-case letters, digits, hyphens and underscores, "
            f"got {name!r}"
        )
    return name


def _name(manifest: Manifest, selection: Selection, parts: int) -> str:
    """Return a name with so many parts of the variant behind it."""
    variant = manifest.variant
    readable = selection.name or manifest.source.rstrip("/").rpartition("/")[2]
    words = [readable, variant.task, variant.dtype, f"b{variant.batch}"][: 1 + parts]
    safe = re.sub(r"[^a-z0-9_-]+", "-", "-".join(words).lower()).strip("-")
    return safe[:80] or "model"


def check_form(store: ReadableStore, model: Model, *, gpu: bool) -> None:
    """Refuse a conversion that Triton can't serve.

    Raises:
        NoFormError: it is for Neuron, has a type that the PyTorch backend lacks, or was not proved
            on the kind of device that it is to run on.
    """
    manifest = model.manifest
    obstacle = find_obstacle(manifest.inputs, manifest.outputs)
    if manifest.variant.backend != JIT:
        obstacle = f"backend {manifest.variant.backend}: Triton's PyTorch backend runs jit alone"
    elif gpu and obstacle is None:
        obstacle = _explain_gpu(store, model)
    if obstacle is not None:
        raise NoFormError(
            f"{manifest.source}: no form for Triton: {obstacle}. Pull it as it is (without --as), "
            "or convert it with another dtype or backend."
        )


def _explain_gpu(store: ReadableStore, model: Model) -> str | None:
    """Return why a conversion can't run on a GPU; None: it can, and was proved there."""
    refusal = explain_refusal(model.manifest, _GPU)
    folder = model.selection.folder
    if refusal is None and read_verdict(store, folder, model.manifest, _GPU) is None:
        return (
            "nothing shows that it is right on a GPU. Prove it on one: "
            f"tracefleet validate {store.url}/{folder} --device {_GPU}"
        )
    return refusal


def add_model(store: ReadableStore, model: Model, repository: Path, serving: Serving) -> list[Path]:
    """Write a conversion into a model repository, beside the versions that it has already.

    Args:
        store: store of the conversion.
        model: the conversion and its name.
        repository: folder of the repository; it is made if it is not there.
        serving: how it is to be run; the name is the model's.

    Returns:
        The files of the model; those that were there already are left as they are.

    Raises:
        NoFormError: Triton can't serve it.
        StoreError: another conversion has that name there, or a file can't be written.
        DigestMismatchError: a file in the store is damaged.
    """
    check_form(store, model, gpu=serving.gpu)
    folder, version = repository / model.name, str(model.selection.number)
    _check_owner(folder, version, model)
    texts = _write_texts(model, dataclasses.replace(serving, name=model.name))
    try:
        if not folder.exists():
            _write_new(store, model, folder, texts)
        elif not (folder / version).exists():
            with _appearing(folder / version, folder) as temp:
                _download(store, model, temp)
        # The version before its configuration: a server takes the old one with either.
        _write_all(folder, texts)
    except OSError as error:
        raise StoreError(f"{folder}: can't write the model there: {error}") from error
    return [folder / version / _MODEL, *(folder / name for name in texts)]


def _write_new(store: ReadableStore, model: Model, folder: Path, texts: dict[str, bytes]) -> None:
    """Write a model that is not there yet, in one step where the file system has that."""
    version = str(model.selection.number)
    try:
        # Beside the repository: a server takes every folder in it for a model.
        with _appearing(folder, folder.parent.resolve().parent) as temp:
            _download(store, model, temp / version)
            _write_all(temp, texts)
    except OSError as error:
        if error.errno not in _ANOTHER_PLACE:
            raise
        # The repository is a volume of its own: a model without configuration is not loaded.
        folder.mkdir(parents=True)
        with _appearing(folder / version, folder) as temp:
            _download(store, model, temp)


def _write_texts(model: Model, serving: Serving) -> dict[str, bytes]:
    """Return the model's files beside its versions."""
    manifest, texts = model.manifest, {_CHANNEL: model.channel.encode()}
    labels = manifest.text.labels if manifest.text is not None else ()
    made = make_config(manifest.inputs, manifest.outputs, manifest.lengths, labels, serving)
    if LABELS in made:
        texts[LABELS] = format_labels(labels).encode()
    return {**texts, _CONFIG: made.encode()}


def _check_owner(folder: Path, version: str, model: Model) -> None:
    """Refuse a name that another conversion or channel has, or a folder that is no model of ours.

    Raises:
        StoreError: it is one of these.
    """
    if not folder.exists():
        return
    there, manifest = _read_versions(folder), model.manifest
    if not there:
        raise StoreError(f"{folder}: {_FOREIGN}")
    for one in there.values():
        if (one.source, one.variant) != (manifest.source, manifest.variant):
            raise StoreError(
                f"{folder}: expected a model of {manifest.source} ({manifest.variant.label}), got "
                f"one of {one.source} ({one.variant.label}). Choose a name with --model-name."
            )
    channel = _read_channel(folder) if (folder / _CHANNEL).is_file() else model.channel
    if channel != model.channel:
        raise StoreError(
            f"{folder}: expected versions of channel {model.channel}, got those of {channel}, "
            "whose numbers are others. Choose a name with --model-name."
        )
    if version in there and there[version].key != manifest.key:
        raise StoreError(
            f"{folder}: expected version {version} to be {manifest.key}, got "
            f"{there[version].key}, of another channel. Choose a name with --model-name."
        )


def _read_versions(folder: Path) -> dict[str, Manifest]:
    """Return the manifest of each version of a model.

    Raises:
        StoreError: one is not ours.
    """
    try:
        found = sorted(folder.glob(f"*/{MANIFEST}"))
        return {path.parent.name: parse(path.read_bytes()) for path in found}
    except (OSError, ManifestError) as error:
        raise StoreError(f"{folder}: {_FOREIGN}") from error


@contextmanager
def _appearing(target: Path, around: Path) -> Iterator[Path]:
    """Let a folder be filled that appears under its name when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = name_temp(around)
    temp.mkdir()
    try:
        yield temp
        temp.rename(target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _download(store: ReadableStore, model: Model, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    file = model.manifest.bundle
    with explaining_missing(store, model.selection, file) as path:
        store.download_to(path, folder / _MODEL, size=file.size, sha256=file.sha256)
    (folder / MANIFEST).write_bytes(model.manifest.to_bytes())


def _write_all(folder: Path, texts: dict[str, bytes]) -> None:
    for name, data in texts.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            temp = name_temp(folder)
            temp.write_bytes(data)
            temp.replace(path)
