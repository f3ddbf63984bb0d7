# PYTHON_ARGCOMPLETE_OK
"""The command ``tracefleet``: the reader's commands, and those of packages that add some.

Exit codes: 0 done, 1 damage or an error (reported on standard error), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from tracefleet import check_command, commands, pull_command, push_command, run_command
from tracefleet.bench.command import DESCRIPTION, add_arguments, bench_command
from tracefleet.log_command import DESCRIPTION as LOG
from tracefleet.log_command import log_command
from tracefleet.program import KEEP, USE, Commands, Program, first_word
from tracefleet.show_command import show_command
from tracefleet.spelling import option, read_backend, read_dtype, read_task

Command = Callable[[argparse.Namespace], int]
#: Entry points of this group are functions that add commands.
GROUP = "tracefleet.commands"
#: Commands of the pipeline, to tell who asks for one where it is not installed; a test compares.
PIPELINE = (
    *("convert", "validate", "plan", "fleet", "sweep", "schema"),
    *("gc", "promote", "rollback", "withdraw", "reinstate", "guard", "limit-schema"),
)
_ABSENT = (
    "a command of the pipeline, which is not installed here; this is the reader alone. Install "
    "it: pip install tracefleet-pipeline, or in a clone pip install -e '.[pipeline]' "
    "-e ./tracefleet_pipeline"
)
_SUMMARIES = {
    "list": "list every channel with its current conversion",
    "show": "print the facts of one conversion, withdrawn or not, from its checked manifest",
    "log": "print every number of a channel: when, what, who, why",
    "verify": "compare every byte of current conversions with their digests",
    "pull": "copy conversions, checked, into a new folder, or print URLs for their files",
    "push": "publish a copy of a conversion on the Hugging Face hub, with a model card",
    "run": "answer texts by one conversion, or run it on token ids",
    "check": "run golden samples here, and compare with what eager computed",
    "bench": "compare conversions with transformers and ONNX Runtime on this machine",
}
_SOURCE = (
    "the name that it is published under, or the checkpoint: org/name, a folder, "
    "s3://bucket/prefix, or its slug in the store"
)
#: What a command takes where SOURCE is left out.
_ONLY, _ALL = "the only one there is", "all sources"
_FILTERS = (
    ("--task", read_task, "task, such as fill-mask"),
    ("--backend", read_backend, "backend: jit, neuronx or neuron"),
    ("--dtype", read_dtype, "dtype, such as float32"),
)
_EXIT_CODES = "exit codes: 0 done; 1 damage or an error (see standard error); 2 wrong usage."
_EPILOG = """\
examples:
  tracefleet convert ./my-model --store ./store
  tracefleet list ./store
  tracefleet run ./store ./my-model --text "A sentence."
  tracefleet pull s3://bucket/models org/name --to ./model

exit codes: 0 done; 1 damage or an error (see standard error; with --json also a document with
"error" on standard output); 2 wrong usage; 130 interrupted.

environment:
  AWS_*                the standard AWS configuration, for s3:// stores
  TRACEFLEET_CACHE     folder that downloads are kept in (~/.cache/tracefleet)
  TRACEFLEET_CACHE_GB  limit of its size (50); the least recently used files are removed first
  TRACEFLEET_OFFLINE   1: open conversions from the cache, without a network

Shell completion: pip install argcomplete, then eval "$(register-python-argcomplete tracefleet)".
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    # Below an error torch's C++ speaks to who calls its operators, such as int8's.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    program = Program(
        "tracefleet",
        description="Convert Hugging Face checkpoints into validated artifacts, and use them.",
        epilog=_EPILOG,
    )
    add_commands(program.commands)
    name = first_word(words)
    # Others cost their imports, which `list` and its like need not wait for.
    if name not in program.commands.names:
        for add in _find_others():
            add(program.commands)
    program.absent = dict.fromkeys(PIPELINE, _ABSENT)
    _complete(program)
    return program.run(words)


def _find_others() -> Iterator[Callable[[Commands], None]]:
    """Yield what other packages add their commands with; one that is broken is told."""
    for point in metadata.entry_points(group=GROUP):
        try:
            yield point.load()
        except ImportError as error:
            print(f"{point.value}: its commands are left out: {error}", file=sys.stderr)


def _complete(program: Program) -> None:
    """Answer a shell that completes a command line, where argcomplete is installed."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(program)


def add_commands(program: Commands) -> None:
    """Add the reader's commands."""
    _add_list(program)
    _add_source(_add(program, "show", show_command), left_out=_ONLY)
    _add_run(program)
    _add_pull(program)
    _add_push(program)
    _add_check(program)
    _add_bench(program)
    verify = _add(program, "verify", commands.verify_command, channel=None)
    _add_source(verify, left_out=_ALL)
    log = _add_bare(program, "log", log_command, LOG)
    _add_source(log, left_out=_ALL)
    _add_selection(log, None)


def _add(
    program: Commands, name: str, command: Command, *, channel: str | None = "latest"
) -> argparse.ArgumentParser:
    """Add a command with the options that most commands have."""
    parser = _add_bare(program, name, command)
    _add_selection(parser, channel)
    return parser


def _add_bare(
    program: Commands, name: str, command: Command, description: str | None = None
) -> argparse.ArgumentParser:
    parser = program.add_parser(
        name,
        help=_SUMMARIES[name],
        group=KEEP if name in ("verify", "log") else USE,
        description=description,
        epilog=_EXIT_CODES,
    )
    parser.set_defaults(command=command)
    parser.add_argument("store", metavar="STORE", help="a folder, file:///… or s3://bucket/prefix")
    return parser


def _add_list(program: Commands) -> None:
    parser = _add(program, "list", commands.list_command, channel=None)
    parser.add_argument(
        "--limit", type=_parse_rows, metavar="N", help="the first N rows (default: all)"
    )
    parser.add_argument(
        "--after",
        type=_parse_channel,
        metavar="SLUG/VARIANT/CHANNEL",
        help="start after this channel",
    )


def _add_pull(program: Commands) -> None:
    parser = _add(program, "pull", pull_command.pull_command)
    parser.epilog = pull_command.EPILOG
    pull_command.add_arguments(parser, _SOURCE)


def _add_push(program: Commands) -> None:
    parser = _add(program, "push", push_command.push_command)
    parser.epilog = push_command.EPILOG
    push_command.add_arguments(parser, _SOURCE)


def _add_run(program: Commands) -> None:
    parser = _add(program, "run", run_command.run_command)
    _add_source(parser, left_out=_ONLY)
    run_command.add_arguments(parser)


def _add_check(program: Commands) -> None:
    description = check_command.DESCRIPTION
    parser = _add_bare(program, "check", check_command.check_command, description)
    _add_source(parser, left_out=_ALL)
    _add_selection(parser, "latest")
    check_command.add_arguments(parser)


def _add_bench(program: Commands) -> None:
    parser = _add_bare(program, "bench", bench_command, DESCRIPTION)
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


def _add_source(parser: argparse.ArgumentParser, *, left_out: str | None = None) -> None:
    text = _SOURCE if left_out is None else f"{_SOURCE}; left out: {left_out}"
    parser.add_argument("source", metavar="SOURCE", nargs="?" if left_out else None, help=text)


def _add_selection(parser: argparse.ArgumentParser, channel: str | None) -> None:
    for name, read, text in _FILTERS:
        kind = option(read, name)
        parser.add_argument(name, type=kind, help=f"only this {text} (default: any)")
    parser.add_argument("--batch", type=int, help="only those traced at this many rows")
    text = f"this channel (default: {channel or 'all'})"
    parser.add_argument("--channel", default=channel, help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


if __name__ == "__main__":
    sys.exit(main())
