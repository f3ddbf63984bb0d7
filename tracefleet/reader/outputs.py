"""What a call of a model returns: named results, and what the call cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a bundle, for whoever counts: ``model.on_run`` is called with it.

    Attributes:
        rows: number of rows.
        tokens: number of tokens that are no padding.
        padded: share of the computed positions that are padding, from 0 to 1.
        seconds: how long the run took.
    """

    rows: int
    tokens: int
    padded: float
    seconds: float


class Outputs(Mapping[str, Any]):
    """Named results of one call: ``out["logits"]``, ``out.logits`` and ``out[0]`` are the same.

    A read-only mapping in the order of the manifest. A name that is also a method of mappings
    (``keys``, ``values``, ``items``, ``get``) is reached by key only.
    """

    __slots__ = ("_named",)
    _named: dict[str, Any]

    def __init__(self, named: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_named", dict(named))

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return list(self._named.values())[key]
        try:
            return self._named[key]
        except KeyError:
            raise KeyError(f"expected one of {list(self._named)}, got {key!r}") from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._named:
            raise AttributeError(f"no output {name!r}; expected one of {list(self._named)}")
        return self._named[name]

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"outputs are read-only; can't set {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    # Two sets of arrays have no single truth value to compare by.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[type[Outputs], tuple[dict[str, Any]]]:
        return Outputs, (self._named,)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(value.shape)}" for name, value in self.items())
        return f"Outputs({shapes})"
