"""Check what a Triton server serves: the golden samples over its HTTP API.

The protocol is KServe's V2 inference protocol (``/v2/models/<name>/infer``), so that other servers
of it can be checked as well. Numbers go as JSON, which holds every float32 exactly.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracefleet.check import CheckReport, OutputCheck, check_texts, compare_sample, find_samples
from tracefleet.errors import BackendUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import FileEntry
from tracefleet.published import Selection, load_manifest, open_verified
from tracefleet.store import ReadableStore

if TYPE_CHECKING:
    import torch

#: Type names of the protocol (KServe V2, "Tensor Data Types").
_TYPES = {"int64": "INT64", "float32": "FP32", "bool": "BOOL", "int32": "INT32", "float64": "FP64"}
_NAMES = {name: plain for plain, name in _TYPES.items()}
_SECONDS = 60.0
_MOST_SHOWN = 300


def check_server(store: ReadableStore, selection: Selection, url: str, model: str) -> CheckReport:
    """Send a conversion's golden samples to a server, and compare what comes back.

    Args:
        store: store of the conversion.
        selection: the conversion that the server is said to serve.
        url: address of the server, such as ``http://host:8000``.
        model: name of its model.

    Raises:
        BackendUnavailableError: the server does not answer, or refuses the model.
        NoSamplesError: the conversion was published without golden samples.
        ValueError: the address is none, or the model's types have no form in JSON.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"triton: expected a URL such as http://host:8000, got {url!r}")
    manifest = load_manifest(store, selection)
    _check_types(manifest)

    def read(file: FileEntry) -> bytes:
        with open_verified(store, selection, file) as handle:
            return handle.read()

    def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return _infer(f"{url.rstrip('/')}/v2/models/{model}/infer", manifest, tensors)

    samples = find_samples(manifest, read)
    outputs: list[OutputCheck] = []
    for sample in samples:
        outputs += compare_sample(manifest, sample, run)
    return CheckReport(outputs=tuple(outputs), tokenizer=check_texts(manifest, samples, read))


def _check_types(manifest: Manifest) -> None:
    types = {spec.name: spec.dtype for spec in manifest.inputs}
    types |= {spec.name: spec.dtype for spec in manifest.outputs}
    for name, dtype in types.items():
        if dtype not in _TYPES:
            raise ValueError(
                f"triton: expected types {', '.join(_TYPES)}, got {dtype} of {name}, which JSON "
                "has no form for. Check the conversion with `tracefleet check` alone."
            )


def _infer(url: str, manifest: Manifest, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return a model's outputs in the order of the manifest."""
    given = []
    for spec, tensor in zip(manifest.inputs, tensors, strict=True):
        given.append(
            {
                "name": spec.name,
                "shape": list(tensor.shape),
                "datatype": _TYPES[spec.dtype],
                "data": tensor.flatten().tolist(),
            }
        )
    answer = _post(url, json.dumps({"inputs": given}).encode())
    found = {output["name"]: output for output in answer.get("outputs", [])}
    made = []
    for place, expected in enumerate(manifest.outputs):
        # The published folder names outputs as Triton's PyTorch backend numbers them.
        output = found.get(expected.name) or found.get(f"OUTPUT__{place}")
        if output is None:
            raise RuntimeError(f"expected output {expected.name}, got {sorted(found)}")
        tensor = _make_tensor(output)
        # Triton wants an axis beside the rows', which an output of one number for a row lacks.
        if tensor.dim() > len(expected.axes):
            tensor = tensor.reshape(tensor.shape[: len(expected.axes)])
        made.append(tensor)
    return made


def _make_tensor(output: dict[str, Any]) -> torch.Tensor:
    import torch

    dtype = getattr(torch, _NAMES.get(output["datatype"], "float64"))
    return torch.tensor(output["data"], dtype=dtype).reshape(output["shape"])


def _post(url: str, body: bytes) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - http(s) alone
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        said = error.read(_MOST_SHOWN).decode(errors="replace").strip()
        raise BackendUnavailableError(
            f"{url}: expected an answer of the model, got HTTP {error.code}: {said}. Check the "
            "model's name (--triton-model) and that the server has loaded it."
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BackendUnavailableError(
            f"{url}: expected a server of the KServe V2 protocol, got: {error}. Check the address "
            "and that it is running."
        ) from error
