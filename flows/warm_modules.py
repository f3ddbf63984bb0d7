"""Keep our imported modules for a forked run, but only those that it would have imported itself.

Prefect runs a flow from the folder that it was deployed from, and that folder comes first on
``sys.path``. It may be another checkout than the warm server's. So a fork looks each of our modules
up again, as a fresh process would, and is handed the one that is there only if it is that file.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from flows.warm_key import PACKAGES


class _Kept(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what the path finder finds, and loads it from what was imported before."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self._modules = modules

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        kept = self._modules.get(name)
        found = PathFinder.find_spec(name, path) if kept is not None else None
        if kept is None or found is None or found.origin != _origin(kept):
            return None
        return ModuleSpec(name, self, origin=found.origin, is_package=hasattr(kept, "__path__"))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = self._modules[spec.name]
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # It has run already; the import system has given it our spec in exchange for its own.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def look_up_again() -> None:
    """Have every further import of our packages go by this process's ``sys.path``."""
    kept = {name: module for name, module in sys.modules.items() if _ours(name)}
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, _Kept(kept))


def _ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


def _origin(module: ModuleType) -> str | None:
    return module.__spec__.origin if module.__spec__ is not None else None
