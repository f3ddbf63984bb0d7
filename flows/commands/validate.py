"""``python -m flows validate``: run a candidate on this host's device, publish it if it is right.

``flows.__main__`` parses the arguments.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.engine import settings as engine

if TYPE_CHECKING:
    from flows.engine.record import Conversion

_MORE = ("channel", "allow_pickle", "trust_remote_code", "timeout_seconds")
_DESCRIPTION = """\
Run what was compiled without a device (channel `candidate`, verdict `unvalidated-on-device`)
through the whole gate on this host's Neuron device, against the checkpoint's eager outputs. What
passes is published under the channel; what does not stays a candidate, and its report is kept.
"""
_EPILOG = """\
exit codes: 0 validated, or validated already; 1 refused or failed; 2 wrong usage; 130 interrupted.

example:
  python -m flows validate --conversion s3://bucket/models/conversions/hf.org.name-1a2b3c4d/KEY
"""


def add_command(commands: Any, run: Callable[[argparse.Namespace, Conversion], int]) -> None:
    """Add ``validate`` to the command line; ``run`` prints its result."""
    parser = commands.add_parser(
        "validate",
        help="run a Neuron candidate on this host's device and publish it if it is right",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=lambda options: run(options, _validated(options)))
    add = parser.add_argument
    add("--conversion", required=True, metavar="URL", help="of its folder, as convert tells it")
    add("--channel", default="latest", help="channel that will point to it (default: latest)")
    add("--allow-pickle", action="store_true", help="read pickled weights")
    add("--trust-remote-code", action="store_true", help="run the checkpoint's code")
    add("--timeout-seconds", type=float, default=3600, help="limit for each step (default: 3600)")
    add(
        "--engine",
        choices=("auto", "prefect", "none"),
        default="auto",
        help="as for convert",
    )
    add("--json", action="store_true", help="print the result as JSON")
    add("--quiet", action="store_true", help="no progress on stderr")


def _validated(options: argparse.Namespace) -> Conversion:
    more: dict[str, Any] = {name: getattr(options, name) for name in _MORE}
    if not engine.is_asked_for(options.engine):
        from flows.convert import validate

        return validate(options.conversion, **more)
    engine.prepare()
    if "PREFECT_API_URL" not in os.environ:
        logging.getLogger("flows").info("starting Prefect's embedded server (about 20 s)")
    from flows.validate_conversion import validate_conversion

    result: Conversion = validate_conversion(options.conversion, **more)
    return result
