"""Read a candidate's manifest from its URL, and make the request that it was compiled for.

A candidate is compiled on a host without a device; ``flows.convert.validate`` proves it on one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tasks.backends.base import Candidate
from tasks.errors import RequestError
from tasks.fetch.source import Resolved
from tasks.publish.find import find_candidate
from tasks.request.conversion import ConversionRequest, make_request
from tracefleet.channel import conversion_folder
from tracefleet.errors import NoSuchVariantError
from tracefleet.manifest import CANDIDATE, Manifest, parse
from tracefleet.manifest_types import JIT
from tracefleet.program_files import find_programs
from tracefleet.store import ReadableStore, open_store

_CONVERSION = re.compile(r"(?P<store>.+)/(?P<folder>conversions/[^/]+/(?P<key>[0-9a-f]{64}))/?")


def read_candidate(
    conversion: str, *, backend: str | None = None, **more: Any
) -> tuple[Manifest, ConversionRequest]:
    """Return the candidate in a conversion's folder, and the request that it was compiled for.

    Args:
        conversion: URL of the folder.
        backend: The only backend that this worker runs; None: any.
        more: Fields of the request that are no part of its identity: channel, trust, limits.

    Raises:
        RequestError: it is no conversion's URL, or the conversion has another backend.
        NoSuchVariantError: there is no candidate.
        ManifestError: the manifest can't be trusted.
    """
    store, folder, key = parse_url(conversion)
    manifest = _read_manifest(store, folder, key)
    variant = manifest.variant
    if variant.backend == JIT or backend not in (None, variant.backend):
        raise RequestError(
            f"conversion: expected one of backend {backend or 'neuronx or neuron'}, got one of "
            f"{variant.backend}. Validate it on a worker of pool {variant.backend!r}."
        )
    return manifest, make_request({**request_fields(manifest), "store": store.url, **more})


def parse_url(conversion: str) -> tuple[ReadableStore, str, str]:
    """Return the store, the folder and the key that a conversion's URL names.

    Raises:
        RequestError: it is no conversion's URL.
    """
    found = _CONVERSION.fullmatch(conversion)
    if found is None:
        raise RequestError(
            "conversion: expected STORE/conversions/SOURCE/KEY, as `tracefleet convert` "
            f"prints it, got {conversion!r}"
        )
    return open_store(found["store"]), found["folder"], found["key"]


def request_fields(manifest: Manifest) -> dict[str, Any]:
    """Return the request's fields, read back from the manifest's identity."""
    variant, options = manifest.variant, manifest.options
    compiling = {}
    if variant.backend != JIT:
        compiling = {variant.backend: _read_options(options, f"{variant.backend}.")}
    return {
        "source": manifest.source,
        "revision": manifest.commit if manifest.source.startswith("hf://") else None,
        "task": variant.task,
        "lengths": manifest.lengths,
        "backend": variant.backend,
        "dtype": variant.dtype,
        "batch": variant.batch,
        **compiling,
        "generation": options.get("generation", "own"),
        "rtol": options.get("rtol"),
        "accept_tolerance_risk": options.get("accept_tolerance_risk") == "true",
    }


def check_same_commit(candidate: Manifest, found: Resolved) -> None:
    """Refuse a checkpoint other than the one that was converted.

    Raises:
        RequestError: its commit has changed.
    """
    if found.commit != candidate.commit:
        raise RequestError(
            f"{candidate.source}: expected commit {candidate.commit}, which was converted, got "
            f"{found.commit}. Without its weights the conversion can't be validated: convert "
            "the checkpoint as it is now."
        )


def download_programs(
    store: ReadableStore, manifest: Manifest | None, work: Path
) -> Candidate | None:
    """Download a candidate's programs and verify them; None: there is no candidate."""
    if manifest is None:
        return None
    folder = conversion_folder(manifest.source, manifest.key)
    programs = {}
    for files in find_programs(manifest).values():
        for file in files.values():
            target = programs[file.path] = work / "candidate" / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            path = f"{folder}/{file.path}"
            store.download_to(path, target, size=file.size, sha256=file.sha256)
    return Candidate(manifest=manifest, programs=programs)


def _read_manifest(store: ReadableStore, folder: str, key: str) -> Manifest:
    path = f"{folder}/{CANDIDATE}"
    try:
        source = parse(store.read(path)).source
    except FileNotFoundError:
        raise NoSuchVariantError(
            f"{store.url}/{path}: expected a candidate, got no such file. A conversion that was "
            "validated where it was compiled never was a candidate: see `tracefleet list`."
        ) from None
    found = find_candidate(store, source, key)
    if found is None:
        raise NoSuchVariantError(f"{store.url}/{path}: it names another source: {source}")
    return found


def _read_options(options: dict[str, str], prefix: str) -> dict[str, str | None]:
    chosen: dict[str, str | None] = {}
    for name, value in options.items():
        # `compiler_args` are derived from the others.
        if not name.startswith(prefix) or name.endswith(".compiler_args"):
            continue
        unset = value == "none" and "separate" in name
        chosen[name.removeprefix(prefix)] = None if unset else value
    return chosen
