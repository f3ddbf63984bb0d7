"""The pipeline's commands, for ``python -m flows`` and for the entry point of ``tracefleet``."""

from __future__ import annotations

from flows.commands import convert, fleet, plan, schema, store, sweep, validate
from tracefleet.program import Commands


def add_commands(commands: Commands) -> None:
    """Add every command of the pipeline."""
    for module in (convert, validate, plan, fleet, sweep, schema, store):
        module.add_command(commands)
