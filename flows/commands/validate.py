"""``tracefleet validate``: run the gate on what is published, here and now."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from flows.commands.arguments import add_engine, add_output
from flows.commands.result import print_result
from flows.commands.validate_current import add_arguments, explain_misuse, validate_current
from flows.engine import settings

if TYPE_CHECKING:
    from flows.engine.record import Conversion

_MORE = ("channel", "allow_pickle", "trust_remote_code", "timeout_seconds")
_DESCRIPTION = """\
Three words, three things: `tracefleet verify` compares digests, `tracefleet check` runs the golden
samples, `validate` runs the gate.

With a CONVERSION, run what was compiled without a device (channel `candidate`, verdict
`unvalidated-on-device`) through the whole gate on this host's Neuron device, against the
checkpoint's eager outputs. What passes is published under the channel; what does not stays a
candidate, and its report is kept.

With a CONVERSION and --device, run a published jit conversion through the whole gate on that
device, against eager on the same one. The verdict is written beside the manifest, where readers
look for it.

With --current, run the whole gate again on every jit conversion that a channel points to, with this
host's versions and without tracing: the checkpoint is fetched at the conversion's own commit, and
eager's outputs are computed anew. What passes changes nothing. With --withdraw, what fails is
withdrawn, with the first failure as the reason. What could not be tried (its source is gone or has
changed, the network, another recipe) says nothing about a conversion, and is never withdrawn.
"""
_EPILOG = """\
exit codes: 0 validated, or validated already; 1 refused or failed, with --current also if one could
not be tried; 2 wrong usage; 130 interrupted.

examples:
  tracefleet validate s3://bucket/models/conversions/hf.org.name-1a2b3c4d/KEY
  tracefleet validate s3://…/KEY --device cuda
  tracefleet validate --current --store s3://bucket/models --withdraw
"""


def add_command(commands: Any) -> None:
    """Add ``validate`` to the command line."""
    parser = commands.add_parser(
        "validate",
        help="run the gate: on a candidate, on a further device, or again on what is current",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(command=_validate)
    add = parser.add_argument
    add("folder", metavar="CONVERSION", nargs="?", help="URL of its folder, as convert tells it")
    add("--conversion", metavar="URL", help="the older way to write CONVERSION")
    add("--current", action="store_true", help="the current conversions of a store's channel")
    add(
        "--device",
        help="prove a published conversion there, such as cuda; without an engine",
    )
    add(
        "--channel",
        default="latest",
        help="channel that points to it, or will (default: latest)",
    )
    add("--allow-pickle", action="store_true", help="read pickled weights")
    add("--trust-remote-code", action="store_true", help="run the checkpoint's code")
    add("--timeout-seconds", type=float, default=3600, help="limit for each step (default: 3600)")
    add_arguments(parser)
    add_engine(parser, "as for convert")
    add_output(parser)


def _validate(options: argparse.Namespace) -> int:
    given = (options.folder, options.conversion, options.current or None)
    if sum(one is not None for one in given) != 1:
        options.refuse("expected either a CONVERSION or --current")
    options.conversion = options.folder or options.conversion
    if misuse := explain_misuse(options):
        options.refuse(misuse)
    if options.current:
        return validate_current(options)
    more: dict[str, Any] = {name: getattr(options, name) for name in _MORE}
    if options.device is not None:
        return _prove_device(options, more)
    if settings.wants_prefect(options.engine):
        return print_result(options, _run_flow(options.conversion, more))
    from flows.convert import validate

    return print_result(options, validate(options.conversion, **more))


def _prove_device(options: argparse.Namespace, more: dict[str, Any]) -> int:
    from flows.prove_device import prove_device

    del more["channel"]  # a verdict moves none
    verdict = prove_device(options.conversion, options.device, **more)
    if options.json:
        print(verdict.to_bytes().decode(), end="")
        return 0
    errors = [length.max_rel_error for length in verdict.validation.lengths]
    print(f"device     {verdict.device}: {verdict.name}, torch {verdict.toolchain.torch}")
    print(f"verdict    {verdict.validation.verdict}, largest relative error {max(errors):.2e}")
    print(f"eager      {verdict.distance:.2e} from the CPU's")
    return 0


def _run_flow(conversion: str, more: dict[str, Any]) -> Conversion:
    settings.prepare()
    settings.announce_server()
    from flows.validate_conversion import validate_conversion

    result: Conversion = validate_conversion(conversion, **more)
    return result
