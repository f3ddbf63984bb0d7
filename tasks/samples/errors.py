"""Why a checkpoint gets no real samples: no failure of its conversion."""

from __future__ import annotations

import re

from tasks.errors import first_line

#: Of a path in an error the last part alone may be published.
_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"]+/)+")


class NoSamples(Exception):  # noqa: N818 - a finding for the manifest, not an error
    """The checkpoint's own processor makes no inputs for its model here.

    Attributes:
        reason: One line for the manifest, without paths of this machine.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def describe(error: Exception) -> str:
    """Return an error in one line, files without their folders."""
    return f"{type(error).__name__}: {_FOLDERS.sub('', first_line(error))}"
