"""Where the placement calls were before they were stable (2.25)."""

from torch_neuronx.placement import (
    multicore_context,
    neuron_cores_context,
    set_multicore,
    set_neuron_cores,
)

__all__ = ["multicore_context", "neuron_cores_context", "set_multicore", "set_neuron_cores"]
