"""Command line of the pipeline: ``python -m flows convert|validate|plan|fleet|sweep|gc|…``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from flows.commands import convert, fleet, plan, schema, store, sweep, validate

EXIT_FAILED = 1  # argparse exits with 2 on wrong usage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if not options.quiet:
        for name in ("tasks", "flows", "tracefleet"):
            logging.getLogger(name).setLevel(logging.INFO)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        print(
            "interrupted; a conversion is published only if its channel line was printed",
            file=sys.stderr,
        )
        return 130
    except Exception as error:  # ours are typed; network errors keep their library's type
        logging.getLogger("flows").debug("traceback", exc_info=True)
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows",
        description="Convert checkpoints into validated artifacts, and look after their store.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (convert, validate, plan, fleet, sweep, store, schema):
        command.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
