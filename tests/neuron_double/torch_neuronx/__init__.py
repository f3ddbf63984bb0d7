"""Contract double of torch_neuronx (Inf2, Trn1, Trn2); see ``neuron_double``."""

from neuron_double.artifact import NEURONX as _OPERATOR
from neuron_double.runtime import register as _register
from neuron_double.settings import TORCH_NEURONX as _USUAL
from neuron_double.settings import current as _current

__version__ = _current().torch_neuronx or _USUAL
_register(_OPERATOR)

from torch_neuronx import experimental  # noqa: E402
from torch_neuronx.analysis import analyze  # noqa: E402
from torch_neuronx.batching import DataParallel, dynamic_batch  # noqa: E402
from torch_neuronx.buckets import BucketModelConfig, bucket_model_trace  # noqa: E402
from torch_neuronx.partitioning import PartitionerConfig  # noqa: E402
from torch_neuronx.placement import (  # noqa: E402
    async_load,
    lazy_load,
    move_trace_to_device,
    multicore_context,
    neuron_cores_context,
    replace_weights,
    set_multicore,
    set_neuron_cores,
)
from torch_neuronx.tracing import trace  # noqa: E402

__all__ = [
    "BucketModelConfig",
    "DataParallel",
    "PartitionerConfig",
    "analyze",
    "async_load",
    "bucket_model_trace",
    "dynamic_batch",
    "experimental",
    "lazy_load",
    "move_trace_to_device",
    "multicore_context",
    "neuron_cores_context",
    "replace_weights",
    "set_multicore",
    "set_neuron_cores",
    "trace",
]
