"""List pins of a constraints file that are not installed: ``python check_pins.py FILE``.

The public index has placeholders under the names of AWS's packages, so an installation without
AWS's index may appear complete. It imports nothing of tracefleet: an image's build runs it first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main(file: str) -> int:
    """Print what differs; return the exit code."""
    wrong = list(differences(Path(file).read_text("utf-8")))
    for line in wrong:
        print(f"{line}. Is NEURON_PIP_INDEX AWS Neuron's index?", file=sys.stderr)
    return 1 if wrong else 0


def differences(pins: str) -> Iterator[str]:
    """Yield a line for each pin that is not what is installed here."""
    for name, wanted in re.findall(r"^([\w-]+)==(\S+)$", pins, re.MULTILINE):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        # AWS's builds carry the commit as a local version: 2.27.5334.0+1a2b3c4d.
        if found.partition("+")[0] != wanted:
            yield f"{name}: expected {wanted}, got {found}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
