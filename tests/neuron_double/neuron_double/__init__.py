"""A contract double of AWS's Neuron packages, for tests on machines that have no accelerator.

Not the SDK, and no part of it: written from AWS's public documentation and from public issue
threads. ``python -m neuron_double`` lists every behaviour with its source, and whether it is
documented or assumed. With this folder's parent on the path, ``import torch_neuronx`` and
``import torch_neuron`` give the double; ``configured`` puts it there for a test::

    with neuron_double.configured(device="none", fault="exit70"):
        ...
"""

from neuron_double.settings import FOLDER, VARIABLE, Settings, configured, current, parse
from neuron_double.stamp import STAMP, is_double

__all__ = [
    "FOLDER",
    "STAMP",
    "VARIABLE",
    "Settings",
    "configured",
    "current",
    "is_double",
    "parse",
]
