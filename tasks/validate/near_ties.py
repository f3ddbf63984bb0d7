"""How close eager's own choices were while it generated: a near tie proves nothing.

Greedy search chooses between the two highest scores. Beams choose, at each step, the candidates
that may end and those that stay open, and at the end the best answer: the distance between the last
that is kept and the first that is dropped counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: transformers marks beams that are out with -1e9.
_OUT = -1e8
#: Steps of transformers' beam search that are looked at.
_CANDIDATES, _FINISHED = "_get_top_k_continuations", "_update_finished_beams"


class NearTies:
    """The smallest distance that decided anything, for each row of one call.

    Attributes:
        smallest: Distance between scores, shape ``(rows,)``; infinite where nothing was decided.
    """

    def __init__(self, rows: int, ends: tuple[int, ...]) -> None:
        import torch

        self.smallest = torch.full((rows,), float("inf"))
        self._ends = torch.tensor(ends, dtype=torch.int64)
        self._final: torch.Tensor | None = None

    def see_scores(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at the processed scores of a greedy step, and return them as they are."""
        import torch

        # The first id, the start, may be an end itself.
        is_open = ~torch.isin(ids[:, 1:], self._ends).any(1)
        self._keep(scores.topk(2)[0], 1, is_open)
        return scores

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Look at every step with beams of a model that runs inside the block."""
        with ExitStack() as stack:
            for name, see in ((_CANDIDATES, self._see_candidates), (_FINISHED, self._see_finished)):
                setattr(model, name, _watched(getattr(model, name), see))
                stack.callback(delattr, model, name)
            yield
        if self._final is not None:
            self._keep(self._final, 1)

    def _see_candidates(self, given: dict[str, Any], _: Any) -> None:
        """Look at the summed scores of all candidates: those that may end, and those left open."""
        import torch

        beams, totals = given["num_beams"], given["accumulated_log_probs"]
        best, places = totals.topk(min(given["beams_to_keep"] + 1, totals.shape[1]))
        self._keep(best, beams)
        ends = torch.isin(places % (totals.shape[1] // beams), self._ends)
        still_open = best.masked_fill(ends, float("-inf")).sort(1, descending=True)[0]
        self._keep(still_open, beams)

    def _see_finished(self, _: dict[str, Any], result: Any) -> None:
        self._final = result[1].sort(1, descending=True)[0]

    def _keep(self, best: torch.Tensor, kept: int, counts: torch.Tensor | None = None) -> None:
        """Keep the distance between the last kept and the first dropped of descending scores."""
        import torch

        dropped = best[:, kept]
        gaps = (best[:, kept - 1] - dropped).masked_fill(dropped <= _OUT, float("inf"))
        if counts is not None:
            gaps = gaps.masked_fill(~counts, float("inf"))
        self.smallest = torch.minimum(self.smallest, gaps)


def _watched(method: Callable[..., Any], see: Callable[..., None]) -> Callable[..., Any]:
    """Return a method that shows its named arguments and its result."""

    def call(**given: Any) -> Any:
        result = method(**given)
        see(given, result)
        return result

    return call
