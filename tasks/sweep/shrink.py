"""Make a config tiny: shrink every size, keep every kind of layer.

The rules go by field names and defaults, so that they hold for most types of later transformers
too; ``tasks.sweep.configs`` has other values for the types where they fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import Any

from tasks.sweep.configs import KV_HEADS, LAYER_COUNTS, LIMITS, OVERRIDES, ROLES, VOCABULARY

#: Ids that a search forces: a model without them can't generate.
_FORCED = frozenset({"forced_bos_token_id", "forced_eos_token_id"})


def make_tiny_config(model_type: str, task: str) -> Any:
    """Return the type's config with the smallest sizes that keep every kind of layer.

    Args:
        model_type: Key of transformers' ``CONFIG_MAPPING``.
        task: Task; decides on the number of labels, and whether an encoder becomes a decoder.
    """
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    fields = _choose_fields(config_class)
    if task.endswith("-classification"):
        fields["num_labels"] = 3
    declared = {field.name: field.default for field in dataclasses.fields(config_class)}
    if task == "text-generation" and declared.get("is_decoder") is False:
        fields["is_decoder"] = True  # BERT and its like are causal only on request
    return config_class(**fields)


def _choose_fields(config_class: Any) -> dict[str, Any]:
    """Return constructor arguments that shrink a config class and its sub-configs."""
    declared = {field.name: field.default for field in dataclasses.fields(config_class)}
    default = _read_defaults(config_class)
    known = OVERRIDES.get(config_class.model_type, {})
    chosen: dict[str, Any] = {}
    chosen |= _shrink_sizes(declared, default)
    chosen |= _keep_layer_kinds(declared.keys() - known.keys(), default)
    chosen |= _move_token_ids(declared, default)
    chosen |= _fit_rope(declared, default)
    chosen |= _shrink_sub_configs(config_class, default, known)
    return chosen | known


def _read_defaults(config_class: Any) -> dict[str, Any]:
    """Return the values of the default config."""
    try:
        # Not by attribute: some refuse to give a value that differs from layer to layer.
        return dict(vars(config_class()))
    except Exception:  # some defaults contradict each other
        return {}


def _shrink_sizes(declared: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: default.get(name) for name in declared}
    sizes: dict[str, Any] = {}
    for name, value in found.items():
        if name in LIMITS and type(value) is int:
            sizes[name] = min(value, LIMITS[name])
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


def _keep_layer_kinds(declared: Set[str], default: dict[str, Any]) -> dict[str, Any]:
    """Keep the first layer of every kind, where lists name a kind for each layer."""
    counter = next((name for name in LAYER_COUNTS if type(default.get(name)) is int), None)
    if counter is None:
        return {}
    count = default[counter]
    indices, kinds = [], {}
    for name in sorted(declared):
        values = default.get(name)
        if not isinstance(values, list | tuple) or not len(values) == count > 2:
            continue
        # A list of all layers' own indices (llama4's moe_layers) names no kinds.
        if list(values) == list(range(count)):
            indices.append(name)
        else:
            kinds[name] = values
    kept = _choose_layers(kinds, count)
    chosen: dict[str, Any] = {counter: len(kept)}
    for name, values in kinds.items():
        chosen[name] = [values[layer] for layer in kept]
    for name in indices:
        chosen[name] = list(range(len(kept)))
    return chosen


def _choose_layers(lists: dict[str, Any], count: int) -> list[int]:
    """Return the layers with the first of every kind in them, at least two."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for layer in range(count):
        kinds = {(name, repr(values[layer])) for name, values in lists.items()}
        if not kinds <= seen:
            kept.append(layer)
            seen |= kinds
    spare = [layer for layer in range(count) if layer not in kept]
    return sorted(kept + spare[: max(0, 2 - len(kept))])


def _move_token_ids(declared: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """Move special ids into the tiny vocabulary; ids that were equal stay equal."""
    chosen: dict[str, Any] = {}
    moved: dict[int, int] = {}
    for role in ROLES:
        name = f"{role}_token_id"
        if name not in declared:
            continue
        old = default.get(name)
        old = old[0] if isinstance(old, list | tuple) and old else old
        if type(old) is int:
            small = old if 0 <= old < 10 and old not in moved.values() else _find_free_id(moved)
            chosen[name] = moved.setdefault(old, small)
        elif role == "pad":  # classifiers refuse a batch without one
            chosen[name] = moved[-1] = 0 if 0 not in _find_small_ids(default) else 9
    if default.get("is_encoder_decoder") and "decoder_start_token_id" not in chosen:
        chosen["decoder_start_token_id"] = chosen.get("pad_token_id", 0)
    for name in _FORCED.intersection(declared):
        if type(default.get(name)) is int:
            chosen[name] = moved.get(default[name], chosen.get("eos_token_id", 0))
    # Ids of image, audio and video tokens go behind the vocabulary: no probe may draw one, since
    # it announces features that are not in the inputs.
    behind = [n for n in declared if n.endswith(("_token_id", "_token_index")) and n not in chosen]
    large = [name for name in behind if type(default.get(name)) is int]
    first = VOCABULARY + 44
    return chosen | {name: first + place for place, name in enumerate(large)}


def _find_small_ids(default: dict[str, Any]) -> set[int]:
    values = (default.get(f"{role}_token_id") for role in ROLES)
    return {value for value in values if type(value) is int}


def _find_free_id(moved: dict[int, int]) -> int:
    return next(i for i in range(10) if i not in moved.values())


def _fit_rope(declared: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """Fit the rotary sections of multimodal models into a head of eight."""
    rope = default.get("rope_parameters")
    if "rope_parameters" not in declared or not isinstance(rope, dict):
        return {}
    return {"rope_parameters": _fit_sections(rope)}


def _fit_sections(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    sections = {"mrope_section": [2, 1, 1]} if "mrope_section" in value else {}
    return {name: _fit_sections(inner) for name, inner in value.items()} | sections


def _shrink_sub_configs(
    config_class: Any, default: dict[str, Any], known: dict[str, Any]
) -> dict[str, Any]:
    made = {}
    for name in config_class.sub_configs:
        inner: Any = type(default.get(name))
        if name not in known and hasattr(inner, "model_type"):
            made[name] = inner(**_choose_fields(inner))
    return made
