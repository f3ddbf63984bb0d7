"""Open a published conversion by name: the consumer's front door.

``open`` goes channel -> manifest -> files, checks each by sha256, and only then lets torch see a
byte. ``load_manifest`` stops before the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from tracefleet import published
from tracefleet.errors import ArtifactError, ManifestError
from tracefleet.manifest import BUNDLE_MEDIA_TYPE, VALIDATED, Manifest
from tracefleet.model import Model
from tracefleet.published import Selection, as_store, open_verified, select
from tracefleet.store import Store

if TYPE_CHECKING:
    import torch

#: Run int8 bundles; torch has them on x86 CPUs, where one of them is what it begins with.
_ENGINES = ("fbgemm", "x86")


def open(  # noqa: A001 - read as tracefleet.open
    store: str | Path | Store,
    source: str,
    *,
    task: str | None = None,
    backend: str = "jit",
    dtype: str | None = None,
    batch: int | None = None,
    channel: str = "latest",
    allow_unvalidated: bool = False,
) -> Model:
    """Open the current conversion of a source.

    Args:
        store: its URL or path, or an opened store.
        source: the source exactly as it was converted (``hf://org/name``), or its slug.
        task: such as ``feature-extraction``; needed if several tasks are published.
        backend: the backend that was converted for; this version opens ``jit``.
        dtype: such as ``float32``; needed if several are published.
        batch: rows in one traced call; needed if several are published.
        channel: whose newest number to open.
        allow_unvalidated: open also what no device has validated yet.

    Returns:
        A callable model; see `Model`.

    Raises:
        NoSuchVariantError: none or several conversions fit.
        DigestMismatchError: a byte was changed since publishing; nothing was loaded.
        ManifestError: the manifest is malformed, or the conversion is not validated.
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
    return open_selected(opened, selection, allow_unvalidated=allow_unvalidated)


def open_selected(store: Store, selection: Selection, *, allow_unvalidated: bool = False) -> Model:
    """Open a conversion that `select` has chosen; errors are those of `open`."""
    manifest = published.load_manifest(store, selection)
    _check_usable(manifest, selection.manifest_path, allow_unvalidated)
    for file in manifest.files:
        if file.media_type != BUNDLE_MEDIA_TYPE:
            with open_verified(store, selection, file):
                pass
    path = selection.path_of(manifest.bundle)
    with _engine_of(manifest, path), open_verified(store, selection, manifest.bundle) as handle:
        module = _load(handle, path)
    published.remember(store, selection, manifest)
    return Model(manifest, module)


def load_manifest(
    store: str | Path | Store,
    source: str,
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
    if manifest.variant.backend != "jit":
        raise ArtifactError(
            f"{path}: backend expected 'jit', got {manifest.variant.backend!r}: this version of "
            "tracefleet opens jit conversions only. Pull the files and load them on the device."
        )


@contextmanager
def _engine_of(manifest: Manifest, path: str) -> Iterator[None]:
    """Have torch pack int8 weights, while they are loaded, for the engine that runs them."""
    if manifest.variant.dtype != "int8":
        yield
        return
    import torch

    quantized = torch.backends.quantized
    if _ENGINES[0] not in quantized.supported_engines:
        raise ArtifactError(
            f"{path}: dtype int8 expected torch's quantised engine {_ENGINES[0]}, got "
            f"{quantized.supported_engines}. Open it on an x86 CPU, or convert to float32."
        )
    before = quantized.engine
    if before not in _ENGINES:
        quantized.engine = _ENGINES[0]
    try:
        yield
    finally:
        if before not in _ENGINES:
            quantized.engine = before


def _load(handle: BufferedReader, path: str) -> torch.jit.ScriptModule:
    """Load the archive through the very handle whose bytes were checked.

    A path of its own could name another file by now. Handing torch the file object would read the
    archive into memory beside its tensors (356 MiB peak against 92 for a 92 MB archive), so torch
    gets the handle's own name.
    """
    import torch

    through = Path(f"/dev/fd/{handle.fileno()}")
    try:
        named = str(through) if through.exists() else handle
        module: torch.jit.ScriptModule = torch.jit.load(named, map_location="cpu")
    except RuntimeError as error:
        raise ArtifactError(
            f"{path}: torch {torch.__version__} can't load it: {str(error).splitlines()[0]}. Its "
            "bytes are as published; check the torch version in the manifest's toolchain."
        ) from error
    return module
