"""A checkpoint's folder into an eager model.

``inspect`` looks at the config alone and refuses early what can't work; ``load_eager`` builds the
model and refuses weights that are missing, left over or of another shape. That every loaded value
is the file's is proved by ``tasks.weights``.
"""

from __future__ import annotations

import dataclasses
import inspect as python_inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.arguments import Argument, check_tokenizer, text_arguments
from tasks.embedder import check_poolable, sentence_embedder
from tasks.errors import (
    RequestError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    first_line,
)
from tasks.heads import SAMPLE_TASKS, choices_of, model_class
from tasks.pooling import read_pooling
from tasks.quantise import INT8, check_quantisable
from tasks.samples import sample_arguments
from tasks.versions import can_set_experts, check_config, dtype_option, on_meta
from tasks.vocabulary import NO_TOKENS, Vocabulary, read_vocabulary

#: Leftovers of pre-training and of old versions that no head of these tasks computes with:
#: bert-base-uncased, roberta-base and albert-base carry them beside their masked-LM head.
_HARMLESS = re.compile(
    r"(^|\.)(pooler|seq_relationship|nsp_classifier|sop_classifier)\.|\.masked_bias$|position_ids$"
)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a checkpoint may be read.

    Attributes:
        task: Hugging Face task name.
        dtype: of the weights in the artifact; ``int8``: of its linear layers' weights.
        allow_pickle: whether pickled weights may be read (with ``weights_only=True``).
        trust_remote_code: whether Python files of the checkpoint may run.
    """

    task: str
    dtype: str = "float32"
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @property
    def loaded_dtype(self) -> str:
        """What the checkpoint is loaded in; ``tasks.quantise`` makes int8 of it."""
        return "float32" if self.dtype == INT8 else self.dtype


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the config says of a model, without its weights.

    Attributes:
        architecture: name of the class that the task needs.
        model_type: the config's model type.
        arguments: tensors of ``forward``, in the order of its signature.
        max_length: most tokens the positions allow; None where positions are relative.
        vocabulary: token ids for example inputs.
    """

    architecture: str
    model_type: str
    arguments: tuple[Argument, ...]
    max_length: int | None
    vocabulary: Vocabulary

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments."""
        return tuple(one.name for one in self.arguments)

    @property
    def takes_padding(self) -> bool:
        """Whether inputs may be filled up to a standard length."""
        return all(one.pad is not None for one in self.arguments)

    def exact(self) -> ModelFacts:
        """Return the facts of a bundle that takes the standard lengths alone and pads nothing."""
        arguments = tuple(dataclasses.replace(one, pad=None) for one in self.arguments)
        return dataclasses.replace(self, arguments=arguments)


def inspect(folder: Path, options: LoadOptions, lengths: tuple[int, ...]) -> ModelFacts:
    """Read the config and refuse what can't be converted, before any weight is read.

    Raises:
        UnsafeCheckpointError: the architecture is remote code that the request did not trust.
        UnsupportedCheckpointError: unknown architecture, no head for the task, no token ids.
        RequestError: a length is over the model's positions.
    """
    config = _read_config(folder, options)
    _check_not_quantised(config)
    check_config(config)
    kind = _model_class(config, options)
    model = _on_meta(kind, config)
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
    vocabulary = read_vocabulary(folder, config, _embedded_ids(kind, model))
    facts = ModelFacts(
        architecture=kind.__name__,
        model_type=config.model_type,
        arguments=text_arguments(kind, config, vocabulary, choices_of(options.task)),
        max_length=_max_length(model, config),
        vocabulary=vocabulary,
    )
    check_tokenizer(folder, kind, config, facts.inputs)
    if options.task == "sentence-similarity":
        read_pooling(folder)
        check_poolable(facts.architecture, facts.inputs)
    _check_lengths_fit(facts, lengths)
    return facts


def load_eager(folder: Path, options: LoadOptions) -> Any:
    """Return the checkpoint's ``PreTrainedModel`` in eval mode, nothing in it made up.

    Raises:
        UnsupportedCheckpointError: head weights are missing, or keys do not fit the architecture.
    """
    config = _read_config(folder, options)
    kind = _model_class(config, options)
    model, keys = _from_pretrained(kind, folder, config, options)
    missing = set(keys["missing_keys"])
    if missing and all("pooler." in key for key in missing) and _takes_no_pooler(kind):
        # Checkpoints of masked-LM training have no pooler; without it nothing is made up.
        model, keys = _from_pretrained(kind, folder, config, options, add_pooling_layer=False)
    _check_keys(kind.__name__, config, keys)
    _settle(model)
    if options.task == "sentence-similarity":
        return sentence_embedder(model, folder, allow_pickle=options.allow_pickle)
    return model


def _read_config(folder: Path, options: LoadOptions) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # configs are validated in many ways, each with its own error
        if "trust_remote_code" in str(error):
            raise _untrusted_code(folder) from error
        raise UnsupportedCheckpointError(
            f"{folder.name}: config.json expected to name a model type that transformers knows, "
            f"got: {first_line(error)}. Check model_type, or convert with a newer transformers."
        ) from error


def _check_not_quantised(config: Any) -> None:
    if getattr(config, "quantization_config", None):
        raise UnsupportedCheckpointError(
            "config.json: expected weights in float32, float16 or bfloat16, got a "
            "quantization_config. Convert the checkpoint that it was quantised from."
        )


def _untrusted_code(folder: Path) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{folder.name}: the architecture is Python code inside the checkpoint, and the request "
        "does not trust it. Read that code; then ask with trust_remote_code and the full commit."
    )


def _model_class(config: Any, options: LoadOptions) -> Any:
    return model_class(config, options.task, trust_remote_code=options.trust_remote_code)


def _embedded_ids(kind: Any, model: Any) -> int:
    """Return how many token ids a model knows."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if getattr(model.config, "num_hash_buckets", None):
        return sys.maxunicode + 1  # CANINE reads characters and has no table of them
    if not hasattr(embedding, "weight"):
        raise UnsupportedCheckpointError(
            f"{kind.__name__}: expected a token embedding, got {type(embedding).__name__}. "
            "Only models that read token ids can be converted for this task."
        )
    return int(embedding.weight.shape[0])


def _on_meta(kind: Any, config: Any) -> Any:
    """Build the architecture without weights, to read its signature and positions."""
    try:
        with on_meta():
            return kind(config)
    except Exception as error:
        raise UnsupportedCheckpointError(
            f"{kind.__name__}: expected to be built from config.json, got "
            f"{type(error).__name__}: {first_line(error)}. Correct the checkpoint's config."
        ) from error


def _max_length(model: Any, config: Any) -> int | None:
    """Most tokens that fit the positions; RoBERTa's start behind the padding index."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return int(module.weight.shape[0] - module.padding_idx - 1)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def _check_lengths_fit(facts: ModelFacts, lengths: tuple[int, ...]) -> None:
    if facts.max_length is not None and max(lengths) > facts.max_length:
        raise RequestError(
            f"lengths: expected at most {facts.max_length}, the positions of "
            f"{facts.architecture}; got {max(lengths)}. Drop the longer lengths."
        )


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


def _takes_no_pooler(kind: Any) -> bool:
    return "add_pooling_layer" in python_inspect.signature(kind.__init__).parameters


def _check_keys(architecture: str, config: Any, keys: dict[str, Any]) -> None:
    """Refuse made-up or mismatched weights; unused ones only where a head was dropped."""
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
            "Config and weights are of different models."
        )
    unused = sorted(key for key in keys["unexpected_keys"] if not _HARMLESS.search(key))
    if unused and architecture in (config.architectures or []):
        raise UnsupportedCheckpointError(
            f"{architecture}: expected to use every weight in the checkpoint, got unused "
            f"{unused[:8]}{'…' if len(unused) > 8 else ''}. The weights are not of this "
            "architecture; the outputs would be wrong."
        )


def _settle(model: Any) -> None:
    """Put the model into the one state in which it is traced and compared."""
    model.eval()
    if getattr(model.config, "use_cache", None) is not None:
        model.config.use_cache = False
    if _has_experts(model):
        # The `eager` implementation loops over the experts that happen to be hit: a trace bakes
        # that count in. batched_mm computes the same and traces exactly (measured).
        model.set_experts_implementation("batched_mm")


def _has_experts(model: Any) -> bool:
    return can_set_experts(model) and any("expert" in name for name, _ in model.named_modules())
