"""Which operators the compilers refuse, and with which words."""

from __future__ import annotations

from torch.fx import Node

from neuron_double import settings
from neuron_double.recording import kind

LOWERING, COMPILER = "Lowering to HLO", "neuronx-cc"
_EVRF001 = "[NCC_EVRF001] An unsupported operator was used."

#: operator -> (where torch_neuronx fails, the diagnostic)
UNSUPPORTED = {
    "aten::fft_fft": (COMPILER, "[NCC_EVRF004] Complex data types are not supported."),
    "aten::fft_ifft": (COMPILER, "[NCC_EVRF004] Complex data types are not supported."),
    "aten::view_as_complex": (COMPILER, "[NCC_EVRF004] Complex data types are not supported."),
    "aten::sort": (COMPILER, _EVRF001),
    "aten::triangular_solve": (COMPILER, _EVRF001),
    "aten::linalg_solve_triangular": (COMPILER, _EVRF001),
    "aten::linalg_inv": (LOWERING, _EVRF001),
    "aten::linalg_svd": (LOWERING, _EVRF001),
    "aten::nonzero": (COMPILER, "[NCC_EMOD025] A dynamic shape was used."),
    "aten::unique": (COMPILER, "[NCC_EMOD025] A dynamic shape was used."),
}
#: torch_neuron never gives these to the device when it may fall back.
ALWAYS_ON_CPU = frozenset({"aten::embedding"})


def refusals() -> dict[str, tuple[str, str]]:
    """Return the table, with the operators that the settings add."""
    added = filter(None, settings.current().unsupported.split(","))
    return UNSUPPORTED | dict.fromkeys(added, (COMPILER, _EVRF001))


def refused(nodes: list[Node]) -> list[str]:
    """Return the unsupported operators among nodes, each once, in order."""
    table = refusals()
    return [name for name in dict.fromkeys(kind(node) for node in nodes) if name in table]
