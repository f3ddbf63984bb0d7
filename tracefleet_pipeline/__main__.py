"""``python -m tracefleet_pipeline …``: the pipeline's commands alone; ``api`` starts it."""

from __future__ import annotations

import sys

from tracefleet.program import Program
from tracefleet_pipeline.cli import add_commands


def main() -> int:
    """Run one command and return its exit code."""
    program = Program(
        "python -m tracefleet_pipeline",
        description="The pipeline's commands of tracefleet.",
        epilog="The same commands are in the program tracefleet.",
    )
    add_commands(program.commands)
    return program.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
