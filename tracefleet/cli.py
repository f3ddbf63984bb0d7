"""The command ``tracefleet``: look into a store, check it, take from it, try a model.

Exit codes: 0 done, 1 something is wrong with the store, a conversion or an input (said on
standard error), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tracefleet import __version__, commands
from tracefleet.errors import ArtifactError

Command = Callable[[argparse.Namespace], int]

_DOES = {
    "list": "List every channel with its current conversion.",
    "show": "Print what one conversion is, from its checked manifest.",
    "verify": "Check every byte of current conversions against their digests.",
    "pull": "Copy one conversion's files, checked, into a new folder, or print URLs for them.",
    "run": "Run one conversion on texts (with its own tokenizer) or on token ids.",
}


_EPILOG = """\
exit codes: 0 done, 1 damage or an error (see standard error), 2 wrong usage

environment:
  AWS_*                the standard AWS configuration, for s3:// stores
  TRACEFLEET_CACHE     where downloads are kept (~/.cache/tracefleet)
  TRACEFLEET_CACHE_GB  how much of them (50); the least recently used goes first
  TRACEFLEET_OFFLINE   1: open what the cache holds, without a network
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is commands.pull_command and (arguments.dest is None) != arguments.presign:
        parser.error("pull: expected either a DEST folder or --presign")
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; keep the exit quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ArtifactError, ValueError, ImportError, OSError) as error:
        print(f"error: {_explained(error)}", file=sys.stderr)
        return 1
    return code


def _explained(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{error}. Install what opens models: pip install 'tracefleet[run]'"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tracefleet",
        description="Open validated conversions of Hugging Face checkpoints from a store.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, *, channel: str | None) -> argparse.ArgumentParser:
        text = _DOES[name]
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("store", metavar="STORE", help="a folder, file:///… or s3://bucket/prefix")
        _add_selection(sub, channel)
        return sub

    sub = add("list", commands.list_command, channel=None)
    sub.add_argument("--limit", type=_rows, metavar="N", help="only the first N rows")
    sub.add_argument(
        "--after", type=_channel, metavar="SLUG/VARIANT/CHANNEL", help="start behind this channel"
    )
    _add_source(add("show", commands.show_command, channel="latest"))
    _add_source(add("verify", commands.verify_command, channel=None), optional=True)
    sub = add("pull", commands.pull_command, channel="latest")
    _add_source(sub)
    sub.add_argument(
        "dest", metavar="DEST", nargs="?", type=Path, help="folder to create, absent or empty"
    )
    sub.add_argument(
        "--presign", action="store_true", help="print URLs of the files instead (s3:// stores)"
    )
    sub.add_argument(
        "--expires", type=int, default=3600, metavar="S", help="their life in seconds (3600)"
    )
    sub = add("run", commands.run_command, channel="latest")
    _add_source(sub)
    rows = sub.add_mutually_exclusive_group(required=True)
    rows.add_argument("--text", action="append", help="a text; repeat for more rows")
    rows.add_argument("--ids", action="append", help='token ids, "101 2023 102"; repeat for rows')
    sub.add_argument("--decoder-ids", action="append", help="decoder_input_ids, one for each row")
    return parser


def _channel(text: str) -> str:
    if len(text.split("/")) != 3 or {"", ".", ".."} & set(text.split("/")) or "\\" in text:
        raise argparse.ArgumentTypeError(f"expected SLUG/VARIANT/CHANNEL, got {text!r}")
    return text


def _rows(text: str) -> int:
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
