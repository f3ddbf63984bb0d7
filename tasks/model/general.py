"""Shapes at which one graph may serve every call: what is proved of them, and the limits."""

from __future__ import annotations

from tasks.model.facts import ModelFacts
from tracefleet.manifest_types import General

#: Rows of one run that are tried: kernels change at powers of two and their neighbours, and some
#: models do at the number of their heads or experts.
ROWS = (2, 3, 8, 9, 17)
#: Most rows of one run, tried with few tokens each; short texts need many to keep a core busy.
MOST_ROWS = 64
#: An image has hundreds of patches: more rows cost the gate seconds and gain nothing.
ROWS_OF_IMAGES = (2, 3, 8)
#: All-MiniLM-L6-v2 on two cores serves 176, 180 and 170 sentences a second with budgets of 512,
#: 1,024 and 2,048 tokens, and 43 in batches of 32 that are padded as they come.
_TOKENS = 1024


def make_general(facts: ModelFacts, lengths: tuple[int, ...], batch: int) -> General:
    """Return the limits of a graph that is to run calls as they are.

    Args:
        facts: Facts of the model.
        lengths: Standard lengths, ascending.
        batch: Rows in one traced call.
    """
    if not facts.varies_in_length:
        return General(shortest=1, rows=max(batch, ROWS_OF_IMAGES[-1]), tokens=None)
    # A sound that is too short makes no frame; a text of one token is a text.
    sounds = facts.arguments[0].kind == "values"
    return General(
        shortest=lengths[0] if sounds else 1,
        rows=max(batch, MOST_ROWS),
        # Two of the longest rows are what the gate runs.
        tokens=max(_TOKENS, 2 * lengths[-1]),
    )
