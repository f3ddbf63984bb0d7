"""Refuse what the config alone rules out, before any weight is read: ``inspect``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tasks.errors import RequestError, UnsupportedCheckpointError, first_line
from tasks.model.arguments import check_tokenizer, text_arguments
from tasks.model.embedder import check_poolable
from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.heads import SAMPLE_TASKS, count_choices, head_class, read_config
from tasks.model.pooling import read_pooling
from tasks.model.quantise import check_quantisable
from tasks.model.rotary import find_switch
from tasks.model.samples import sample_arguments
from tasks.model.versions import check_config, on_meta
from tasks.model.vocabulary import NO_TOKENS, read_vocabulary
from tracefleet.manifest_types import INT8

_WHY_NOT_LONGER = (
    "Beyond them its rotary embedding takes other frequencies for a whole call, by its longest "
    "row, so that a row's result would depend on its neighbours and its padding. "
)


def inspect(folder: Path, options: LoadOptions, lengths: tuple[int, ...]) -> ModelFacts:
    """Read the config and refuse what can't be converted, before any weight is read.

    Raises:
        UnsafeCheckpointError: The architecture is remote code that the request did not trust.
        UnsupportedCheckpointError: Unknown architecture, no head for the task, no token ids.
        RequestError: A length is over the model's positions.
    """
    config = read_config(folder, options)
    _check_not_quantised(config)
    check_config(config)
    kind = head_class(config, options)
    model = _build_on_meta(kind, config)
    if options.dtype == INT8:
        check_quantisable(model)
    if options.task in SAMPLE_TASKS:
        return ModelFacts(
            architecture=kind.__name__,
            model_type=config.model_type,
            arguments=sample_arguments(folder, kind, config, options.loaded_dtype, lengths),
            max_length=None,
            vocabulary=NO_TOKENS,
        )
    vocabulary = read_vocabulary(folder, config, _count_token_ids(kind, model))
    facts = ModelFacts(
        architecture=kind.__name__,
        model_type=config.model_type,
        arguments=text_arguments(kind, config, vocabulary, count_choices(options.task)),
        max_length=_find_max_length(model, config),
        vocabulary=vocabulary,
    )
    check_tokenizer(folder, kind, config, facts.inputs)
    if options.task == "sentence-similarity":
        read_pooling(folder)
        check_poolable(facts.architecture, facts.inputs)
    switch = find_switch(model)
    _check_lengths_fit(facts, lengths, switch)
    # From there on a row's result depends on its padding; no sample of inputs is sure to show it.
    changes = switch is not None and max(lengths) > switch
    return facts.without_padding() if changes else facts


def _check_not_quantised(config: Any) -> None:
    if getattr(config, "quantization_config", None):
        raise UnsupportedCheckpointError(
            "config.json: expected weights in float32, float16 or bfloat16, got a "
            "quantization_config. Convert the checkpoint that it was quantised from."
        )


def _count_token_ids(kind: Any, model: Any) -> int:
    """Return how many token ids a model knows."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if getattr(model.config, "num_hash_buckets", None):
        return sys.maxunicode + 1  # CANINE hashes characters and has no table of them
    if not hasattr(embedding, "weight"):
        raise UnsupportedCheckpointError(
            f"{kind.__name__}: expected a token embedding, got {type(embedding).__name__}. "
            "Only models that read token ids can be converted for this task: ask for another."
        )
    return int(embedding.weight.shape[0])


def _build_on_meta(kind: Any, config: Any) -> Any:
    """Build the architecture without weights, to read its signature and positions."""
    try:
        with on_meta():
            return kind(config)
    except Exception as error:
        raise UnsupportedCheckpointError(
            f"{kind.__name__}: expected to be built from config.json, got "
            f"{type(error).__name__}: {first_line(error)}. Correct the checkpoint's config."
        ) from error


def _find_max_length(model: Any, config: Any) -> int | None:
    """Return the most tokens that fit the positions; None: they are relative."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        # RoBERTa's positions start behind the padding index.
        if name.endswith("position_embeddings") and padding is not None:
            return int(module.weight.shape[0] - padding - 1)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def _check_lengths_fit(facts: ModelFacts, lengths: tuple[int, ...], switch: int | None) -> None:
    most = facts.max_length
    longer = [length for length in lengths if most is not None and length > most]
    if longer:
        why = "" if switch != most else _WHY_NOT_LONGER
        raise RequestError(
            f"lengths: expected at most {most}, the positions of {facts.architecture}; "
            f"got {', '.join(map(str, longer))}. {why}Drop the longer lengths.",
            lasting=True,
        )
