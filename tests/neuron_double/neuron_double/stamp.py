"""The mark on everything that the double makes, and how to find it without the double.

The mark is a plain string in the state of every compiled model, so that it stands in the archive's
``data.pkl``. A publisher needs the standard library alone to look for it.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

STAMP = "NEURON-CONTRACT-DOUBLE"


def is_double(archive: Path) -> bool:
    """Tell whether a TorchScript archive was made by the double."""
    with zipfile.ZipFile(archive) as opened:
        pickles = [name for name in opened.namelist() if name.endswith(".pkl")]
        return any(STAMP.encode() in opened.read(name) for name in pickles)
