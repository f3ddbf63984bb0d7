"""Shapes at which one graph may serve every call: what is proved of them, and the limits."""

from __future__ import annotations

from tasks.model.facts import ModelFacts
from tracefleet.manifest_types import General

#: Rows of one run that are tried: kernels change at powers of two and their neighbours, and some
#: models do at the number of their heads or experts.
ROWS = (2, 3, 8, 9, 17)
#: Most rows of one run, tried with few tokens each; short texts need many to keep a core busy.
MOST_ROWS = 64
#: An image has hundreds of patches and a sound thousands of samples: more rows would cost the gate
#: minutes and gain nothing.
ROWS_OF_SAMPLES = (2, 3, 8)
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
        return General(shortest=1, rows=max(batch, ROWS_OF_SAMPLES[-1]), tokens=None)
    # Two of the longest rows are what the gate runs.
    longest = 2 * lengths[-1]
    if takes_samples(facts):
        # One that is too short makes no frame.
        rows = max(batch, ROWS_OF_SAMPLES[-1])
        return General(shortest=lengths[0], rows=rows, tokens=max(longest, rows * lengths[0]))
    return General(shortest=1, rows=max(batch, MOST_ROWS), tokens=max(_TOKENS, longest))


def takes_samples(facts: ModelFacts) -> bool:
    """Tell whether a model takes images or sounds, and no ids."""
    return facts.arguments[0].kind == "values"
