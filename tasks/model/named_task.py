"""The task that a checkpoint's own files name, without transformers, which takes seconds to import.

``architectures.json`` lists what the mappings of transformers 5.23 say; a test compares the two.
What it does not have (remote code, a later version) ``tasks.model.heads`` looks up in a child.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from tasks.errors import UnsupportedCheckpointError
from tasks.fetch.needed import CONFIG
from tasks.model.pooling import pools_sentences

#: An architecture in the mappings of several tasks gets the first of these: BART's conditional
#: generation and XLM's language model are in that of masked language models as well.
TASK_ORDER = (
    "text2text-generation",
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "text-generation",
    "image-classification",
    "audio-classification",
    "feature-extraction",
)
#: Tasks with a head of their own, whose weights no other kind of checkpoint has.
_TRAINED = frozenset(TASK_ORDER[2:6] + TASK_ORDER[7:9])


def named_task(folder: Path) -> str | None:
    """Return the task that a checkpoint's files name; None: transformers has to be asked.

    Raises:
        UnsupportedCheckpointError: One of the files is missing or damaged.
    """
    if pools_sentences(folder):
        return "sentence-similarity"
    found = [_tasks().get(name) for name in read_architectures(folder)]
    known = [task for task in found if task is not None]
    # One that is not known may stand for a task that comes first.
    if len(known) < len(found) or not known:
        return None
    return min(known, key=TASK_ORDER.index)


def check_head(folder: Path, task: str) -> None:
    """Refuse a task whose head the checkpoint was certainly never trained with.

    Only what ``config.json`` tells beyond doubt; the others are refused by their weights' names.

    Raises:
        UnsupportedCheckpointError: It was made for a task without such a head, or its config is
            missing or damaged.
    """
    names = read_architectures(folder)
    found = {_tasks().get(name) for name in names}
    if task not in _TRAINED or not found or None in found or found & _TRAINED:
        return
    raise UnsupportedCheckpointError(
        f"task: expected one that the weights have a head for, got {task}: config.json names "
        f"{', '.join(names)}, made for {' and '.join(sorted(map(str, found)))}; the head's "
        "weights would be random. Ask for the task that it was trained for, or name the checkpoint "
        "that was trained for this one."
    )


def read_config_json(folder: Path) -> dict[str, object]:
    """Return ``config.json`` as plain data.

    Raises:
        UnsupportedCheckpointError: It is missing, or no JSON object.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedCheckpointError(
            f"{path}: expected the checkpoint's config as JSON, got {error}. It is missing or "
            "damaged, or a git-lfs pointer; fetch the checkpoint again."
        ) from error
    if not isinstance(config, dict):
        raise _refuse_config(path, config)
    return config


def read_architectures(folder: Path) -> list[str]:
    """Return the architectures that ``config.json`` names.

    Raises:
        UnsupportedCheckpointError: It is missing or damaged.
    """
    named = read_config_json(folder).get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise _refuse_config(folder / CONFIG, named)
    return named


def _refuse_config(path: Path, got: object) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        f"{path}: expected an object with a list of names as architectures, got {got!r}. Correct "
        "the config, or name the task in the request."
    )


@functools.cache
def _tasks() -> dict[str, str]:
    """Return the task of each architecture."""
    text = Path(__file__).with_name("architectures.json").read_text(encoding="utf-8")
    return {name: task for task, names in json.loads(text).items() for name in names}
