"""The pipeline's commands for ``tracefleet``, which finds ``add_commands`` by its entry point."""

from __future__ import annotations

from tracefleet.program import Commands
from tracefleet_pipeline.house import enter


def add_commands(commands: Commands) -> None:
    """Add the pipeline's commands to the program."""
    enter()
    from flows.commands import all as pipeline

    pipeline.add_commands(commands)
