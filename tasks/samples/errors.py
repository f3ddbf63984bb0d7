"""Why a checkpoint gets no real samples: no failure of its conversion."""

from __future__ import annotations


class NoSamples(Exception):  # noqa: N818 - a finding for the manifest, not an error
    """The checkpoint's own processor makes no inputs for its model here.

    Attributes:
        reason: One line for the manifest, without paths of this machine.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
