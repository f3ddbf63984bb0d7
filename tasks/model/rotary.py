"""Rotary embeddings whose frequencies follow the longest row of a call.

Eager takes other frequencies for a whole call when its longest row, padding included, is over a
limit (``dynamic_rope_update`` in transformers' ``modeling_rope_utils``): ``longrope`` (Phi-3,
Phi-4) its long factors, ``dynamic`` ones that it computes from the length. The result of a shorter
row then depends on its padding. Other types (``linear``, ``yarn``, ``llama3``) never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: Remote code of the first Phi-3 and of MiniCPM 3 wrote longrope as "su".
_LONG, _DYNAMIC = ("longrope", "su"), "dynamic"
_ORIGINAL = "original_max_position_embeddings"


def find_switch(model: nn.Module) -> int | None:
    """Return the most tokens that a model computes with the frequencies of short calls.

    None: its frequencies never change.

    Args:
        model: Model whose modules have their configs; it needs no weights.
    """
    configs = {id(one): one for one in map(_config_of, model.modules()) if one is not None}
    limits = [limit for config in configs.values() for limit in _find_limits(config)]
    return min(limits, default=None)


def _config_of(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _find_limits(config: Any) -> Iterator[int]:
    for rope in _list_settings(config):
        kind = rope.get("rope_type") or rope.get("type") or ""
        if kind in _LONG:
            own = rope.get(_ORIGINAL) or getattr(config, _ORIGINAL, None)
            yield int(own or config.max_position_embeddings)
        elif _DYNAMIC in kind:
            yield int(config.max_position_embeddings)


def _list_settings(config: Any) -> list[Mapping[str, Any]]:
    """Return a config's rotary settings, of each type of layer where they differ."""
    # Transformers 5 calls rope_parameters what was rope_scaling before.
    written = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(written, Mapping):
        return []
    layers = [value for value in written.values() if isinstance(value, Mapping)]
    return layers or [written]
