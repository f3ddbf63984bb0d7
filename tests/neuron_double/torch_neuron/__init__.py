"""Contract double of torch_neuron (Inf1, archived); see ``neuron_double``."""

import torch as _torch
from neuron_double.artifact import NEURON as _OPERATOR
from neuron_double.runtime import register as _register
from neuron_double.settings import TORCH_NEURON as _USUAL

__version__ = _USUAL
_register(_OPERATOR)

from torch_neuronx import experimental  # noqa: E402
from torch_neuronx.batching import DataParallel  # noqa: E402

from torch_neuron.analysis import analyze_model, get_supported_operations  # noqa: E402
from torch_neuron.tracing import Optimization, trace  # noqa: E402

__all__ = [
    "DataParallel",
    "Optimization",
    "analyze_model",
    "experimental",
    "get_supported_operations",
    "trace",
]

# Its users write torch.neuron.trace.
_torch.neuron = __import__(__name__)  # type: ignore[attr-defined]
