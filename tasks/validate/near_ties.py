"""How close eager's own choices were while it generated: a near tie proves nothing.

Greedy search chooses between the two highest scores. Beams choose an order among the best
candidates, and the first one that is dropped: the smallest distance between two neighbours counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: transformers marks beams that are out with -1e9.
_OUT = -1e8
_BEAM_STEP = "_get_top_k_continuations"


class NearTies:
    """The smallest distance that decided anything, for each row of one call.

    Attributes:
        smallest: Distance between scores, shape ``(rows,)``; infinite where nothing was decided.
    """

    def __init__(self, rows: int, ends: tuple[int, ...]) -> None:
        import torch

        self.smallest = torch.full((rows,), float("inf"))
        self._ends = ends

    def see_scores(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at the processed scores of a greedy step, and return them as they are."""
        self._keep(scores.topk(2)[0], self._find_open(ids))
        return scores

    def see_candidates(self, totals: torch.Tensor, kept: int) -> None:
        """Look at the summed scores of all candidates of a step with beams."""
        import torch

        best = totals.topk(min(kept + 1, totals.shape[1]))[0]
        self._keep(best, torch.ones(totals.shape[0], dtype=torch.bool))

    def _keep(self, best: torch.Tensor, open_rows: torch.Tensor) -> None:
        """Keep the smallest distance between neighbours of scores in descending order."""
        import torch

        counts = (best[:, 1:] > _OUT) & open_rows[:, None]
        gaps = torch.where(counts, best[:, :-1] - best[:, 1:], float("inf"))
        self.smallest = torch.minimum(self.smallest, gaps.min(1)[0])

    def _find_open(self, ids: torch.Tensor) -> torch.Tensor:
        """Tell which rows have no end after their first id, which may be one itself."""
        import torch

        ends = torch.tensor(self._ends, dtype=ids.dtype)
        return ~torch.isin(ids[:, 1:], ends).any(1)

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Look at every step with beams of a model that runs inside the block."""
        original: Callable[..., Any] = getattr(model, _BEAM_STEP)

        def watched(*, accumulated_log_probs: Any, beams_to_keep: int, **rest: Any) -> Any:
            self.see_candidates(accumulated_log_probs, beams_to_keep)
            given = {"accumulated_log_probs": accumulated_log_probs, **rest}
            return original(beams_to_keep=beams_to_keep, **given)

        setattr(model, _BEAM_STEP, watched)
        try:
            yield
        finally:
            delattr(model, _BEAM_STEP)
