"""Greedy selection by gains that only fall, exact with few evaluations: behind BatchBALD and coverage."""

from __future__ import annotations

from collections.abc import Callable

import torch

import alkernels._load  # noqa: F401

_BLOCK = 64  # rows of the first evaluation of a step ...
_LARGEST_BLOCK = 4096  # ... and of the largest


class LazyGreedy:
    """Picks the row of the largest gain, again and again, where no row's gain ever rises or falls below 0.

    Gains that are estimates may rise by `margin`, and fall below 0: rows are then skipped that were too far behind.

    A gain from an earlier step is an upper bound now, so rows are evaluated from the highest bound down until no bound
    is left that could beat the best. Rows that come up are first bounded again by `estimate`, which is cheap and may
    not be below the truth; those that still could win are measured by `evaluate`, and only that decides.

    Parameters
    ----------
    bounds : Tensor of shape (N,), float64
        Upper bounds of all gains at the first step; -inf for rows that may not be picked. Changed in place.
    estimate : function of row numbers, or None
        Upper bounds of their gains at this step.
    evaluate : function of row numbers
        Their gains at this step. Both must give a row the same bits whichever rows it is asked with.
    after_block : function
        Called in the midst of a step, after some rows' bounds were lowered.

    Attributes
    ----------
    margin : float
        Added to bounds of earlier steps: 0, unless gains are estimates themselves.
    """

    def __init__(
        self,
        bounds: torch.Tensor,
        estimate: Callable[[torch.Tensor], torch.Tensor] | None,
        evaluate: Callable[[torch.Tensor], torch.Tensor],
        after_block: Callable[[], None] = lambda: None,
    ) -> None:
        self.bounds, self.estimate, self.evaluate, self.after_block = bounds, estimate, evaluate, after_block
        self.margin = 0.0
        self.block = _BLOCK

    def best(self) -> tuple[int, float]:
        """The row with the largest gain, ties to the lowest index, and its gain. Needs one row that may be picked."""
        bounds = self.bounds
        # Of the rows not evaluated yet at this step; -inf behind. A gain of 0 stays 0, and needs no evaluation.
        spent = (bounds == 0).nonzero().flatten()
        ceiling = (bounds + self.margin).index_fill_(0, spent, -torch.inf)
        estimated = torch.full_like(ceiling, self.estimate is None, dtype=torch.bool)
        gain, pick = (0.0, int(spent[0])) if len(spent) else (-torch.inf, -1)
        block, looked_at = self.block, 0
        some = block if self.estimate is None else _BLOCK // 4
        while True:
            values, rows = torch.ops.alkernels.top_candidates(ceiling, min(max(block, some), len(bounds)))
            # one as high as the best wins by a lower index
            rows = rows[(values > gain) | ((values == gain) & (rows < pick))]
            if not len(rows):
                break
            stale = ~estimated[rows]
            if self.estimate is not None and stale[0]:
                rows = rows[:block][stale[:block]]
                bounds[rows] = ceiling[rows] = self.estimate(rows)
                estimated[rows] = True
                looked_at += len(rows)
                block = min(2 * block, _LARGEST_BLOCK)
                self.after_block()
                continue
            rows = rows[: min(some, int(stale.cumsum(0).eq(0).sum()))]
            gains = self.evaluate(rows)
            bounds[rows], ceiling[rows] = gains, -torch.inf
            looked_at += len(rows) if self.estimate is None else 0
            some = min(2 * some, _LARGEST_BLOCK)
            top = float(gains.max())
            index = int(rows[gains == top].min())
            if top > gain or (top == gain and index < pick):
                gain, pick = top, index
            self.after_block()
        self.block = min(max(_BLOCK, looked_at // 2), _LARGEST_BLOCK)
        return pick, gain

    def exclude(self, row: int) -> None:
        """Makes a row one that may not be picked (any more)."""
        self.bounds[row] = -torch.inf
