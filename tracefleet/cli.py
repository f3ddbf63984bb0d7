"""The command ``tracefleet``: list a store, verify it, copy from it, run a model, measure it.

Exit codes: 0 done, 1 damage or an error (reported on standard error), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from tracefleet import __version__, check_command, commands, run_command
from tracefleet.bench.command import DESCRIPTION, add_arguments, bench_command
from tracefleet.errors import ArtifactError
from tracefleet.show_command import show_command

Command = Callable[[argparse.Namespace], int]
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_SUMMARIES = {
    "list": "List every channel with its current conversion.",
    "show": "Print the facts of one conversion, withdrawn or not, from its checked manifest.",
    "verify": "Compare every byte of current conversions with their digests.",
    "pull": "Copy one conversion's files, checked, into a new folder, or print URLs for them.",
    "run": "Answer texts by one conversion, or run it on token ids.",
    "check": "Run one conversion's golden samples here, and compare with what eager computed.",
    "bench": "Compare conversions with transformers and ONNX Runtime on this machine.",
}


_EPILOG = """\
exit codes: 0 done, 1 damage or an error (see standard error), 2 wrong usage

environment:
  AWS_*                the standard AWS configuration, for s3:// stores
  TRACEFLEET_CACHE     folder that downloads are kept in (~/.cache/tracefleet)
  TRACEFLEET_CACHE_GB  limit of its size (50); the least recently used files are removed first
  TRACEFLEET_OFFLINE   1: open conversions from the cache, without a network
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is commands.pull_command and (arguments.dest is None) != arguments.presign:
        parser.error("pull: expected either a DEST folder or --presign")
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reading end of the pipe (head, less) was closed: keep Python from reporting at exit
        # that it can't flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ArtifactError, ValueError, ImportError, OSError) as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 1
    return code


def _explain(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{error}. Install the packages that open models: pip install 'tracefleet[run]'"
    return str(error)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tracefleet",
        description="Open validated conversions of Hugging Face checkpoints from a store.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(subparsers)
    _add_source(_add(subparsers, "show", show_command))
    verify = _add(subparsers, "verify", commands.verify_command, channel=None)
    _add_source(verify, optional=True)
    _add_pull(subparsers)
    _add_run(subparsers)
    _add_check(subparsers)
    _add_bench(subparsers)
    return parser


def _add(
    subparsers: Subparsers, name: str, command: Command, *, channel: str | None = "latest"
) -> argparse.ArgumentParser:
    """Add a command with the options that most commands have."""
    parser = _add_bare(subparsers, name, command, _SUMMARIES[name])
    _add_selection(parser, channel)
    return parser


def _add_bare(
    subparsers: Subparsers, name: str, command: Command, description: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=_SUMMARIES[name], description=description)
    parser.set_defaults(command=command)
    parser.add_argument("store", metavar="STORE", help="a folder, file:///… or s3://bucket/prefix")
    return parser


def _add_list(subparsers: Subparsers) -> None:
    parser = _add(subparsers, "list", commands.list_command, channel=None)
    parser.add_argument("--limit", type=_parse_rows, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--after",
        type=_parse_channel,
        metavar="SLUG/VARIANT/CHANNEL",
        help="start after this channel",
    )


def _add_pull(subparsers: Subparsers) -> None:
    parser = _add(subparsers, "pull", commands.pull_command)
    _add_source(parser)
    parser.add_argument(
        "dest", metavar="DEST", nargs="?", type=Path, help="folder to create, absent or empty"
    )
    parser.add_argument(
        "--presign", action="store_true", help="print URLs of the files instead (s3:// stores)"
    )
    parser.add_argument(
        "--expires",
        type=int,
        default=3600,
        metavar="S",
        help="validity of the URLs in seconds (3600)",
    )


def _add_run(subparsers: Subparsers) -> None:
    parser = _add(subparsers, "run", run_command.run_command)
    _add_source(parser)
    run_command.add_arguments(parser)


def _add_check(subparsers: Subparsers) -> None:
    description = check_command.DESCRIPTION
    parser = _add_bare(subparsers, "check", check_command.check_command, description)
    _add_source(parser, optional=True)
    _add_selection(parser, "latest")
    check_command.add_arguments(parser)


def _add_bench(subparsers: Subparsers) -> None:
    parser = _add_bare(subparsers, "bench", bench_command, DESCRIPTION)
    _add_source(parser)
    add_arguments(parser)


def _parse_channel(text: str) -> str:
    parts = text.split("/")
    if len(parts) != 3 or {"", ".", ".."} & set(parts) or "\\" in text:
        raise argparse.ArgumentTypeError(f"expected SLUG/VARIANT/CHANNEL, got {text!r}")
    return text


def _parse_rows(text: str) -> int:
    if not text.isdigit() or text.strip("0") == "":
        raise argparse.ArgumentTypeError(f"expected a number of rows from 1, got {text!r}")
    return int(text)


def _add_source(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    text = "the checkpoint: org/name, a folder, s3://bucket/prefix, or its slug in the store"
    if optional:
        text += "; left out: all sources"
    parser.add_argument("source", metavar="SOURCE", nargs="?" if optional else None, help=text)


def _add_selection(parser: argparse.ArgumentParser, channel: str | None) -> None:
    parser.add_argument("--task", help="only this task, such as fill-mask")
    parser.add_argument("--backend", help="only this backend: jit, neuronx, neuron")
    parser.add_argument("--dtype", help="only this dtype, such as float32")
    parser.add_argument("--batch", type=int, help="only conversions traced at this many rows")
    text = f"this channel (default: {channel or 'all'})"
    parser.add_argument("--channel", default=channel, help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


if __name__ == "__main__":
    sys.exit(main())
