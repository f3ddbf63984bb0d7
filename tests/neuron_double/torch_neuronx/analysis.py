"""torch_neuronx.analyze: which operators the compiler supports, without a device."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from neuron_double import recording, settings, support
from torch import Tensor

import torch_neuronx


def analyze(
    func: Callable[..., Any],
    example_inputs: Any,
    compiler_workdir: str | Path | None = None,
    additional_ignored_ops: Collection[str] = (),
    max_workers: int = 4,
    is_hf_transformers: bool = False,
    cleanup: bool = False,
) -> dict[str, Any]:
    """Return the support report; compiles nothing, and proves no compilation either."""
    arguments = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    with recording.in_eval(func):
        recorded = recording.record(func, arguments)
    counts = {
        name: count
        for name, count in recording.counts(recorded.graph).items()
        if name not in additional_ignored_ops
    }
    table = support.refusals()
    supported = {name: count for name, count in counts.items() if name not in table}
    share = sum(supported.values()) / max(sum(counts.values()), 1)
    return {
        "torch_neuronx_version": torch_neuronx.__version__,
        "neuronx_cc_version": settings.current().compiler or settings.NEURONX_CC,
        "support_percentage": f"{100 * share:.2f}%",
        "supported_operators": {"aten": _by_name(supported)},
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


def _by_name(counts: dict[str, int]) -> dict[str, int]:
    return {name.removeprefix("aten::"): count for name, count in counts.items()}
