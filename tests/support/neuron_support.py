"""Conversions on the contract double: a store that may hold them, requests, and machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tasks.publish.doubles import TEST_STORE
from tasks.request.conversion import ConversionRequest, make_request

#: What goes on the path for the double's packages to be found.
FOLDER = Path(__file__).parent.parent / "neuron_double"
sys.path.insert(0, str(FOLDER))
import neuron_double  # noqa: E402
from neuron_double import flags  # noqa: E402

sys.path.remove(str(FOLDER))

#: A host without a device, an Inf2 one and an Inf1 one, as arguments of ``on``.
NO_DEVICE = {"device": "none"}
on = neuron_double.configured
__all__ = ["flags"]  # beside what is defined here
#: The double's versions, by the names of its settings module.
versions = neuron_double.settings


def store_for_doubles(folder: Path) -> str:
    """Return the URL of a store that takes what the double made."""
    store = folder / "store"
    store.mkdir(parents=True, exist_ok=True)
    (store / TEST_STORE).write_text("A store of tests: what the double made may lie here.\n")
    return f"file://{store}"


def request(checkpoint: Path, store: str, **fields: Any) -> ConversionRequest:
    """Return a request for Neuron; at two lengths, for Inf2, unless told otherwise."""
    return make_request(
        {
            "source": f"file://{checkpoint}",
            "task": "text-classification",
            "lengths": [8, 16],
            "backend": "neuronx",
            "store": store,
            "threads": 1,  # models this small only wait for a second one
            **fields,
        }
    )


def names(store: str, part: str) -> list[str]:
    """Return the files below one part of a store, relative to it."""
    root = Path(store.removeprefix("file://")) / part
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
