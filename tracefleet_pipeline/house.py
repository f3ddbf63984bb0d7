"""Where flows/ and tasks/ are, and how this process and its children find them.

They are never top-level names of site-packages: a wheel has them in ``house/``, a clone in its
root.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def find_house() -> Path:
    """Return the folder that holds flows/ and tasks/."""
    inside = _HERE / "house"
    return inside if inside.is_dir() else _HERE.parent


def enter() -> None:
    """Let this process and those that it starts import ``flows`` and ``tasks``."""
    house = str(find_house())
    if house not in sys.path[:1]:
        sys.path.insert(0, house)
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if house != others[0]:
        os.environ["PYTHONPATH"] = os.pathsep.join([house, *filter(None, others)])
    # The fork server is `python -c`, which looks into the working directory first: somebody's own
    # `tasks.py` there would be imported instead.
    os.environ["PYTHONSAFEPATH"] = "1"
