"""Sentence embeddings in the graph: a transformer with its checkpoint's pooling.

Without it every consumer has to repeat the pooling in its own language, and one that pools
otherwise gets wrong neighbours. The arithmetic follows sentence-transformers 6.2, in which padding
may be on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UnsafeCheckpointError, UnsupportedCheckpointError, first_line
from tasks.model.pooling import OUTPUT, Dense, explain_pooling, read_pooling
from tasks.model.weights import compare_with_files

if TYPE_CHECKING:
    import torch
    from torch import nn

#: sentence-transformers clamps sums of the mask by this.
_SMALLEST_SUM = 1e-9


def check_poolable(architecture: str, inputs: Sequence[str]) -> None:
    """Refuse a model whose token vectors can't be pooled by its attention mask.

    Raises:
        UnsupportedCheckpointError: It takes no mask, or its vectors are a decoder's.
    """
    decoder = [name for name in inputs if name.startswith("decoder_")]
    if "attention_mask" not in inputs or decoder:
        raise UnsupportedCheckpointError(
            f"{architecture}: expected an encoder with an attention_mask to pool by, got a model "
            f"that takes {', '.join(inputs)}. Ask for feature-extraction."
        )


def sentence_embedder(model: Any, folder: Path, *, allow_pickle: bool = False) -> Any:
    """Wrap a model so that it returns ``sentence_embedding``, shape ``(batch, width)``.

    Args:
        model: Loaded transformer.
        folder: Folder of its checkpoint, with ``modules.json``.
        allow_pickle: Whether pickled weights of a Dense module may be read.

    Raises:
        UnsupportedCheckpointError: See ``read_pooling``; weights that don't fit their config.
        UnsafeCheckpointError: A Dense module has pickled weights alone, or damaged ones.
    """
    from torch import nn

    how = read_pooling(folder)
    projections = [load_dense(folder, one, model.dtype, allow_pickle) for one in how.dense]

    class SentenceEmbedder(nn.Module):
        """A transformer with its checkpoint's pooling."""

        # The name stands in every archive: no move of this file may change the bytes.
        __module__ = "tracefleet.archive"

        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.config = model.config
            self.dense = nn.Sequential(*projections)

        def forward(self, return_dict: bool = True, **feed: Any) -> dict[str, torch.Tensor]:
            tokens = self.inner(**feed, return_dict=return_dict)[0]
            vectors = self.dense(pool_tokens(tokens, feed["attention_mask"], how.modes))
            return {OUTPUT: nn.functional.normalize(vectors, dim=-1) if how.normalise else vectors}

    module: nn.Module = SentenceEmbedder()
    return module.eval()


def load_dense(folder: Path, dense: Dense, dtype: torch.dtype, allow_pickle: bool) -> nn.Module:
    """Return one projection with the weights of its files.

    Raises:
        UnsupportedCheckpointError: The weights are not those that its config describes.
        UnsafeCheckpointError: They are pickled, damaged, or changed by loading.
    """
    from torch import nn

    module = nn.Sequential()
    module.add_module("linear", nn.Linear(dense.inputs, dense.outputs, bias=dense.bias))
    module.add_module("activation", getattr(nn, dense.activation)())
    stored = _load_weights(folder / dense.path, allow_pickle)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if got != expected:
        raise explain_pooling(dense.path, f"the weights {expected} of its config", got)
    module.load_state_dict(stored)
    module.to(dtype)
    compare_with_files(module, folder / dense.path)
    return module


def _load_weights(folder: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
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
        f"again, or set allow_pickle (--allow-pickle) where there is {pickled.name}."
    )


def pool_tokens(tokens: torch.Tensor, mask: torch.Tensor, modes: Sequence[str]) -> torch.Tensor:
    """Pool token vectors as sentence-transformers does.

    Args:
        tokens: Token vectors of shape ``(batch, length, width)``.
        mask: 1 for tokens that count, shape ``(batch, length)``; each row has one.
        modes: Some of ``MODES``, in the order of their vectors in the result.

    Returns:
        Shape ``(batch, width × modes)``.
    """
    import torch

    return torch.cat([_pool(tokens, mask, mode) for mode in modes], dim=-1)


def _pool(tokens: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    import torch

    # First token that the mask shows: with padding on the left it is not the first position.
    first = mask.argmax(dim=1, keepdim=True)
    positions = torch.ones_like(mask).cumsum(dim=1)
    if mode == "cls":
        return _take_tokens(tokens, first)
    if mode == "lasttoken":
        return _take_tokens(tokens, (mask * positions).argmax(dim=1, keepdim=True))
    if mode == "max":
        hidden = torch.finfo(tokens.dtype).min
        return tokens.masked_fill(mask.unsqueeze(-1) == 0, hidden).max(dim=1).values
    weights = mask * (positions - first) if mode == "weightedmean" else mask
    return _mean(tokens, weights, rooted=mode == "mean_sqrt_len_tokens")


def _mean(tokens: torch.Tensor, weights: torch.Tensor, *, rooted: bool) -> torch.Tensor:
    import torch

    # Half precision is summed in float32: 500 tokens lose three digits in bfloat16.
    wide = torch.float32 if tokens.dtype in (torch.float16, torch.bfloat16) else tokens.dtype
    shares = weights.unsqueeze(-1).to(wide)
    count = shares.sum(dim=1).clamp(min=_SMALLEST_SUM)
    total = (tokens.to(wide) * shares).sum(dim=1)
    return (total / (count.sqrt() if rooted else count)).to(tokens.dtype)


def _take_tokens(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return one token of each row, by position of shape ``(batch, 1)``."""
    index = positions.unsqueeze(-1).expand(-1, 1, tokens.shape[2])
    return tokens.gather(1, index).squeeze(1)
