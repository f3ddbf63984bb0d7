"""Which class of transformers builds a checkpoint for a task, and which task it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.errors import (
    RequestError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    first_line,
)
from tasks.model.facts import LoadOptions
from tasks.model.named_task import TASK_ORDER, named_task, read_architectures
from tracefleet.heads import AUTO_CLASSES

#: Tasks whose models read an image or a sound instead of token ids.
SAMPLE_TASKS = ("image-classification", "audio-classification")
#: Rows of ids that belong to one question: SWAG's and RACE's four endings.
CHOICES = 4


def count_choices(task: str) -> int | None:
    """Return how many rows of ids make one row of the task's output; None: one."""
    return CHOICES if task == "multiple-choice" else None


def default_task(folder: Path) -> str:
    """Return the task that a checkpoint's own files name.

    A pooling in ``modules.json`` (sentence-transformers) comes before ``architectures`` of
    ``config.json``. Other lists of modules (a CrossEncoder's, SPLADE's) leave it to those.

    Raises:
        RequestError: They name no task, or none of ours.
        UnsupportedCheckpointError: One of the files is missing or damaged.
    """
    known = named_task(folder)
    if known is not None:
        return known
    named = read_architectures(folder)
    for task in TASK_ORDER:
        if set(named) & _class_names(task):
            return task
    why = (
        f"names {', '.join(named)}, which are of none of the tasks here"
        if named
        else ("names no architecture")
    )
    raise RequestError(
        f"task: expected one in the request, since config.json {why}. Name the task (--task), one "
        f"of {', '.join(AUTO_CLASSES)}.",
        lasting=True,
    )


def model_class(config: Any, task: str, *, trust_remote_code: bool = False) -> Any:
    """Return the class that builds the model with the task's head.

    Raises:
        RequestError: There is no such task.
        UnsupportedCheckpointError: The architecture has no head for it.
    """
    import transformers

    if task not in AUTO_CLASSES:
        raise RequestError(f"task: expected one of {', '.join(AUTO_CLASSES)}; got {task!r}.")
    name = _find_auto_class(config, task)
    remote = getattr(config, "auto_map", None) or {}
    if trust_remote_code and name in remote:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(remote[name], config._name_or_path)
    try:
        kind = getattr(transformers, name)._model_mapping[type(config)]
    except KeyError:
        raise UnsupportedCheckpointError(
            f"model type {config.model_type!r}: expected an architecture with a head for "
            f"{task}, got none in transformers ({name}). "
            f"Ask for a task that it has; the checkpoint names {config.architectures}."
        ) from None
    return _pick_own(kind, config)


def _find_auto_class(config: Any, task: str) -> str:
    """Return the auto class; the encoder's where a pair needs or has no more (sentence-t5)."""
    import transformers

    encoders = transformers.AutoModelForTextEncoding._model_mapping
    if AUTO_CLASSES[task] == "AutoModel" and type(config) in encoders:
        alone = encoders[type(config)].__name__
        pair = bool(getattr(config, "is_encoder_decoder", False))
        if alone in (config.architectures or []) or (pair and task == "sentence-similarity"):
            return "AutoModelForTextEncoding"
    return AUTO_CLASSES[task]


def _pick_own(kind: Any, config: Any) -> Any:
    """Return the checkpoint's own class where a model type maps to several."""
    if not isinstance(kind, tuple):  # Funnel's base and full model share a type
        return kind
    named = [one for one in kind if one.__name__ in (config.architectures or [])]
    return (named or kind)[0]


def _class_names(task: str) -> set[str]:
    """Return the names of all classes with a task's head; imports no model."""
    import transformers

    autos = [AUTO_CLASSES[task]]
    if task == "feature-extraction":
        autos.append("AutoModelForTextEncoding")  # T5EncoderModel is no AutoModel
    names: set[str] = set()
    for auto in autos:
        # The inner mapping holds names; the outer one would import every model.
        for value in getattr(transformers, auto)._model_mapping._model_mapping.values():
            names.update(value if isinstance(value, tuple) else (value,))
    return names


def read_config(folder: Path, options: LoadOptions) -> Any:
    """Return the checkpoint's config.

    Raises:
        UnsafeCheckpointError: The architecture is remote code that the request did not trust.
        UnsupportedCheckpointError: Transformers does not know its model type.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # configs are validated in many ways, each with its own error
        if "trust_remote_code" in str(error):
            raise _refusal(folder) from error
        raise UnsupportedCheckpointError(
            f"{folder.name}: config.json expected to name a model type that transformers knows, "
            f"got: {first_line(error)}. Check model_type, or convert with a newer transformers."
        ) from error


def _refusal(folder: Path) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{folder.name}: the architecture is Python code inside the checkpoint, and the request "
        "does not trust it. Read that code; then ask with trust_remote_code "
        "(--trust-remote-code) and the full commit."
    )


def head_class(config: Any, options: LoadOptions) -> Any:
    """Return the class that builds the model with the head of the options' task."""
    return model_class(config, options.task, trust_remote_code=options.trust_remote_code)
