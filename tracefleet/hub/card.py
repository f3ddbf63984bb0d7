"""The model card of a conversion: README.md of its repository, made of the manifest alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tracefleet.manifest import Manifest
from tracefleet.manifest_types import INT8, InputSpec, OutputSpec
from tracefleet.printing import format_size
from tracefleet.published import Selection

#: A card without this line is somebody's own, and stays as it is.
MARK = (
    "<!-- Written by `tracefleet push`. Without this line a later push leaves this file alone. -->"
)
_HUB = "hf://"


def write_card(selection: Selection, manifest: Manifest, repository: str) -> bytes:
    """Return README.md: the hub's metadata, what the conversion is, and how it is used.

    Fields are those of https://huggingface.co/docs/hub/model-cards#model-card-metadata.

    Args:
        selection: the conversion.
        manifest: its checked manifest.
        repository: ``org/name`` that it is pushed to.

    Raises:
        ImportError: ``huggingface_hub`` is not installed.
    """
    from huggingface_hub import ModelCardData

    head = ModelCardData(**_find_metadata(manifest), ignore_metadata_errors=False).to_yaml()
    name = repository.rpartition("/")[2]
    facts = [f"| {fact} | {value} |" for fact, value in _list_facts(selection, manifest).items()]
    lines = [
        *("---", head.strip(), "---", MARK, ""),
        *(f"# {name}", "", _introduce(manifest), ""),
        *("| | |", "|---|---|", *facts, ""),
        *("## Use", "", "```sh", "pip install 'tracefleet[run]' huggingface_hub"),
        *(
            f"hf download {repository} --local-dir ./{name}",
            f"tracefleet verify ./{name}",
            "```",
            "",
        ),
        *(
            "```python",
            "import tracefleet",
            "",
            f'model = tracefleet.open("./{name}"{_choose(manifest)})',
        ),
        *(
            "```",
            "",
            "What was downloaded is a store: the reader compares every byte with the manifest's",
        ),
        *(
            "digests before it opens the archive. The archive is TorchScript, for Python, C++ and",
            "Triton.",
            "",
        ),
    ]
    return "\n".join(lines).encode()


def _find_metadata(manifest: Manifest) -> dict[str, Any]:
    variant = manifest.variant
    found: dict[str, Any] = {
        "library_name": "tracefleet",
        "pipeline_tag": variant.task,
        "tags": ["tracefleet", "torchscript", variant.backend, variant.dtype],
    }
    if manifest.license is not None:
        found["license"] = manifest.license
    if manifest.source.startswith(_HUB):
        found["base_model"] = manifest.source.removeprefix(_HUB)
        if variant.dtype == INT8:
            found["base_model_relation"] = "quantized"
    return found


def _introduce(manifest: Manifest) -> str:
    variant, source = manifest.variant, manifest.source
    if source.startswith(_HUB):
        name = source.removeprefix(_HUB)
        source = f"[{name}](https://huggingface.co/{name}/tree/{manifest.commit})"
    else:
        source = f"`{source}`"
    return (
        f"A TorchScript conversion of {source} for {variant.task} in {variant.dtype}, validated "
        "against the checkpoint itself before it was published."
    )


def _list_facts(selection: Selection, manifest: Manifest) -> dict[str, str]:
    tolerance, tools = manifest.validation.tolerance, manifest.toolchain
    variant, size = manifest.variant, sum(file.size for file in manifest.published)
    inputs = ", ".join(f"`{name}`" for name in _names(manifest.inputs))
    outputs = ", ".join(f"`{name}`" for name in _names(manifest.outputs))
    return {
        "commit of the checkpoint": f"`{manifest.commit}`",
        "task, backend, dtype": f"{variant.task}, {variant.backend}, {variant.dtype}",
        "standard lengths": ", ".join(map(str, manifest.lengths)),
        "inputs": inputs,
        "outputs": outputs,
        "verdict": f"{manifest.validation.verdict}, atol {tolerance.atol:g} + rtol "
        f"{tolerance.rtol:g}",
        "made with": f"Python {tools.python}, torch {tools.torch}, transformers "
        f"{tools.transformers}",
        "license of the checkpoint": manifest.license or "it declares none",
        "size": format_size(size),
        "channel": f"{selection.published.channel}, number {selection.number}",
        "conversion key": f"`{manifest.key}`",
    }


def _names(specs: Iterable[InputSpec | OutputSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _choose(manifest: Manifest) -> str:
    backend = manifest.variant.backend
    return "" if backend == "jit" else f', backend="{backend}"'
