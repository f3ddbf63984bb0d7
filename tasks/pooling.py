"""Sentence embeddings: a checkpoint's own pooling, in the graph.

sentence-transformers writes beside a checkpoint how token vectors become one: ``modules.json``
names the modules in order, ``1_Pooling/config.json`` the kind of pooling, ``2_Dense`` a projection
with weights of its own. Without them every consumer has to repeat that in its own language, and one
that pools otherwise gets wrong neighbours. The arithmetic follows sentence-transformers 6.2, in
which padding may be on either side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UnsafeCheckpointError, UnsupportedCheckpointError, first_line
from tasks.sources.base import safe_path
from tasks.weights import compare_with_files

if TYPE_CHECKING:
    import torch
    from torch import nn

OUTPUT = "sentence_embedding"
MODULES = "modules.json"
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
#: sentence-transformers clamps sums of the mask by this.
_SMALLEST_SUM = 1e-9


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A projection of the pooled vector.

    Attributes:
        path: folder with its weights.
        inputs: width of what it takes.
        outputs: width of what it gives.
        bias: whether it adds one.
        activation: class of ``torch.nn``.
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
        modes: in the order in which their vectors are concatenated.
        dense: projections after it, in order.
        normalise: whether the result is divided by its Euclidean length.
    """

    modes: tuple[str, ...]
    dense: tuple[Dense, ...] = ()
    normalise: bool = False


def pools_sentences(folder: Path) -> bool:
    """Tell whether the checkpoint says how its sentences are pooled, in a way known here or not.

    Raises:
        UnsupportedCheckpointError: ``modules.json`` is damaged.
    """
    exists = (folder / MODULES).is_file()
    return exists and "Pooling" in [kind for kind, _ in _modules(folder)]


def read_pooling(folder: Path) -> Pooling:
    """Read ``modules.json`` and the configs of the modules that it names; no weights.

    Raises:
        UnsupportedCheckpointError: there is none, or a module or mode that is not known here.
        UnsafeCheckpointError: a module's folder is outside the checkpoint.
    """
    modules = _modules(folder)
    kinds = [kind for kind, _ in modules]
    normalise = kinds[-1] == "Normalize"
    middle = kinds[2:-1] if normalise else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
        expected = "Transformer, Pooling, any number of Dense and at most one Normalize, in order"
        raise _unsupported(MODULES, expected, kinds)
    if modules[0][1]:
        raise _unsupported(MODULES, "the Transformer beside it", f"its path {modules[0][1]!r}")
    dense = tuple(_read_dense(folder, path) for kind, path in modules if kind == "Dense")
    _check_chain(dense)
    return Pooling(modes=_read_modes(folder, modules[1][1]), dense=dense, normalise=normalise)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return kind and folder of every module; one of the checkpoint's own has its full name."""
    listed = _read(folder, MODULES)
    if not isinstance(listed, list) or not listed or not all(isinstance(m, dict) for m in listed):
        raise _unsupported(MODULES, "a list of modules", listed)
    return [(_kind(str(one.get("type"))), str(one.get("path") or "")) for one in listed]


def _kind(name: str) -> str:
    package, _, last = name.rpartition(".")
    return last if package.startswith("sentence_transformers.") else name


def _read_modes(folder: Path, path: str) -> tuple[str, ...]:
    config = _read_object(folder, f"{path}/config.json")
    # An INSTRUCTOR's prompt is read but not pooled, and the graph is not told where it ends.
    if config.get("include_prompt", True) is not True:
        got = f"include_prompt {config['include_prompt']}"
        raise _unsupported(path, "a pooling over every token, the prompt's as well", got)
    old = {key: on for key, on in config.items() if key.startswith("pooling_mode_")}
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_KEYS.items() if old.get(key)]
        modes += [key for key, on in old.items() if on and key not in _OLD_KEYS]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(mode in MODES for mode in modes):
        raise _unsupported(path, f"one or more of {', '.join(MODES)}", modes or "none of them")
    return tuple(modes)


def _read_dense(folder: Path, path: str) -> Dense:
    config = _read_object(folder, f"{path}/config.json")
    package, _, activation = str(config.get("activation_function")).rpartition(".")
    if not package.startswith("torch.nn") or activation not in _ACTIVATIONS:
        expected = f"an activation_function of torch.nn, one of {', '.join(_ACTIVATIONS)}"
        raise _unsupported(path, expected, config.get("activation_function"))
    names = {config.get(f"module_{side}_name") for side in ("input", "output")}
    if config.get("use_residual") or names - {None, OUTPUT}:
        got = "use_residual" if config.get("use_residual") else sorted(map(str, names))
        raise _unsupported(path, "one linear layer on the pooled vector", got)
    sizes = [config.get("in_features"), config.get("out_features")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise _unsupported(path, "in_features and out_features over 0", sizes)
    return Dense(
        path=path,
        inputs=int(sizes[0]),
        outputs=int(sizes[1]),
        bias=bool(config.get("bias", True)),
        activation=activation,
    )


def _check_chain(dense: Sequence[Dense]) -> None:
    for one, two in zip(dense, dense[1:], strict=False):
        if one.outputs != two.inputs:
            expected = f"in_features {one.outputs}, the out_features of {one.path}"
            raise _unsupported(two.path, expected, two.inputs)


def _read_object(folder: Path, path: str) -> dict[str, Any]:
    value = _read(folder, path)
    if not isinstance(value, dict):
        raise _unsupported(path, "an object", value)
    return value


def _read(folder: Path, path: str) -> Any:
    try:
        return json.loads((folder / safe_path(path, told_by=MODULES)).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedCheckpointError(
            f"sentence-similarity: expected {path} as sentence-transformers writes it, got "
            f"{error}. Ask for feature-extraction, whose token vectors the consumer pools."
        ) from error


def _unsupported(path: str, expected: str, got: Any) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        f"{path}: expected {expected}, got {got}. Ask for feature-extraction, and do the rest in "
        "the consumer."
    )


def check_poolable(architecture: str, inputs: Sequence[str]) -> None:
    """Refuse a model whose token vectors can't be pooled by its attention mask.

    Raises:
        UnsupportedCheckpointError: it takes no mask, or its vectors are a decoder's.
    """
    decoder = [name for name in inputs if name.startswith("decoder_")]
    if "attention_mask" not in inputs or decoder:
        raise UnsupportedCheckpointError(
            f"{architecture}: expected an encoder with an attention_mask to pool by, got a model "
            f"that takes {', '.join(inputs)}. Ask for feature-extraction."
        )


def sentence_embedder(model: Any, folder: Path, *, allow_pickle: bool = False) -> Any:
    """Wrap a model so that it gives ``sentence_embedding``, shape ``(batch, width)``.

    Args:
        model: the transformer, loaded.
        folder: its checkpoint, with ``modules.json``.
        allow_pickle: whether pickled weights of a Dense module may be read.

    Raises:
        UnsupportedCheckpointError: see ``read_pooling``; weights that don't fit their config.
        UnsafeCheckpointError: a Dense module has pickled weights alone, or damaged ones.
    """
    from torch import nn

    how = read_pooling(folder)
    projections = [load_dense(folder, one, model.dtype, allow_pickle) for one in how.dense]

    class SentenceEmbedder(nn.Module):
        """A transformer with its checkpoint's pooling."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.config = model.config
            self.dense = nn.Sequential(*projections)

        def set_attn_implementation(self, name: str) -> None:
            self.inner.set_attn_implementation(name)

        def forward(self, return_dict: bool = True, **feed: Any) -> dict[str, torch.Tensor]:
            tokens = self.inner(**feed, return_dict=return_dict)[0]
            vectors = self.dense(pooled(tokens, feed["attention_mask"], how.modes))
            return {OUTPUT: nn.functional.normalize(vectors, dim=-1) if how.normalise else vectors}

    module: nn.Module = SentenceEmbedder()
    return module.eval()


def load_dense(folder: Path, dense: Dense, dtype: torch.dtype, allow_pickle: bool) -> nn.Module:
    """Return one projection with the weights of its files.

    Raises:
        UnsupportedCheckpointError: the weights are not those that its config describes.
        UnsafeCheckpointError: they are pickled, or not what the file holds once they are loaded.
    """
    from torch import nn

    module = nn.Sequential()
    module.add_module("linear", nn.Linear(dense.inputs, dense.outputs, bias=dense.bias))
    module.add_module("activation", getattr(nn, dense.activation)())
    stored = _stored(folder / dense.path, allow_pickle)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if got != expected:
        raise _unsupported(dense.path, f"the weights {expected} of its config", got)
    module.load_state_dict(stored)
    module.to(dtype)
    compare_with_files(module, folder / dense.path)
    return module


def _stored(folder: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safe.is_file():
            return dict(load_file(safe))
        if allow_pickle and pickled.is_file():
            return dict(torch.load(pickled, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged in one of many ways
        raise UnsafeCheckpointError(
            f"{folder.name}: expected weights that load, got {type(error).__name__}: "
            f"{first_line(error)}. The file is damaged; fetch the checkpoint again."
        ) from error
    raise UnsafeCheckpointError(
        f"{folder.name}: expected {safe.name}, got none. Save it with sentence-transformers "
        f"again, or set allow_pickle where there is {pickled.name}."
    )


def pooled(tokens: torch.Tensor, mask: torch.Tensor, modes: Sequence[str]) -> torch.Tensor:
    """Pool token vectors as sentence-transformers does.

    Args:
        tokens: shape ``(batch, length, width)``.
        mask: 1 for tokens that count, shape ``(batch, length)``; each row has one.
        modes: of ``MODES``, in the order of their vectors in the result.

    Returns:
        Shape ``(batch, width × modes)``.
    """
    import torch

    return torch.cat([_pool(tokens, mask, mode) for mode in modes], dim=-1)


def _pool(tokens: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    import torch

    # The first token that is shown: with padding on the left it is not the first position.
    first = mask.argmax(dim=1, keepdim=True)
    positions = torch.ones_like(mask).cumsum(dim=1)
    if mode == "cls":
        return _at(tokens, first)
    if mode == "lasttoken":
        return _at(tokens, (mask * positions).argmax(dim=1, keepdim=True))
    if mode == "max":
        hidden = torch.finfo(tokens.dtype).min
        return tokens.masked_fill(mask.unsqueeze(-1) == 0, hidden).max(dim=1).values
    weights = mask * (positions - first) if mode == "weightedmean" else mask
    return _mean(tokens, weights, rooted=mode == "mean_sqrt_len_tokens")


def _mean(tokens: torch.Tensor, weights: torch.Tensor, *, rooted: bool) -> torch.Tensor:
    """Sum half precision in float32: 500 tokens lose three digits in bfloat16."""
    import torch

    wide = torch.float32 if tokens.dtype in (torch.float16, torch.bfloat16) else tokens.dtype
    shares = weights.unsqueeze(-1).to(wide)
    count = shares.sum(dim=1).clamp(min=_SMALLEST_SUM)
    total = (tokens.to(wide) * shares).sum(dim=1)
    return (total / (count.sqrt() if rooted else count)).to(tokens.dtype)


def _at(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return one token of each row, by position of shape ``(batch, 1)``."""
    index = positions.unsqueeze(-1).expand(-1, 1, tokens.shape[2])
    return tokens.gather(1, index).squeeze(1)
