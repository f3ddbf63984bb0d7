"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def parse_positive(text: str) -> int:
    """Return a whole number from 1; for argparse."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {text!r}")
    return int(text)


def add_output(parser: argparse.ArgumentParser, *, json: str = "print the result as JSON") -> None:
    """Add ``--json`` and ``--quiet``; ``json`` is the help of the first."""
    parser.add_argument("--json", action="store_true", help=json)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_engine(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--engine`` with its help."""
    parser.add_argument("--engine", choices=("auto", "prefect", "none"), default="auto", help=text)


def add_place(
    parser: argparse.ArgumentParser, names: dict[str, str]
) -> Callable[[argparse.Namespace], None]:
    """Add values that are words of the command line, as ``tracefleet show`` has them, or options.

    Args:
        parser: Of the command.
        names: Help of each value by its name, in the order of the words.

    Returns:
        What reads the words, and refuses a value that is missing or given twice.
    """
    shown = " ".join(name.upper() for name in names)
    parser.add_argument("words", nargs="*", metavar=shown, help="; ".join(names.values()))
    for name in names:
        parser.add_argument(f"--{name}", help=f"the same as the word {name.upper()}")

    def read(options: argparse.Namespace) -> None:
        left = [name for name in names if getattr(options, name) is None]
        if len(options.words) != len(left):
            got = " ".join(options.words) or "none"
            lacking = " and ".join(left[len(options.words) :]).upper()
            told = f": {lacking} is missing" if lacking else ""
            wanted = " ".join(left).upper() or "no further words"
            options.refuse(f"expected {wanted}, got {got}{told}")
        for name, word in zip(left, options.words, strict=True):
            setattr(options, name, word)

    return read
