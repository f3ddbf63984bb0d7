"""Nests of tensors: what a traced function takes and returns, and their TorchScript spelling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_ONLY = "Only Tensors and (possibly nested) lists and tuples of Tensors can be traced"


def spec_of(value: Any, *, dicts: bool = False) -> Any:
    """Return the nest's form: each tensor replaced by None.

    Args:
        value: a tensor, or a tuple or list of nests.
        dicts: whether plain dicts from strings are allowed too.

    Raises:
        RuntimeError: anything else, a dataclass for one.
    """
    if isinstance(value, Tensor):
        return None
    if type(value) in (tuple, list):
        return type(value)(spec_of(item, dicts=dicts) for item in value)
    if dicts and type(value) is dict and all(isinstance(key, str) for key in value):
        return {key: spec_of(item) for key, item in value.items()}
    raise RuntimeError(f"Type '{type(value).__name__}' cannot be traced. {_ONLY}")


def flatten(value: Any) -> list[Tensor]:
    """Return the tensors in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in flatten(item)]


def rebuild(spec: Any, tensors: Iterator[Tensor]) -> Any:
    """Put tensors into a form; the reverse of ``flatten``."""
    if spec is None:
        return next(tensors)
    if isinstance(spec, dict):
        return {key: rebuild(item, tensors) for key, item in spec.items()}
    return type(spec)(rebuild(item, tensors) for item in spec)


def type_source(spec: Any) -> str:
    """Spell the nest's TorchScript type."""
    if spec is None:
        return "Tensor"
    if isinstance(spec, dict):
        return "Dict[str, Tensor]"
    if isinstance(spec, list):
        return f"List[{type_source(spec[0])}]"
    return f"Tuple[{', '.join(type_source(item) for item in spec)}]"


def value_source(spec: Any, leaf: Callable[[], str]) -> str:
    """Spell an expression that builds the nest; ``leaf`` names the next tensor."""
    if spec is None:
        return leaf()
    if isinstance(spec, dict):
        pairs = (f"'{key}': {value_source(item, leaf)}" for key, item in spec.items())
        return f"{{{', '.join(pairs)}}}"
    items = [value_source(item, leaf) for item in spec]
    if isinstance(spec, list):
        return f"[{', '.join(items)}]"
    return f"({', '.join(items)},)"


def leaf_sources(spec: Any, name: str) -> list[str]:
    """Spell an expression for each tensor of an argument called ``name``."""
    if spec is None:
        return [name]
    return [leaf for i, item in enumerate(spec) for leaf in leaf_sources(item, f"{name}[{i}]")]


def dtype_name(tensor: Tensor) -> str:
    """Return ``int64`` for ``torch.int64``."""
    return str(tensor.dtype).removeprefix("torch.")


def described(tensors: list[Tensor]) -> list[list[Any]]:
    """Return shape and dtype of each tensor, as plain data."""
    return [[list(tensor.shape), dtype_name(tensor)] for tensor in tensors]


def zeros(description: list[Any]) -> Tensor:
    """Return a tensor of a description of ``described``."""
    shape, dtype = description
    return torch.zeros(shape, dtype=getattr(torch, dtype))
