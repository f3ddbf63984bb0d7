"""``python -m flows``: an alias of ``tracefleet``, with the pipeline's commands alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flows.commands.all import add_commands
from tracefleet.program import Program

_EPILOG = "The same commands are in the program tracefleet, where the pipeline is installed."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return make_program().run(sys.argv[1:] if arguments is None else arguments)


def make_program() -> Program:
    """Return the parser with the pipeline's commands."""
    program = Program(
        "python -m flows",
        description="Convert checkpoints into validated artifacts, and look after their store.",
        epilog=_EPILOG,
    )
    add_commands(program.commands)
    return program


if __name__ == "__main__":
    sys.exit(main())
