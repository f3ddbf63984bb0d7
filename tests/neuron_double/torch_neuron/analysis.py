"""Which operators neuron-cc supports."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from neuron_double import recording, support
from torch import Tensor

logger = logging.getLogger("Neuron")
_SUPPORTED = ("aten::add", "aten::addmm", "aten::bmm", "aten::gelu", "aten::layer_norm", "aten::mm")


def analyze_model(model: Callable[..., Any], example_inputs: Any) -> None:
    """Log the share of supported operators."""
    arguments = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    with recording.in_eval(model):
        counts = recording.counts(recording.record(model, arguments).graph)
    table = support.refusals()
    good = sum(count for name, count in counts.items() if name not in table)
    logger.info("%.2f%% of all operations are supported", 100 * good / max(sum(counts.values()), 1))


def get_supported_operations() -> list[str]:
    """Return names of supported operators; the double names a few that no test refuses."""
    return [name for name in _SUPPORTED if name not in support.refusals()]
