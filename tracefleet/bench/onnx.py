"""The eager model in ONNX Runtime, exported by torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracefleet.bench.cases import Feed
from tracefleet.bench.eager import Eager
from tracefleet.bench.optional import import_optional
from tracefleet.manifest import Manifest

if TYPE_CHECKING:
    import torch

_ERRORS_ONLY = 3


def export(eager: Eager, manifest: Manifest, sample: Feed, path: Path) -> None:
    """Write the model as ONNX, for every batch and length.

    It is the exporter over TorchScript: its graphs ran 1.1 to 1.2 times as fast as those of the
    newer one (torch 2.13, ONNX Runtime 1.32, all-MiniLM-L6-v2), and it needs fewer packages.

    Args:
        eager: the model.
        manifest: names and axes of inputs and outputs.
        sample: inputs to record the model with.
        path: file to write.
    """
    import torch

    inputs = [spec.name for spec in manifest.inputs]
    outputs = [spec.name for spec in manifest.outputs]

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = eager.module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            named = eager.forward(dict(zip(inputs, tensors, strict=True)))
            return tuple(named[name] for name in outputs)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Graph().eval(),
            tuple(sample[name] for name in inputs),
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=_name_axes(manifest),
            dynamo=False,
        )


def _name_axes(manifest: Manifest) -> dict[str, dict[int, str]]:
    """Return the axes that vary of each input and output, by name."""
    axes = {spec.name: spec.axes for spec in manifest.inputs}
    axes |= {spec.name: spec.axes for spec in manifest.outputs}
    named = {}
    for name, own in axes.items():
        named[name] = {place: axis for place, axis in enumerate(own) if not axis.isdigit()}
    return named


class OnnxModel:
    """An exported model with a session for one number of threads at a time."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._outputs = [spec.name for spec in manifest.outputs]
        self._session: Any = None
        self._inputs: list[str] = []

    def use_threads(self, count: int) -> None:
        """Make a session with so many threads in place of the one before."""
        onnxruntime = import_optional("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count
        options.log_severity_level = _ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(
            str(self._path), options, providers=["CPUExecutionProvider"]
        )
        # The export leaves out what the model does not use.
        self._inputs = [one.name for one in self._session.get_inputs()]

    def run(self, feed: Feed) -> dict[str, Any]:
        """Run one call and return its named outputs."""
        arrays = {name: feed[name].numpy() for name in self._inputs}
        values = self._session.run(self._outputs, arrays)
        return dict(zip(self._outputs, values, strict=True))
