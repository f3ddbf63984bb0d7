"""Open a published conversion by name: the consumer's entry point.

``open`` follows channel -> manifest -> files, checks each by sha256, and only then gives the bytes
to torch. ``load_manifest`` stops before the files.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from tracefleet import published
from tracefleet.errors import ArtifactError, ManifestError
from tracefleet.manifest import BUNDLE_MEDIA_TYPE, Manifest
from tracefleet.manifest_types import JIT, FileEntry
from tracefleet.program_files import FORWARD, find_programs
from tracefleet.published import Selection, as_store, open_verified, select
from tracefleet.reader import archive, neuron
from tracefleet.reader.host import check_torch, using_int8_engine
from tracefleet.reader.model import Model
from tracefleet.reader.operators import provide_linear
from tracefleet.reader.padded import write_search
from tracefleet.reader.placing import Proof, check_device, find_proof, place
from tracefleet.reader.programs import compose
from tracefleet.store import ReadableStore
from tracefleet.verdict_types import VALIDATED

if TYPE_CHECKING:
    import torch


def open(  # noqa: A001 - read as tracefleet.open
    store: str | Path | ReadableStore,
    source: str | Path | None = None,
    *,
    task: str | None = None,
    backend: str = "jit",
    dtype: str | None = None,
    batch: int | None = None,
    channel: str = "latest",
    device: str | None = None,
    allow_unvalidated: bool = False,
    neuron_cores: tuple[int, int] | None = None,
) -> Model:
    """Open the current conversion of a name or a source.

    Args:
        store: URL or path of the store, or an opened store.
        source: the name that it is published under; or the checkpoint: ``org/name`` or
            ``hf://org/name``, a folder's path or URL, ``s3://bucket/prefix``, or its slug; looked
            for in the store alone, in this order. None: the only source in the store.
        task: task such as ``feature-extraction``; needed if several are published.
        backend: ``jit``; ``neuronx`` on an Inf2 or Trn host, ``neuron`` on an Inf1 host.
        dtype: dtype such as ``float32``; needed if several are published.
        batch: rows in one traced call; needed if several are published.
        channel: channel whose newest number is opened.
        device: device to run on, such as ``cuda`` or ``cuda:1``; None: the CPU, or NeuronCores for
            Neuron's backends. `Model.proved` tells whether the gate was run on such a device.
        allow_unvalidated: whether to open a conversion that no device has validated yet.
        neuron_cores: the first NeuronCore and how many, for the programs of all lengths; None: the
            runtime puts each program on the next core in turn.

    Returns:
        A callable model; see `Model`.

    Raises:
        NoSuchVariantError: none or several conversions fit.
        WithdrawnError: the conversion was withdrawn after it was published.
        DigestMismatchError: a byte was changed since publishing; nothing was loaded.
        ManifestError: the manifest is malformed, or the conversion is not validated.
        BackendUnavailableError: this host lacks Neuron's package, a version of it or the device, or
            torch's engine for int8; or the conversion is bound to another device.
        ValueError: ``device`` is no name of a device.
        StoreError: the store or a file can't be read.
    """
    opened = as_store(store)
    selection = select(
        opened,
        source,
        task=task,
        backend=backend,
        dtype=dtype,
        batch=batch,
        channel=channel,
    )
    return open_selected(
        opened,
        selection,
        device=device,
        allow_unvalidated=allow_unvalidated,
        neuron_cores=neuron_cores,
    )


def open_selected(
    store: ReadableStore,
    selection: Selection,
    *,
    device: str | None = None,
    allow_unvalidated: bool = False,
    neuron_cores: tuple[int, int] | None = None,
) -> Model:
    """Open a conversion that `select` has chosen; arguments and errors are those of `open`."""
    manifest = published.load_manifest(store, selection)
    path = f"{selection.folder}/{manifest.file_name}"
    _check_usable(manifest, path, allow_unvalidated)
    device = check_device(manifest, path, device)
    check_torch(manifest, path)
    for file in manifest.files:
        if file.media_type != BUNDLE_MEDIA_TYPE:
            with open_verified(store, selection, file):
                pass
    if manifest.variant.backend == JIT:
        model = _open_bundle(store, selection, manifest, device)
    else:
        model = _open_programs(store, selection, manifest, neuron_cores)
    published.cache_selection(store, selection, manifest)
    return model


def _open_bundle(
    store: ReadableStore, selection: Selection, manifest: Manifest, device: str
) -> Model:
    path = selection.path_of(manifest.bundle)
    with (
        using_int8_engine(manifest),
        open_verified(store, selection, manifest.bundle) as handle,
    ):
        module = _load(handle, path)
        place(module, device)
        proof = find_proof(store, selection, manifest, device)
        read = partial(_read, store, selection)
        return Model(manifest, module, device=device, proof=proof, read=read)


def _open_programs(
    store: ReadableStore, selection: Selection, manifest: Manifest, cores: tuple[int, int] | None
) -> Model:
    """Load every program, after every byte of all of them was checked."""
    backend = manifest.variant.backend
    neuron.check_host(backend, manifest.toolchain, neuron.target_of(manifest))
    loaded = _load_programs(store, selection, manifest, cores)
    batch, search = manifest.variant.batch, None
    if manifest.generation is not None:
        search = write_search(loaded, manifest.generation, batch)
    module = compose(loaded[FORWARD], manifest.inputs, manifest.outputs, batch, search)
    proof = Proof(found=manifest.validation.verdict == VALIDATED)
    programs = [program for part in loaded.values() for program in part.values()]
    return Model(manifest, module, programs, proof=proof, read=partial(_read, store, selection))


def _load_programs(
    store: ReadableStore, selection: Selection, manifest: Manifest, cores: tuple[int, int] | None
) -> dict[str, dict[int, torch.jit.ScriptModule]]:
    """Return the loaded program of each part and length."""
    handles: dict[str, dict[int, BufferedReader]] = {}
    loaded: dict[str, dict[int, torch.jit.ScriptModule]] = {}
    with ExitStack() as stack:
        for part, files in find_programs(manifest).items():
            opened = [
                stack.enter_context(open_verified(store, selection, f)) for f in files.values()
            ]
            handles[part] = dict(zip(files, opened, strict=True))
        for part, held in handles.items():
            loaded[part] = {}
            for length, handle in held.items():
                found = _find_path(handle)
                loaded[part][length] = neuron.load(manifest.variant.backend, found, cores=cores)
    return loaded


def _read(store: ReadableStore, selection: Selection, file: FileEntry) -> bytes:
    with open_verified(store, selection, file) as handle:
        return handle.read()


def load_manifest(
    store: str | Path | ReadableStore,
    source: str | Path | None = None,
    *,
    task: str | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    channel: str = "latest",
) -> Manifest:
    """Return the checked manifest of the current conversion of a source, without its files.

    The arguments and errors are those of `open`; ``backend`` None takes any.
    """
    opened = as_store(store)
    selection = select(
        opened,
        source,
        task=task,
        backend=backend,
        dtype=dtype,
        batch=batch,
        channel=channel,
    )
    return published.load_manifest(opened, selection)


def _check_usable(manifest: Manifest, path: str, allow_unvalidated: bool) -> None:
    verdict = manifest.validation.verdict
    if verdict != VALIDATED and not allow_unvalidated:
        raise ManifestError(
            f"{path}: verdict expected {VALIDATED!r}, got {verdict!r}. Validate it on a device, or "
            "pass allow_unvalidated=True to try it at your own risk."
        )


def _load(handle: BufferedReader, path: str) -> torch.jit.ScriptModule:
    """Load the archive through the handle whose bytes were checked."""
    import torch

    found = _find_path(handle)
    provide_linear()
    try:
        with warnings.catch_warnings():
            # torch calls the format itself deprecated at each load; who opens it can do nothing.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load`")
            if isinstance(found, str):
                return archive.load(found)
            module: torch.jit.ScriptModule = torch.jit.load(found, map_location="cpu")
    except RuntimeError as error:
        raise ArtifactError(
            f"{path}: torch {torch.__version__} can't load it: {str(error).splitlines()[0]}. Its "
            "bytes are as published; check the torch version in the manifest's toolchain."
        ) from error
    return module


def _find_path(handle: BufferedReader) -> str | BufferedReader:
    """Return the handle's path under ``/dev/fd`` if the system has one, else the handle."""
    # The file's own path may be another file by now. Given the file object, torch reads the archive
    # into memory beside its tensors (peak of 356 MiB against 92 for an archive of 92 MB).
    path = Path(f"/dev/fd/{handle.fileno()}")
    return str(path) if path.exists() else handle
