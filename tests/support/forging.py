"""Forge a published conversion as a careful attacker would: every digest fits what was changed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from tracefleet.channel import channel_folder, conversion_folder, entry_path, read_current
from tracefleet.manifest import MANIFEST, Manifest
from tracefleet.store.folder import FileStore
from tracefleet.verdict_types import samples_path


def scale_weight(bundle: Path, factor: float) -> bytes:
    """Return the bundle with one weight scaled."""
    module = torch.jit.load(bundle)
    weights = dict(module.named_parameters())
    weight = next(one for name, one in weights.items() if name.endswith("query.weight"))
    with torch.no_grad():
        weight.mul_(factor)
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def forge_file(root: Path, manifest: Manifest, path: str, data: bytes) -> Manifest:
    """Replace one file's bytes, and the digests in the manifest and in the channel."""
    folder = root / conversion_folder(manifest.source, manifest.key)
    (folder / path).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    files = []
    for file in manifest.files:
        if file.path == path:
            file = dataclasses.replace(file, size=len(data), sha256=digest)
        files.append(file)
    return forge_manifest(root, dataclasses.replace(manifest, files=tuple(files)))


def forge_samples(root: Path, manifest: Manifest, data: bytes) -> Manifest:
    """Replace the golden samples, under the name that their new digest gives them."""
    digest = hashlib.sha256(data).hexdigest()
    samples = manifest.validation.samples
    assert samples is not None
    entry = dataclasses.replace(samples, path=samples_path(digest), size=len(data), sha256=digest)
    folder = root / conversion_folder(manifest.source, manifest.key)
    (folder / entry.path).write_bytes(data)
    return forge_validation(root, manifest, samples=entry)


def forge_validation(root: Path, manifest: Manifest, **changes: Any) -> Manifest:
    """Change the verdict in the manifest, and the manifest's digest in the channel."""
    validation = dataclasses.replace(manifest.validation, **changes)
    return forge_manifest(root, dataclasses.replace(manifest, validation=validation))


def forge_manifest(root: Path, manifest: Manifest) -> Manifest:
    """Replace the manifest of a conversion, and its digest in the channel."""
    folder = root / conversion_folder(manifest.source, manifest.key)
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    store = FileStore(root=root)
    channel = channel_folder(manifest.source, manifest.variant, "latest")
    current = read_current(store, channel)
    assert current is not None
    number, entry = current
    changed = dataclasses.replace(entry, manifest=manifest.digest, key=manifest.key)
    (root / entry_path(channel, number)).write_bytes(changed.to_bytes())
    return manifest
