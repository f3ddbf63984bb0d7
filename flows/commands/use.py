"""How a conversion is used: one line each for Python, C++ and Triton, right for that conversion."""

from __future__ import annotations

from flows.engine.record import Conversion
from tracefleet.choices import find_differences
from tracefleet.manifest import BUNDLE_PATH
from tracefleet.manifest_types import JIT
from tracefleet.published import find
from tracefleet.store import open_store
from tracefleet.triton.config import find_obstacle

_FOLDER = "file://"


def list_uses(result: Conversion) -> dict[str, str]:
    """Return the line for each way to use a conversion; empty where readers don't get it.

    Args:
        result: The conversion, as its channel points to it or not.
    """
    publication = result.publication
    current = publication.withdrawal is None and publication.rolled_back_number is None
    if not result.validated or not current:
        return {}
    store, _, folder = publication.url.partition("/conversions/")
    place = store.removeprefix(_FOLDER)
    address = publication.address or result.manifest.source
    chosen = _choose(result, store, address)
    uses = {"python": f"tracefleet.open({_quote(place, address, **chosen)})"}
    if result.manifest.variant.backend != JIT:
        return uses
    options = "".join(f" --{name} {value}" for name, value in chosen.items())
    if not store.startswith(_FOLDER):
        pull, local = f"tracefleet pull {place} {address} --to ./model{options}", "./model"
    else:
        pull, local = "", f"{place}/conversions/{folder}"
    cpp = f'torch::jit::load("{local}/{BUNDLE_PATH}")'
    uses["cpp"] = f"{cpp}, after: {pull}" if pull else cpp
    if find_obstacle(result.manifest.inputs, result.manifest.outputs) is None:
        copy = f"tracefleet pull {place} {address} --to ./repository --as triton{options}"
        uses["triton"] = f"{copy} && tritonserver --model-repository=./repository"
    return uses


def _choose(result: Conversion, store: str, address: str) -> dict[str, object]:
    """Return the arguments that tell the conversion from others at its address."""
    variant, channel = result.manifest.variant, result.publication.channel
    chosen: dict[str, object] = {}
    if channel != "latest":
        chosen["channel"] = channel
    if variant.backend != JIT:
        chosen["backend"] = variant.backend
    there = find(open_store(store), address, backend=variant.backend, channel=channel)
    for name in find_differences(list(there)):
        chosen[name] = getattr(variant, name)
    return chosen


def _quote(*arguments: object, **named: object) -> str:
    words = [_literal(one) for one in arguments]
    words += [f"{name}={_literal(value)}" for name, value in named.items()]
    return ", ".join(words)


def _literal(value: object) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'
