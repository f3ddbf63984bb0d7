"""Why a checkpoint has no real inputs: no failure of the conversion, a line of its manifest."""

from __future__ import annotations


class NoSamples(Exception):  # noqa: N818 - a finding, not an error
    """A checkpoint has no tokenizer or processor that makes inputs; the message is the reason."""
