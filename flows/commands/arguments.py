"""Arguments that several commands share."""

from __future__ import annotations

import argparse


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
