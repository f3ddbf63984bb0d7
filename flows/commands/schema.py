"""``python -m flows schema``: the JSON Schema of a request or of a fleet file."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_command(commands: Any) -> None:
    """Add ``schema`` to the command line."""
    parser = commands.add_parser("schema", help="print the JSON Schema of a request or fleet file")
    parser.add_argument("kind", choices=("request", "fleet"))
    parser.set_defaults(command=_print_schema, quiet=True)


def _print_schema(options: argparse.Namespace) -> int:
    from tasks.fleet.schema import fleet_schema
    from tasks.request.conversion import ConversionRequest

    made = fleet_schema if options.kind == "fleet" else ConversionRequest.model_json_schema
    print(json.dumps(made(), indent=2))
    return 0
