"""Command line of the pipeline: ``python -m flows convert|validate|plan|fleet|sweep|gc|…``.

Nothing heavy is imported before it is needed: a repeat of a published request costs a second.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.commands import fleet, sweep
from flows.commands import plan as planning
from flows.commands import store as upkeep
from flows.commands import validate as validating
from flows.engine import settings as engine

if TYPE_CHECKING:
    from flows.engine.record import Conversion
    from tasks.request.conversion import ConversionRequest

EXIT_FAILED = 1  # argparse exits with 2 on wrong usage
_EPILOG = """\
exit codes: 0 published and validated, or published already; 1 refused or failed; 2 wrong usage;
130 interrupted.

examples:
  python -m flows convert --source hf://org/name --task fill-mask --lengths 32,128 --store ./store
  python -m flows convert --source file:///models/bert --task text-classification \\
      --lengths 64,256 --dtype float16 --store file:///srv/models
  python -m flows convert --fleet examples/fleet.yaml --entry minilm
  python -m flows convert --source hf://org/name --task fill-mask --lengths 128 \\
      --store s3://bucket/models
"""

#: Spelt out, since pydantic takes as long to import as the command to start; a test compares.
_COMPILING = {
    "neuronx": "target, auto_cast, auto_cast_type, optlevel, model_type, separate_weights, "
    "dynamic_batch, analyze",
    "neuron": "fast_math, fallback, min_coverage, separate_weights, dynamic_batch",
}


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
    convert = commands.add_parser(
        "convert",
        help="convert one checkpoint",
        description="Fetch, untie, trace, validate and publish one checkpoint.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.set_defaults(command=_convert)
    _add_request_arguments(convert)
    convert.add_argument(
        "--engine",
        choices=("auto", "prefect", "none"),
        default="auto",
        help="prefect: as a flow run (an embedded server where PREFECT_API_URL is not set); none: "
        "plain function calls; auto (default): prefect if PREFECT_API_URL is set, else none",
    )
    convert.add_argument("--json", action="store_true", help="print the result as JSON")
    convert.add_argument("--quiet", action="store_true", help="no progress on stderr")
    validating.add_command(commands, _tell)
    planning.add_command(commands)
    fleet.add_command(commands)
    sweep.add_command(commands)
    upkeep.add_commands(commands)
    schema = commands.add_parser("schema", help="print the JSON Schema of a request or fleet file")
    schema.add_argument("kind", choices=("request", "fleet"))
    schema.set_defaults(command=_schema, quiet=True)
    return parser


def _add_request_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", help="hf://org/name, file:///folder or s3://bucket/prefix")
    add("--revision", help="branch, tag or commit of a hub source")
    add("--task", help="Hugging Face task name, such as fill-mask (default: the checkpoint's own)")
    add("--lengths", help="standard lengths in tokens, such as 32,128,512")
    add("--store", help="root of the store, such as ./store or s3://bucket/models")
    add("--channel", help="channel that will point to the conversion (default: latest)")
    add("--backend", help="jit (default), neuronx (Inf2, Trn) or neuron (Inf1)")
    for backend, options in _COMPILING.items():
        told = f"how {backend} compiles, by {options}"
        add(f"--{backend}", type=_settings, metavar="NAME=VALUE,…", help=told)
    add("--dtype", help="float32 (default), float16, bfloat16 or int8 (dynamic quantisation)")
    add("--batch", type=int, help="rows in one traced call (default: 1)")
    add("--rtol", type=float, help="relative tolerance instead of the dtype's own")
    add(
        "--accept-tolerance-risk",
        action="store_true",
        default=None,
        help="let --rtol be looser than its ceiling: faults may pass",
    )
    add("--allow-pickle", action="store_true", default=None, help="read pickled weights")
    add("--trust-remote-code", action="store_true", default=None, help="run the checkpoint's code")
    add("--timeout-seconds", type=float, help="limit for each step (default: 3600)")
    add("--memory-limit-mb", type=int, help="limit for each child process (default: none)")
    add("--threads", type=int, help="torch threads (default: one for each core)")
    add("--fleet", help="take the request from a fleet file (path or s3:// URL); with --entry")
    add("--entry", help="name of a request in the fleet file; other options override its fields")


def _convert(options: argparse.Namespace) -> int:
    request = _request(options)
    prefect = engine.is_asked_for(options.engine)
    return _tell(options, _run_flow(request) if prefect else _run_plain(request))


def _tell(options: argparse.Namespace, result: Conversion) -> int:
    if options.json:
        print(json.dumps(_as_json(result), indent=2))
    else:
        from flows.commands.summary import summary

        print(summary(result))
    return 0


def _run_plain(request: ConversionRequest) -> Conversion:
    from flows.convert import convert

    return convert(request)


def _run_flow(request: ConversionRequest) -> Conversion:
    engine.prepare()
    if "PREFECT_API_URL" not in os.environ:
        logging.getLogger("flows").info("starting Prefect's embedded server (about 20 s)")
    from flows.convert_checkpoint import convert_checkpoint

    return convert_checkpoint(request)


def _request(options: argparse.Namespace) -> ConversionRequest:
    from tasks.errors import RequestError
    from tasks.fleet.spec import read_fleet
    from tasks.request.conversion import ConversionRequest, make_request

    fields: dict[str, Any] = {}
    if options.entry is not None and options.fleet is None:
        raise RequestError("--entry: expected --fleet FILE beside it, got none")
    if options.fleet is not None:
        fields = read_fleet(options.fleet).request_fields(options.entry or "")
    for name in ConversionRequest.model_fields:
        if (value := getattr(options, name)) is not None:
            fields[name] = _split_lengths(value) if name == "lengths" else value
    return make_request(fields)


def _settings(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"expected name=value between commas, got {text!r}")
    return {name: value for name, _, value in pairs}


def _split_lengths(text: str) -> list[int]:
    from tasks.errors import RequestError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(
            f"lengths: expected whole numbers between commas, such as 32,128; got {text!r}"
        ) from None


def _schema(options: argparse.Namespace) -> int:
    from tasks.fleet.schema import fleet_schema
    from tasks.request.conversion import ConversionRequest

    made = fleet_schema if options.kind == "fleet" else ConversionRequest.model_json_schema
    print(json.dumps(made(), indent=2))
    return 0


def _status(result: Conversion) -> str:
    if not result.validated:
        return "compiled before" if result.fresh else "compiled"
    return "already published" if result.fresh else "published"


def _as_json(result: Conversion) -> dict[str, Any]:
    return {
        "status": _status(result),
        "url": result.publication.url,
        "channel": result.publication.channel,
        "number": result.publication.number,
        "withdrawn": result.publication.withdrawn is not None,
        "withdrawn_number": result.publication.withdrawn,
        "manifest_digest": result.publication.manifest_digest,
        "report": result.report_url,
        "manifest": json.loads(result.manifest.to_bytes()),
    }


if __name__ == "__main__":
    sys.exit(main())
