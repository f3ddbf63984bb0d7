"""Dynamic batch and data parallelism."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from neuron_double import runtime, settings
from neuron_double.artifact import configure, header_of, neuron_models
from torch import Tensor

NO_CORES = (
    "Neuron runtime cannot be initialized; cannot determine the number of available NeuronCores"
)
_WORKERS_PER_CORE = 2


def dynamic_batch(neuron_script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Let a compiled model take any number of rows; in place, and returned.

    Raises:
        ValueError: compiled inputs and outputs differ in their first axis, or separated weights.
    """
    for model in neuron_models(neuron_script):
        header = header_of(model)
        shapes = [shape for shape, _ in header["inputs"][: header["given"]] + header["outputs"]]
        sizes = {shape[0] if shape else 0 for shape in shapes}
        if len(sizes) != 1:
            raise ValueError(
                "Dynamic batching was enabled but all compiled batch inputs and outputs did not "
                f"have the same dim 0 size: {shapes}"
            )
        if not header.get("inline", True):
            raise ValueError("Dynamic batching does not work with separated weights")
        configure(model, dynamic_batch=True)
    return neuron_script


class DataParallel(torch.nn.Module):
    """One copy of a compiled model on each core; the rows are split among them.

    Raises:
        RuntimeError: no device.
    """

    def __init__(
        self,
        model: torch.jit.ScriptModule,
        device_ids: list[int] | None = None,
        dim: int = 0,
        set_dynamic_batching: bool = True,
    ) -> None:
        super().__init__()
        if settings.current().device == "none":
            raise RuntimeError(NO_CORES)
        self.device_ids = runtime.visible_cores() if device_ids is None else device_ids
        self.dim = dim
        self.num_workers = _WORKERS_PER_CORE * len(self.device_ids)
        if set_dynamic_batching:
            dynamic_batch(model)
        header = header_of(neuron_models(model)[0])
        self.split_size: int = header["inputs"][0][0][dim]
        self.copies = [_copy(model, core) for core in self.device_ids]

    def disable_dynamic_batching(self) -> None:
        """Take exact batches only."""
        for copy in self.copies:
            for model in neuron_models(copy):
                configure(model, dynamic_batch=False)

    def forward(self, *inputs: Tensor) -> Any:
        split = [tensor.split(self.split_size, self.dim) for tensor in inputs]
        chunks = list(zip(*split, strict=True))
        with ThreadPoolExecutor(self.num_workers) as pool:
            jobs = [
                pool.submit(self.copies[index % len(self.copies)], *chunk)
                for index, chunk in enumerate(chunks)
            ]
            results = [job.result() for job in jobs]
        if isinstance(results[0], Tensor):
            return torch.cat(results, self.dim)
        if isinstance(results[0], dict):
            return {key: torch.cat([r[key] for r in results], self.dim) for key in results[0]}
        return tuple(torch.cat(pieces, self.dim) for pieces in zip(*results, strict=True))


def _copy(model: torch.jit.ScriptModule, core: int) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    with runtime.placed(core, 1):
        copy: torch.jit.ScriptModule = torch.jit.load(buffer)
    return copy
