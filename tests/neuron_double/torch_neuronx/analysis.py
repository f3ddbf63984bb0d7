"""torch_neuronx.analyze: which operators the compiler supports, asked one by one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from neuron_double import recording, settings, support
from torch import Tensor

import torch_neuronx
from torch_neuronx.tracing import NO_DEVICE


def analyze(
    func: Callable[..., Any],
    example_inputs: Any,
    compiler_workdir: str | Path | None = None,
    additional_ignored_ops: Collection[str] = (),
    max_workers: int = 4,
    is_hf_transformers: bool = False,
    cleanup: bool = False,
) -> dict[str, Any]:
    """Return the support report, which proves no compilation.

    Raises:
        RuntimeError: the configured fault.
    """
    _strike(is_hf_transformers)
    arguments = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    with recording.in_eval(func):
        recorded = recording.record(func, arguments)
    counts = {
        name: count
        for name, count in recording.counts(recorded.graph).items()
        if name not in additional_ignored_ops
    }
    time.sleep(settings.current().seconds_per_op * sum(counts.values()))
    if compiler_workdir is not None and not cleanup:
        (Path(compiler_workdir) / "operators").mkdir(parents=True, exist_ok=True)
    table = support.refusals()
    supported = {name: count for name, count in counts.items() if name not in table}
    share = sum(supported.values()) / max(sum(counts.values()), 1)
    return {
        "torch_neuronx_version": torch_neuronx.__version__,
        "neuronx_cc_version": settings.current().compiler or settings.NEURONX_CC,
        "support_percentage": f"{100 * share:.2f}%",
        "supported_operators": supported,
        "unsupported_operators": [
            {
                "kind": name,
                "failureAt": table[name][0],
                "call": f"{name}(...)",
                "opGraph": f"{name}: {count} calls",
            }
            for name, count in counts.items()
            if name in table
        ],
    }


def _strike(is_hf_transformers: bool) -> None:
    """Let the configured fault happen: a deadlock, or a runtime that wants a device."""
    fault = settings.current().analyze_fault
    if fault == "deadlock" and not is_hf_transformers:
        subprocess.run(["sleep", "3600"], check=True)
    if fault == "no-device" and settings.current().device == "none":
        raise RuntimeError(NO_DEVICE)
