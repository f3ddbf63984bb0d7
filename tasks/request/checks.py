"""Helpers of the request's model: its form, its checks, its backend's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.backends.options import NeuronOptions, NeuronxOptions, Options


def number_fields(schema: dict[str, Any]) -> None:
    """Number the fields: Prefect's form sorts them by their positions."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


def call_check(check: Any, value: str | Path) -> str:
    """Call a check, with its error as the ValueError that pydantic expects."""
    try:
        return str(check(value))
    except Exception as error:
        raise ValueError(str(error)) from error


def choose_options(
    backend: str, neuronx: NeuronxOptions | None, neuron: NeuronOptions | None
) -> Options | None:
    """Return the options of a backend's compiler, by default its own; None: it has none."""
    if backend == "neuronx":
        return neuronx or NeuronxOptions()
    if backend == "neuron":
        return neuron or NeuronOptions()
    return None
