"""A model repository of Triton: a model for each conversion, under a name that people can read.

``<repository>/<name>/config.pbtxt``, ``labels.txt`` and ``<number>/model.pt``, where the number is
that of the channel: a later pull adds a version beside the one that a server has open. The manifest
beside each ``model.pt`` says whose it is. Everything appears complete or not at all, so that a
server may look at any moment.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tracefleet.devices import explain_refusal, read_verdict
from tracefleet.errors import NoFormError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import JIT
from tracefleet.published import Selection
from tracefleet.store import ReadableStore
from tracefleet.triton.config import LABELS, Serving, find_obstacle, format_labels, make_config
from tracefleet.triton.folders import CHANNEL, CONFIG, Version, copy_file, put, read_channels

_MODEL, _GPU = "model.pt", "cuda"
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
    kept = {} if repository is None else read_channels(repository)
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
    texts = _write_texts(model, dataclasses.replace(serving, name=model.name))

    def fill(folder: Path) -> None:
        copy_file(store, model.selection, model.manifest.bundle, folder / _MODEL)

    version = find_version(model, repository / model.name)
    return [put(version, fill, texts) / _MODEL, *(version.model / name for name in texts)]


def find_version(model: Model, folder: Path, mark: str = CHANNEL) -> Version:
    """Return the version that a conversion is in a model's folder."""
    return Version(
        model=folder,
        number=str(model.selection.number),
        channel=model.channel,
        manifest=model.manifest,
        mark=mark,
    )


def _write_texts(model: Model, serving: Serving) -> dict[str, bytes]:
    """Return the model's files beside its versions."""
    manifest, texts = model.manifest, {CHANNEL: model.channel.encode()}
    labels = manifest.text.labels if manifest.text is not None else ()
    made = make_config(manifest.inputs, manifest.outputs, manifest.lengths, labels, serving)
    if LABELS in made:
        texts[LABELS] = format_labels(labels).encode()
    return {**texts, CONFIG: made.encode()}
