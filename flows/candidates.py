"""Candidates: what was compiled where no device could run it, found again by its URL."""

from __future__ import annotations

import re
from typing import Any

from flows.request import ConversionRequest, make_request
from tasks.errors import RequestError
from tasks.publish import find_candidate
from tracefleet.errors import NoSuchVariantError
from tracefleet.manifest import CANDIDATE, JIT, Manifest, parse
from tracefleet.store import Store, open_store

_CONVERSION = re.compile(r"(?P<store>.+)/(?P<folder>conversions/[^/]+/(?P<key>[0-9a-f]{64}))/?")


def candidate_at(
    conversion: str, *, channel: str = "latest", backend: str | None = None
) -> tuple[Manifest, ConversionRequest]:
    """Return the candidate in a conversion's folder, and the request that it answers.

    Args:
        conversion: URL of the folder.
        channel: that shall point to it once it is validated.
        backend: the only one that can be run here; None: any.

    Raises:
        RequestError: that is no conversion's URL, or one of another backend.
        NoSuchVariantError: there is no candidate.
        ManifestError: it can't be trusted.
    """
    found = _CONVERSION.fullmatch(conversion)
    if found is None:
        raise RequestError(
            "conversion: expected STORE/conversions/SOURCE/KEY, as `python -m flows convert` tells "
            f"it, got {conversion!r}"
        )
    store = open_store(found["store"])
    manifest = _read(store, found["folder"], found["key"])
    variant = manifest.variant
    if variant.backend == JIT or backend not in (None, variant.backend):
        raise RequestError(
            f"conversion: expected one of backend {backend or 'neuronx or neuron'}, got one of "
            f"{variant.backend}. Validate it on a worker of pool {variant.backend!r}."
        )
    return manifest, make_request({**_fields(manifest), "store": store.url, "channel": channel})


def _read(store: Store, folder: str, key: str) -> Manifest:
    path = f"{folder}/{CANDIDATE}"
    try:
        source = parse(store.read(path)).source
    except FileNotFoundError:
        raise NoSuchVariantError(
            f"{store.url}/{path}: expected a candidate, got no such file. What was validated where "
            "it was compiled never was one: see `tracefleet list`."
        ) from None
    found = find_candidate(store, source, key)
    if found is None:
        raise NoSuchVariantError(f"{store.url}/{path}: it names another source: {source}")
    return found


def _fields(manifest: Manifest) -> dict[str, Any]:
    """Return the request's fields: its identity, read back from the options."""
    variant, options = manifest.variant, dict(manifest.options)
    prefix = f"{variant.backend}."
    chosen = {
        name.removeprefix(prefix): None if value == "none" and "separate" in name else value
        for name, value in options.items()
        if name.startswith(prefix) and not name.endswith(".compiler_args")
    }
    return {
        "source": manifest.source,
        "revision": manifest.commit if manifest.source.startswith("hf://") else None,
        "task": variant.task,
        "lengths": manifest.lengths,
        "backend": variant.backend,
        "dtype": variant.dtype,
        "batch": variant.batch,
        variant.backend: chosen,
        "rtol": options.get("rtol"),
        "accept_tolerance_risk": options.get("accept_tolerance_risk") == "true",
    }
