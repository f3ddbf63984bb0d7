"""``tracefleet convert``: convert one checkpoint, with or without Prefect.

Nothing heavy is imported before it is needed: a repeat of a published request costs a second.
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from flows.commands.arguments import add_engine, add_output
from flows.commands.ending import ending_soon
from flows.commands.result import print_result
from flows.engine import settings
from tracefleet.program import UsageError
from tracefleet.spelling import option, read_backend, read_dtype, read_task

if TYPE_CHECKING:
    from flows.engine.record import Conversion
    from tasks.request.conversion import ConversionRequest

logger = logging.getLogger(__name__)

_EPILOG = """\
exit codes: 0 published and validated, or published already; 1 refused, failed, or withdrawn
since; 2 wrong usage, such as an unknown task; 130 interrupted.

examples:
  tracefleet convert ./my-model --name support-classifier
  tracefleet convert org/name --task fill-mask --lengths 32,128 --store ./store
  tracefleet convert /models/bert --lengths 64,256 --dtype float16 --store file:///srv/models
  tracefleet convert org/name --lengths 128 --store s3://bucket/models
  tracefleet convert --fleet examples/fleet.yaml --entry minilm
"""

#: Spelt out, since pydantic takes as long to import as the command to start; a test compares.
COMPILING = {
    "neuronx": "target, auto_cast, auto_cast_type, optlevel, model_type, separate_weights, "
    "dynamic_batch, analyze, lnc",
    "neuron": "fast_math, fallback, min_coverage, separate_weights, dynamic_batch",
}


def add_command(commands: Any) -> None:
    """Add ``convert`` to the command line."""
    parser = commands.add_parser(
        "convert",
        help="convert one checkpoint",
        description="Fetch, untie, trace, validate and publish one checkpoint.",
        epilog=_EPILOG,
    )
    parser.set_defaults(command=_convert)
    _add_request_arguments(parser)
    add_engine(
        parser,
        "prefect: as a flow run (an embedded server where PREFECT_API_URL is not set); none: "
        "plain function calls; auto (default): prefect if PREFECT_API_URL is set, else none",
    )
    add_output(parser)


def _add_request_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="org/name of the hub, a folder or s3://bucket/…")
    add("--source", help="the older way to write MODEL")
    add("--revision", help="branch, tag or commit of a hub source (default: its default branch)")
    add(
        "--task",
        type=option(read_task, "--task"),
        help="Hugging Face task name, such as fill-mask (default: the checkpoint's own)",
    )
    add(
        "--lengths",
        help="standard lengths in tokens, such as 32,128,512 (default: powers of two from 32 up to "
        "what model and tokenizer allow, at most 512; an image's or a sound's size)",
    )
    add("--store", help="root of the store, ./folder or s3://bucket/prefix (default: ./store)")
    add("--channel", help="channel that will point to the conversion (default: latest)")
    add(
        "--name",
        dest="publish_as",
        metavar="NAME",
        help="name that readers open the conversion by, such as support-classifier (default: none)",
    )
    add(
        "--backend",
        type=option(read_backend, "--backend"),
        help="jit, neuronx (Inf2, Trn) or neuron (Inf1) (default: jit)",
    )
    for backend, options in COMPILING.items():
        text = f"how {backend} compiles, by {options} (default: its own)"
        add(f"--{backend}", type=_settings, metavar="NAME=VALUE,…", help=text)
    add(
        "--dtype",
        type=option(read_dtype, "--dtype"),
        help="float32, float16, bfloat16 or int8 (dynamic quantisation) (default: float32)",
    )
    add("--batch", type=int, help="rows in one traced call (default: 1)")
    add("--generation", help="of text2text-generation: own, greedy or none (default: own)")
    add("--rtol", type=float, help="relative tolerance (default: the dtype's own)")
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
    from tasks.errors import RequestError

    try:
        request = _request(options)
    except RequestError as error:
        raise UsageError(str(error)) from None
    if settings.wants_prefect(options.engine):
        return print_result(options, _run_flow(request))
    from flows.convert import convert

    return print_result(options, convert(request))


def _run_flow(request: ConversionRequest) -> Conversion:
    settings.prepare()
    settings.announce_server()
    from flows.convert_checkpoint import convert_checkpoint

    with ending_soon(pools=False):
        return convert_checkpoint(request)


def _request(options: argparse.Namespace) -> ConversionRequest:
    from tasks.fleet.spec import read_fleet
    from tasks.request.conversion import ConversionRequest, make_request

    _check_source(options)
    fields: dict[str, Any] = {}
    if options.fleet is not None:
        fields = read_fleet(options.fleet).request_fields(options.entry or "")
    for name in ConversionRequest.model_fields:
        if (value := getattr(options, name)) is not None:
            fields[name] = _split_lengths(value) if name == "lengths" else value
    request = make_request(fields)
    if options.source is not None and "://" not in options.source:
        logger.info("source: %s", _explain_source(options.source, request.source))
    return request


def _explain_source(given: str, source: str) -> str:
    """Say which of the things that a bare name may stand for was taken."""
    if source.startswith("hf://"):
        return f"{source}, since there is no folder {given} here"
    if given.startswith((".", "/", "~")):
        return source
    return f"the folder {source}; hf://{given} is the hub's"


def _check_source(options: argparse.Namespace) -> None:
    """Make ``source`` of the positional word, and refuse what doesn't fit together."""
    if options.entry is not None and options.fleet is None:
        raise UsageError("--entry: expected --fleet FILE beside it, got none")
    if options.model is not None and options.source is not None:
        raise UsageError("expected MODEL or --source, got both")
    options.source = options.model or options.source
    if options.source is None and options.fleet is None:
        raise UsageError("expected a MODEL, got none: tracefleet convert org/name, or a folder")


def _settings(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"expected name=value between commas, got {text!r}")
    return {name: value for name, _, value in pairs}


def _split_lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"lengths: expected whole numbers between commas, such as 32,128; got {text!r}"
        ) from None
