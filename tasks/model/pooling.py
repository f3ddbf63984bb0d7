"""How a checkpoint pools its token vectors, read from the files of sentence-transformers.

``modules.json`` names the modules in order, ``1_Pooling/config.json`` the kind of pooling,
``2_Dense`` a projection with weights of its own. ``tasks.model.embedder`` builds them; what is not
known here is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UnsupportedCheckpointError
from tasks.fetch.needed import MODULES
from tasks.fetch.source import safe_path

OUTPUT = "sentence_embedding"

#: Keys of a Pooling config before sentence-transformers 6, in the order in which it concatenates
#: the vectors -> the name in the list that it writes since.
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = tuple(_OLD_KEYS.values())
#: Classes of torch.nn that a Dense module may name, as ``torch.nn.modules.activation.Tanh``.
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A projection of the pooled vector.

    Attributes:
        path: Folder with its weights.
        inputs: Width of its input.
        outputs: Width of its output.
        bias: Whether it adds a bias.
        activation: Class of ``torch.nn``.
    """

    path: str
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How token vectors become one vector for each row.

    Attributes:
        modes: Kinds of pooling, in the order in which their vectors are concatenated.
        dense: Projections after it, in order.
        normalise: Whether the result is divided by its Euclidean length.
    """

    modes: tuple[str, ...]
    dense: tuple[Dense, ...] = ()
    normalise: bool = False


def pools_sentences(folder: Path) -> bool:
    """Tell whether the checkpoint describes a pooling, of a kind known here or not.

    Raises:
        UnsupportedCheckpointError: ``modules.json`` is damaged.
    """
    exists = (folder / MODULES).is_file()
    return exists and "Pooling" in [kind for kind, _ in _read_modules(folder)]


def read_pooling(folder: Path) -> Pooling:
    """Read ``modules.json`` and the configs of the modules that it names; no weights.

    Raises:
        UnsupportedCheckpointError: There is none, or a module or mode that is not known here.
        UnsafeCheckpointError: A module's folder is outside the checkpoint.
    """
    modules = _read_modules(folder)
    kinds = [kind for kind, _ in modules]
    normalise = kinds[-1] == "Normalize"
    middle = kinds[2:-1] if normalise else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
        expected = "Transformer, Pooling, any number of Dense and at most one Normalize, in order"
        raise explain_pooling(MODULES, expected, kinds)
    if modules[0][1]:
        raise explain_pooling(MODULES, "the Transformer beside it", f"its path {modules[0][1]!r}")
    dense = tuple(_read_dense(folder, path) for kind, path in modules if kind == "Dense")
    _check_chain(dense)
    return Pooling(modes=_read_modes(folder, modules[1][1]), dense=dense, normalise=normalise)


def _read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return kind and folder of every module; a kind of the checkpoint's own has its full name."""
    listed = _read(folder, MODULES)
    if not isinstance(listed, list) or not listed or not all(isinstance(m, dict) for m in listed):
        raise explain_pooling(MODULES, "a list of modules", listed)
    return [(_short_name(str(one.get("type"))), str(one.get("path") or "")) for one in listed]


def _short_name(name: str) -> str:
    package, _, last = name.rpartition(".")
    return last if package.startswith("sentence_transformers.") else name


def _read_modes(folder: Path, path: str) -> tuple[str, ...]:
    path = _config_path(path)
    config = _read_object(folder, path)
    # An INSTRUCTOR's prompt is read but not pooled, and the graph can't know where it ends.
    if config.get("include_prompt", True) is not True:
        got = f"include_prompt {config['include_prompt']}"
        raise explain_pooling(path, "a pooling over every token, the prompt's as well", got)
    old = {key: on for key, on in config.items() if key.startswith("pooling_mode_")}
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_KEYS.items() if old.get(key)]
        modes += [key for key, on in old.items() if on and key not in _OLD_KEYS]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(mode in MODES for mode in modes):
        raise explain_pooling(path, f"one or more of {', '.join(MODES)}", modes or "none of them")
    return tuple(modes)


def _read_dense(folder: Path, path: str) -> Dense:
    config = _read_object(folder, _config_path(path))
    package, _, activation = str(config.get("activation_function")).rpartition(".")
    if not package.startswith("torch.nn") or activation not in _ACTIVATIONS:
        expected = f"an activation_function of torch.nn, one of {', '.join(_ACTIVATIONS)}"
        raise explain_pooling(path, expected, config.get("activation_function"))
    names = {config.get(f"module_{side}_name") for side in ("input", "output")}
    if config.get("use_residual") or names - {None, OUTPUT}:
        got = "use_residual" if config.get("use_residual") else sorted(map(str, names))
        raise explain_pooling(path, "one linear layer on the pooled vector", got)
    sizes: list[Any] = [config.get("in_features"), config.get("out_features")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise explain_pooling(path, "in_features and out_features over 0", sizes)
    return Dense(
        path=path,
        inputs=sizes[0],
        outputs=sizes[1],
        bias=bool(config.get("bias", True)),
        activation=activation,
    )


def _check_chain(dense: Sequence[Dense]) -> None:
    for one, two in itertools.pairwise(dense):
        if one.outputs != two.inputs:
            expected = f"in_features {one.outputs}, the out_features of {one.path}"
            raise explain_pooling(two.path, expected, two.inputs)


def _config_path(path: str) -> str:
    return f"{path}/config.json" if path else "config.json"


def _read_object(folder: Path, path: str) -> dict[str, Any]:
    value = _read(folder, path)
    if not isinstance(value, dict):
        raise explain_pooling(path, "an object", value)
    return value


def _read(folder: Path, path: str) -> Any:
    try:
        return json.loads((folder / safe_path(path, origin=MODULES)).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedCheckpointError(
            f"sentence-similarity: expected {path} as sentence-transformers writes it, got "
            f"{error}. Ask for feature-extraction, whose token vectors the consumer pools."
        ) from error


def explain_pooling(path: str, expected: str, got: Any) -> UnsupportedCheckpointError:
    """Return the error of an unknown module: its file or folder, what was expected, what it has."""
    return UnsupportedCheckpointError(
        f"{path}: expected {expected}, got {got}. Ask for feature-extraction, and do the rest in "
        "the consumer."
    )
