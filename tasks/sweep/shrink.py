"""Rules that make a config tiny: every size shrinks, every kind of layer stays.

The rules go by field names and defaults, so that a type that the next transformers brings is
mostly covered already; ``tasks.sweep.configs`` corrects them for the types where they fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import Any

from tasks.sweep.configs import KV_HEADS, LAYER_COUNTS, LIMITS, OVERRIDES, ROLES, VOCABULARY


def tiny_config(model_type: str, task: str) -> Any:
    """Return the type's config with the smallest sizes that keep every kind of layer.

    Args:
        model_type: key of transformers' ``CONFIG_MAPPING``.
        task: decides on the number of labels, and whether an encoder turns decoder.
    """
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    fields = _fields(config_class)
    if task.endswith("-classification"):
        fields["num_labels"] = 3
    declared = {field.name: field.default for field in dataclasses.fields(config_class)}
    if task == "text-generation" and declared.get("is_decoder") is False:
        fields["is_decoder"] = True  # BERT and its like are causal on demand
    return config_class(**fields)


def _fields(config_class: Any) -> dict[str, Any]:
    """Return constructor arguments that shrink a config class and its sub-configs."""
    declared = {field.name: field.default for field in dataclasses.fields(config_class)}
    default = _defaults(config_class)
    known = OVERRIDES.get(config_class.model_type, {})
    chosen: dict[str, Any] = {}
    chosen |= _sizes(declared, default)
    chosen |= _layers(declared.keys() - known.keys(), default)
    chosen |= _token_ids(declared, default)
    chosen |= _rope(declared, default)
    chosen |= _sub_configs(config_class, default, known)
    return chosen | known


def _defaults(config_class: Any) -> dict[str, Any]:
    """Return the values of the default config, read past its per-layer guards."""
    try:
        return dict(vars(config_class()))
    except Exception:  # some defaults contradict each other; the class-level ones must do
        return {}


def _sizes(declared: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: default.get(name) for name in declared}
    sizes: dict[str, Any] = {
        name: min(value, LIMITS[name])
        for name, value in found.items()
        if name in LIMITS and type(value) is int
    }
    if type(found.get("vocab_size")) is int:
        sizes["vocab_size"] = VOCABULARY
    if "head_dim" in sizes and default["head_dim"] == default.get("qk_rope_head_dim"):
        sizes["head_dim"] = sizes["qk_rope_head_dim"]  # latent attention rotates that part alone
    if default.get("pad_token_id") == 1 and "max_position_embeddings" in sizes:
        sizes["max_position_embeddings"] = 130  # RoBERTa's positions start behind the padding id
    heads = next((default[n] for n in ("num_attention_heads", "n_head") if n in default), None)
    for name in KV_HEADS:
        if type(found.get(name)) is int:
            sizes[name] = 4 if found[name] == heads else min(found[name], 2)
    return sizes


def _layers(declared: Set[str], default: dict[str, Any]) -> dict[str, Any]:
    """Keep the first layer of every kind, where lists name a kind for each layer."""
    counter = next((name for name in LAYER_COUNTS if type(default.get(name)) is int), None)
    if counter is None:
        return {}
    count = default[counter]
    lists = {
        name: default[name]
        for name in sorted(declared)
        if isinstance(default.get(name), list | tuple) and len(default[name]) == count > 2
    }
    # A list of all layers' own indices (llama4's moe_layers) names no kinds.
    indices = {name for name, values in lists.items() if list(values) == list(range(count))}
    kinds = {name: values for name, values in lists.items() if name not in indices}
    kept = _one_of_each_kind(kinds, count)
    pruned = {name: [values[i] for i in kept] for name, values in kinds.items()}
    return {counter: len(kept)} | pruned | {name: list(range(len(kept))) for name in indices}


def _one_of_each_kind(lists: dict[str, Any], count: int) -> list[int]:
    seen: set[tuple[str, str]] = set()
    kept = []
    for layer in range(count):
        kinds = {(name, repr(values[layer])) for name, values in lists.items()}
        if not kinds <= seen:
            kept.append(layer)
            seen |= kinds
    spare = [layer for layer in range(count) if layer not in kept]
    return sorted(kept + spare[: max(0, 2 - len(kept))])


def _token_ids(declared: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """Move special ids into the tiny vocabulary; ids that were equal stay equal.

    Ids of image, audio and video tokens go behind the vocabulary: no probe may draw one, because
    it announces features that aren't there.
    """
    chosen: dict[str, Any] = {}
    moved: dict[int, int] = {}
    for role in ROLES:
        name = f"{role}_token_id"
        if name not in declared:
            continue
        old = default.get(name)
        old = old[0] if isinstance(old, list | tuple) and old else old
        if type(old) is int:
            small = old if 0 <= old < 10 and old not in moved.values() else _free(moved)
            chosen[name] = moved.setdefault(old, small)
        elif role == "pad":  # classifiers refuse a batch without one
            chosen[name] = moved[-1] = 0 if 0 not in _small(default) else 9
    if default.get("is_encoder_decoder") and "decoder_start_token_id" not in chosen:
        chosen["decoder_start_token_id"] = chosen.get("pad_token_id", 0)
    behind = [n for n in declared if n.endswith(("_token_id", "_token_index")) and n not in chosen]
    large = [name for name in behind if type(default.get(name)) is int]
    return chosen | {name: 300 + place for place, name in enumerate(large)}


def _small(default: dict[str, Any]) -> set[int]:
    values = (default.get(f"{role}_token_id") for role in ROLES)
    return {value for value in values if type(value) is int}


def _free(moved: dict[int, int]) -> int:
    return next(i for i in range(10) if i not in moved.values())


def _rope(declared: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """Fit the rotary sections of multimodal models into a head of eight."""
    rope = default.get("rope_parameters")
    if "rope_parameters" not in declared or not isinstance(rope, dict):
        return {}
    return {"rope_parameters": _fit(rope)}


def _fit(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    sections = {"mrope_section": [2, 1, 1]} if "mrope_section" in value else {}
    return {name: _fit(inner) for name, inner in value.items()} | sections


def _sub_configs(
    config_class: Any, default: dict[str, Any], known: dict[str, Any]
) -> dict[str, Any]:
    made = {}
    for name in config_class.sub_configs:
        inner: Any = type(default.get(name))
        if name not in known and hasattr(inner, "model_type"):
            made[name] = inner(**_fields(inner))
    return made
