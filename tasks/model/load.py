"""Load a checkpoint's folder as an eager model.

``load_eager`` refuses weights that are missing, left over or of another shape. That every loaded
value is the file's is proved by ``tasks.model.weights``.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from tasks.errors import UnsupportedCheckpointError, first_line
from tasks.model.embedder import sentence_embedder
from tasks.model.facts import LoadOptions
from tasks.model.heads import head_class, read_config
from tasks.model.versions import can_set_experts, dtype_option

#: Leftovers of pre-training and of old versions that no head of these tasks computes with:
#: bert-base-uncased, roberta-base and albert-base carry them beside their masked-LM head.
_HARMLESS = re.compile(
    r"(^|\.)(pooler|seq_relationship|nsp_classifier|sop_classifier)\.|\.masked_bias$|position_ids$"
)


def load_eager(folder: Path, options: LoadOptions) -> Any:
    """Return the checkpoint's ``PreTrainedModel`` in eval mode, without random weights.

    Raises:
        UnsupportedCheckpointError: Head weights are missing, or keys do not fit the architecture.
    """
    config = read_config(folder, options)
    kind = head_class(config, options)
    model, keys = _from_pretrained(kind, folder, config, options)
    missing = set(keys["missing_keys"])
    if missing and all("pooler." in key for key in missing) and _can_drop_pooler(kind):
        # Checkpoints of masked-LM training have no pooler: transformers would make a random one.
        model, keys = _from_pretrained(kind, folder, config, options, add_pooling_layer=False)
    _check_keys(kind.__name__, config, keys)
    _prepare_for_inference(model)
    if options.task == "sentence-similarity":
        return sentence_embedder(model, folder, allow_pickle=options.allow_pickle)
    return model


def _from_pretrained(
    kind: Any, folder: Path, config: Any, options: LoadOptions, **extra: Any
) -> tuple[Any, dict[str, Any]]:
    import torch

    try:
        model, keys = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=None if options.allow_pickle else True,
            weights_only=True,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused by name in _check_keys
            **dtype_option(getattr(torch, options.loaded_dtype)),
            **extra,
        )
    except (OSError, RuntimeError, ValueError, KeyError, ImportError) as error:
        raise UnsupportedCheckpointError(
            f"{kind.__name__}: expected the checkpoint's weights to load, got "
            f"{type(error).__name__}: {first_line(error)}. Check the checkpoint's files."
        ) from error
    return model, keys


def _can_drop_pooler(kind: Any) -> bool:
    return "add_pooling_layer" in inspect.signature(kind.__init__).parameters


def _check_keys(architecture: str, config: Any, keys: dict[str, Any]) -> None:
    """Refuse missing or mismatched weights; unused ones unless the task drops a head."""
    missing, mismatched = sorted(keys["missing_keys"]), keys["mismatched_keys"]
    if missing:
        raise UnsupportedCheckpointError(
            f"{architecture}: expected every weight in the checkpoint, got none for {missing}; "
            "they would be random. Ask for the task that the checkpoint was trained for "
            f"({config.architectures}), or fine-tune the head first."
        )
    if mismatched:
        raise UnsupportedCheckpointError(
            f"{architecture}: expected weights of the config's shapes, got {mismatched}. "
            "Config and weights are of different models: fetch or save the checkpoint again."
        )
    unused = sorted(key for key in keys["unexpected_keys"] if not _HARMLESS.search(key))
    if unused and architecture in (config.architectures or []):
        raise UnsupportedCheckpointError(
            f"{architecture}: expected to use every weight in the checkpoint, got unused "
            f"{unused[:8]}{'…' if len(unused) > 8 else ''}. The weights are not of this "
            "architecture; the outputs would be wrong. Correct architectures in config.json, or "
            "name the checkpoint that was meant."
        )


def _prepare_for_inference(model: Any) -> None:
    """Put the model into the state in which it is traced and compared: eval, without a cache."""
    model.eval()
    if getattr(model.config, "use_cache", None) is not None:
        model.config.use_cache = False
    if _has_experts(model):
        # The `eager` implementation loops over the experts that happen to be hit: a trace bakes
        # that count in. batched_mm computes the same and traces exactly (measured).
        model.set_experts_implementation("batched_mm")


def _has_experts(model: Any) -> bool:
    return can_set_experts(model) and any("expert" in name for name, _ in model.named_modules())
