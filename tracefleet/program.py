"""What every command line of tracefleet shares: the parser, groups of commands, errors, exit codes.

``tracefleet.cli`` makes the program ``tracefleet`` of it, and the pipeline ``python -m flows``. A
package adds commands to ``tracefleet`` by an entry point of the group ``tracefleet.commands``: a
function that takes a ``Commands``.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tracefleet import __version__

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
#: The groups of commands, in the order of a program's help.
USE, CONVERT, KEEP = "use what is published", "convert", "look after a store"
#: Errors of Python itself, whose messages we write: their names would say nothing.
_UNNAMED = ("ValueError", "OSError", "FileNotFoundError", "ImportError", "ModuleNotFoundError")
#: What the extra ``run`` installs.
_OF_RUN = ("torch", "numpy", "tokenizers", "sentencepiece", "safetensors")


class UsageError(Exception):
    """The command line is wrong: exit code 2.

    Attributes:
        usage: Lines that show how the command is used; empty: the message is enough.
    """

    def __init__(self, message: str, *, usage: str = "") -> None:
        self.usage = usage
        super().__init__(message)


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviated options, and raises what is wrong."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        # What is wrong with one value is told by the message; forty lines of usage would hide it.
        one_value = message.startswith("argument ")
        usage = "" if one_value else self.format_usage()
        raise UsageError(f"{message} ({self.prog} --help)" if one_value else message, usage=usage)


class Commands:
    """The commands of a program, in groups."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._subparsers = parser.add_subparsers(
            required=True, metavar="COMMAND", parser_class=Parser
        )
        self.groups: dict[str, list[tuple[str, str]]] = {}

    def usage(self, name: str) -> str:
        """Return the lines that show how a command is used."""
        return self._subparsers.choices[name].format_usage()

    @property
    def names(self) -> list[str]:
        """Names of all commands."""
        return [name for found in self.groups.values() for name, _ in found]

    def add_parser(
        self,
        name: str,
        *,
        help: str,  # noqa: A002 - argparse's name
        group: str = CONVERT,
        **options: Any,
    ) -> argparse.ArgumentParser:
        """Add a command and return its parser, for its arguments and its ``command``.

        Args:
            name: of the command.
            help: one line for the program's own help.
            group: heading that it is listed under.
            options: further ones of its parser, such as ``description`` and ``epilog``.
        """
        options["description"] = options.get("description") or f"{help[0].upper()}{help[1:]}."
        self.groups.setdefault(group, []).append((name, help))
        parser = self._subparsers.add_parser(name, help=help, **options)
        parser.set_defaults(refuse=parser.error)
        return parser


class Program(Parser):
    """A program of commands: ``run`` is its whole life."""

    def __init__(self, prog: str, *, description: str, epilog: str) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog)
        self.add_argument("--version", action="version", version=__version__)
        self.commands = Commands(self)
        #: Commands that are not here, each with what to do about it.
        self.absent: dict[str, str] = {}

    def format_help(self) -> str:
        """Return the help: each command with its line, group by group."""
        width = max(map(len, self.commands.names), default=0)
        parts = [f"usage: {self.prog} [--help] [--version] COMMAND …", str(self.description)]
        for group in filter(self.commands.groups.__contains__, (USE, CONVERT, KEEP)):
            found = self.commands.groups[group]
            lines = [f"  {name:<{width}}  {text}" for name, text in found]
            parts.append("\n".join([f"{group}:", *lines]))
        parts.append(f"{self.prog} COMMAND --help: arguments, defaults and examples of one.")
        return "\n\n".join([*parts, str(self.epilog).rstrip()]) + "\n"

    def run(self, words: Sequence[str]) -> int:
        """Run one command and return its exit code.

        Raises:
            SystemExit: after help or the version, and with 2 on wrong usage.
        """
        try:
            return self._call(words)
        except UsageError as error:
            print(f"{error.usage}error: {error}", file=sys.stderr)
            _print_error(words, error)
            raise SystemExit(WRONG_USAGE) from None
        except BrokenPipeError:
            # The reading end of the pipe (head, less) was closed: keep Python from reporting at
            # exit that it can't flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except KeyboardInterrupt:
            told = "a conversion is published only if its channel line was printed"
            print(f"interrupted; {told}", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:  # ours are typed; network errors keep their library's type
            logging.getLogger("tracefleet").debug("traceback", exc_info=True)
            print(f"error: {_describe(error)}", file=sys.stderr)
            _print_error(words, error)
            return FAILED

    def _call(self, words: Sequence[str]) -> int:
        self._check_name(words)
        arguments, left = self.parse_known_args(words)
        if left:
            name = first_word(words) or ""
            raise UsageError(_explain_left(left, words), usage=self.commands.usage(name))
        if hasattr(arguments, "quiet"):
            _show_progress(quiet=arguments.quiet)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code

    def _check_name(self, words: Sequence[str]) -> None:
        name, names = first_word(words), self.commands.names
        if name is None or name in names:
            return
        if name in self.absent:
            raise UsageError(f"{name}: {self.absent[name]}")
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "expected " + ", ".join(names)
        raise UsageError(f"{name}: no command of {self.prog}; {hint}", usage=self.format_usage())


def _explain_left(left: Sequence[str], words: Sequence[str]) -> str:
    """Say what is wrong with words that no argument takes."""
    message = f"unrecognized arguments: {' '.join(left)}"
    if any(word.startswith("-") for word in left):
        return message
    if "--lengths" in words and all(word.isdigit() for word in left):
        return f"{message}; several numbers are written with commas: --lengths 32,64"
    return f"{message}; words stand together, such as STORE SOURCE, before or after the options"


def first_word(words: Sequence[str]) -> str | None:
    """Return the command that is asked for: the first word that is no option."""
    return next((word for word in words if not word.startswith("-")), None)


def _describe(error: Exception) -> str:
    name = type(error).__name__
    if isinstance(error, ImportError) and error.name in _OF_RUN:
        return f"{error}. Install the packages that open models: pip install 'tracefleet[run]'"
    return str(error) if name in _UNNAMED else f"{name}: {error}"


def _print_error(words: Sequence[str], error: Exception) -> None:
    """Print an error for programs too, where they asked for JSON."""
    if "--json" in words:
        found = {"type": type(error).__name__, "message": str(error)}
        print(json.dumps({"error": found}, indent=2, ensure_ascii=False))


def _show_progress(*, quiet: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # It prints by itself: with this program's handler every line would stand twice.
    logging.getLogger("huggingface_hub").propagate = False
    if not quiet:
        for name in ("tasks", "flows", "tracefleet"):
            logging.getLogger(name).setLevel(logging.INFO)
