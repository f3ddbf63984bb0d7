"""``tracefleet schema``: the JSON Schema of a request or of a fleet file."""

from __future__ import annotations

import argparse
import json
from typing import Any

_EPILOG = """\
exit codes: 0 done; 2 wrong usage.

examples:
  tracefleet schema fleet > fleet.schema.json
  tracefleet schema request
"""


def add_command(commands: Any) -> None:
    """Add ``schema`` to the command line."""
    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of a request or fleet file",
        description="Print the JSON Schema of a request or of a fleet file, for editors and forms.",
        epilog=_EPILOG,
    )
    parser.add_argument("kind", choices=("request", "fleet"), help="which of the two")
    parser.set_defaults(command=_print_schema, quiet=True)


def _print_schema(options: argparse.Namespace) -> int:
    from tasks.fleet.schema import fleet_schema
    from tasks.request.conversion import ConversionRequest

    made = fleet_schema if options.kind == "fleet" else ConversionRequest.model_json_schema
    print(json.dumps(made(), indent=2))
    return 0
