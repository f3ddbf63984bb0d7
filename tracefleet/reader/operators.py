"""The operator of oneDNN that float32 bundles call, on builds of torch that lack it."""

from __future__ import annotations

import threading
from typing import Any

_NAME = "_linear_pointwise"
#: What keeps definitions alive, by namespace.
_defined: dict[str, Any] = {}
_lock = threading.Lock()
_SCHEMA = (
    f"{_NAME}(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor"
)


def provide_linear(namespace: str = "mkldnn") -> Any:
    """Define oneDNN's linear layer by torch's own, if this torch was built without it.

    Builds for Linux and Windows have it; those for macOS do not, and would open no bundle that
    calls it.

    Args:
        namespace: where it is looked for; another one for tests.

    Returns:
        What keeps the definition alive; None: it was there.
    """
    with _lock:
        if namespace not in _defined:
            _defined[namespace] = _define(namespace)
    return _defined[namespace]


def _define(namespace: str) -> Any:
    import torch

    if hasattr(getattr(torch.ops, namespace), _NAME):
        return None
    library: Any = torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(_SCHEMA)
    library.impl(_NAME, _run_plainly, "CompositeImplicitAutograd")
    return library


def _run_plainly(
    x: Any, weight: Any, bias: Any, attr: str, scalars: list[Any], algorithm: str | None
) -> Any:
    import torch

    return torch.nn.functional.linear(x, weight, bias)
