"""Greedy coverage over the shards of several ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from alkernels._inputs import Array, CoverageSelection, Pool, Selection, check_labeled, check_rows, check_vector
from alkernels.distributed._ranks import Field, Gathered, Ranks
from alkernels.distributed._shards import (
    check_count,
    check_shard,
    check_total,
    digest,
    facts_of,
    first_largest,
    larger_first,
    no_rows,
    row_fields,
    shared_middle,
)
from alkernels.ops.greedy_coverage import Coverage, check_each_weight, check_kernel, check_total_weight

_BLOCK = 64  # rows of the first evaluation of a step, of all ranks together ...
_LARGEST_BLOCK = 4096  # ... and of the largest


def greedy_coverage(
    local_shard: Array,
    k: int,
    *,
    candidates: Any = None,
    weights: Any = None,
    labeled: Array | None = None,
    covered: Any = None,
    kernel: str = "cosine",
    bandwidth: float | None = None,
    return_covered: bool = False,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection | CoverageSelection:
    """Pick `k` rows that together cover a pool that is spread over ranks.

    :func:`alkernels.greedy_coverage` of all shards one behind the other: candidates travel in blocks, each rank says
    what they would add to its shard, and the sums decide. Every rank calls it, with its own shard, and gets the same
    picks.

    Parameters
    ----------
    local_shard : Tensor or ndarray of shape (n, D)
        This rank's rows, of which there may be none: float16, bfloat16, float32 or float64, any strides, or a
        ``numpy.memmap``. Width and dtype are the same on all ranks.
    k : int
        How many rows to pick, at most as many as all ranks have candidates together.
    candidates : mask of shape (n,) or row numbers, optional
        The rows of this shard that may be picked. Default: all.
    weights : array of shape (n,), optional
        How much covering each row of this shard is worth, not negative. Default: 1 each.
    labeled : like `local_shard`, shape (L, D), optional
        Rows that cover the pool already; the same on every rank.
    covered : array of shape (n,), optional
        The similarity that each row of this shard starts at. Default: 0.
    kernel, bandwidth
        As in :func:`alkernels.greedy_coverage`; the same on every rank.
    return_covered : bool, default False
        Also return the similarity of each row of this shard to the row that covers it best.
    group : ProcessGroup, optional
        The ranks that hold the pool. Default: all.
    device : torch.device or str, optional
        A CUDA device to work on shards in host memory with, as in :func:`alkernels.greedy_coverage`.
    progress : bool, default False
        Show a progress bar (tqdm), on rank 0.

    Returns
    -------
    Selection or CoverageSelection
        ``indices`` (k,) int64, global rows in the order picked: a shard's rows are numbered behind those of all lower
        ranks; ``scores`` (k,) float64 as in one process. Both are the same on all ranks. With `return_covered` also
        ``covered`` (n,) float64 of this rank's rows.

    Raises
    ------
    ValueError
        As in one process, on all ranks where it is so on one, with its number; ranks that disagree on an argument.
    TypeError
        A shard that is not floating-point, an argument of the wrong type.
    RuntimeError
        A rank raised another error, is gone, or stopped answering within the group's timeout; ranks whose picks differ.

    Notes
    -----
    Sums over shards are added in the order of ranks. Where sums are exact (``tophat`` with weights that are small
    integers) the picks are those of one process, index by index; else gains that differ by less than the rounding of
    a sum in float64 may change places. The first pick needs every candidate on every rank, so that `local_shard`
    travels once, in messages of up to 4096 rows; about four collectives a pick follow.

    References
    ----------
    .. [1] M. Minoux. Accelerated greedy algorithms for maximizing submodular set functions. Optimization Techniques,
       1978.

    Examples
    --------
    On each rank of a process group:

    >>> typical = alk.distributed.greedy_coverage(shard, 100, kernel="rbf", bandwidth=8.0)  # doctest: +SKIP
    """
    with Ranks(group, "greedy_coverage") as ranks:
        found: dict[str, Any] = {}

        def facts() -> dict[str, Any]:
            pool = found["pool"] = check_shard(local_shard, "local_shard", device, pairs=False)
            found["kernel"] = check_kernel(kernel, bandwidth)
            found["labeled"] = check_labeled(labeled, pool)
            found["weights"] = check_each_weight(weights, pool, "weights")
            bounds = found["bounds"] = torch.full((pool.count,), torch.inf, dtype=torch.float64, device=pool.device)
            if candidates is not None:
                may = check_rows(candidates, "candidates", pool.count, pool.device, pool.name)
                bounds.fill_(-torch.inf)[may] = torch.inf
            found["covered"] = torch.zeros_like(bounds) if covered is None else check_vector(covered, "covered", pool)
            return {
                **facts_of(pool),
                "k": check_count(k, "k"),
                "kernel": kernel,
                "bandwidth": found["kernel"][1],
                "labeled, whose digest is compared": digest(found["labeled"]),
                "rows": pool.count,
            }

        ranks.agree(facts)
        pool: Pool = found["pool"]
        ranks.home = pool.device
        coverage = ShardCoverage(ranks, found, int(k))
        picks, gains = select(ranks, coverage, found["bounds"], int(k), progress=progress)

        def last() -> Selection | CoverageSelection:
            coverage.follow()
            some = pool.out(picks), pool.out(gains)
            return CoverageSelection(*some, pool.out(coverage.covered)) if return_covered else Selection(*some)

        return ranks.finish(last)


class ShardCoverage(Coverage):
    """:class:`Coverage` of one shard, with what all of them together decide.

    Parameters
    ----------
    ranks : Ranks
    found : dict
        What was checked: pool, kernel, labeled, weights, bounds, covered.
    k : int
        How many picks there are to be.
    """

    def __init__(self, ranks: Ranks, found: dict[str, Any], k: int) -> None:
        self.ranks, self.k = ranks, k
        self.may = int((found["bounds"] > 0).sum())
        self.pending: torch.Tensor | None = None
        similarity, bandwidth = found["kernel"]
        super().__init__(found["pool"], similarity, bandwidth, found["weights"], found["covered"], found["labeled"])

    def follow(self) -> None:
        """Covers the shard by the pick that waits."""
        if self.pending is not None:
            self.add(self.pending)
            self.pending = None

    def gains_here(self, points: torch.Tensor, exact: bool) -> torch.Tensor:
        """What points [n, D] would add to this shard."""
        return torch.cat([self.gains_of(some, exact=exact) for some in points.split(self.block)]) * self.unit

    def extent(self) -> tuple[float, float, float]:
        def here() -> tuple[torch.Tensor]:
            check_total(self.ranks, "local_shard")
            numbers = [self.may, float(self.weights.sum()), *super(ShardCoverage, self).extent()]
            return (torch.tensor([numbers], dtype=torch.float64, device=self.pool.device),)

        got = self.ranks.exchange("extent", [(torch.float64, (1, 5))], here).joined()
        may, total = got[:, :2].sum(0).tolist()
        if self.k > may:
            self.ranks.refuse(f"k must be between 0 and {int(may)} (candidates of all shards), got {self.k}")
        check_total_weight(total, "weights")
        heaviest, largest, start = got[:, 2:].max(0).values.tolist()
        return heaviest, largest, start

    def middle(self) -> torch.Tensor:
        found = shared_middle(self.ranks, self.pool)
        assert found is not None
        return found

    def largest_square(self, shift: torch.Tensor) -> float:
        def here() -> tuple[torch.Tensor]:
            found = super(ShardCoverage, self).largest_square(shift)
            return (torch.tensor([found], dtype=torch.float64, device=self.pool.device),)

        return float(self.ranks.exchange("squares", [(torch.float64, (1,))], here).joined().max())

    def add_labeled(self) -> None:
        def here() -> tuple[()]:
            super(ShardCoverage, self).add_labeled()
            return ()

        self.ranks.exchange("labelled rows", [], here)


def select(
    ranks: Ranks, coverage: ShardCoverage, bounds: torch.Tensor, k: int, *, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lazy rule: picks and their gains."""
    greedy = SharedLazyGreedy(ranks, coverage, bounds)
    picks: list[int] = []
    gains: list[float] = []
    for _ in tqdm(range(k), desc="greedy coverage", unit="pick", disable=not (progress and ranks.rank == 0)):
        pick, gain, coverage.pending = greedy.best()
        picks.append(pick)
        gains.append(gain)
        ranks.witness(torch.tensor([pick]))
        greedy.exclude(pick)
    device = bounds.device
    return (
        torch.tensor(picks, dtype=torch.int64, device=device),
        torch.tensor(gains, dtype=torch.float64, device=device),
    )


class SharedLazyGreedy:
    """:class:`alkernels.ops.lazy_greedy.LazyGreedy` of rows that are spread over ranks.

    Each rank keeps the bounds of its own rows. It offers its highest, with their features; all ranks measure all of
    what is offered on their shards, and the sums decide.

    Parameters
    ----------
    ranks : Ranks
    coverage : ShardCoverage
    bounds : Tensor of shape (n,), float64
        Upper bounds of the gains of this rank's rows; -inf for rows that may not be picked. Changed in place.
    """

    def __init__(self, ranks: Ranks, coverage: ShardCoverage, bounds: torch.Tensor) -> None:
        self.ranks, self.coverage, self.bounds = ranks, coverage, bounds
        self._block = _BLOCK

    def best(self) -> tuple[int, float, torch.Tensor]:
        """The global row with the largest gain, ties to the lowest, its gain and its features [1, D]."""
        ranks, bounds = self.ranks, self.bounds
        # Of the rows not evaluated yet at this step; -inf behind. A gain of 0 stays 0, and needs no estimate.
        ceiling = bounds.clone()
        estimated = (bounds == 0) | (not self.coverage.narrow)
        gain, pick, point = -torch.inf, -1, bounds
        block, looked_at = self._block, 0
        some = _BLOCK // 4 if self.coverage.narrow else block

        def may_win(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return (values > gain) | ((values == gain) & (rows < pick))  # one as high as the best: by a lower index

        measured = False  # whether the highest is one of this step, as far as is known: then only few are wanted
        while True:
            share = -(-(some if measured else block) // ranks.size)
            got = self._offers(ceiling, estimated, share)
            values, (rank, place) = larger_first(got, ranks.size * (share + 1))
            rows, stale = got.fields[1][rank, place], got.fields[2][rank, place] == 0
            # a rank's last value is that of a row which is not there itself
            there = (place < share) & may_win(values, rows)
            if not bool(there.any()):
                return pick, gain, point
            exact = not bool(stale[there][0])
            if exact:
                # up to the first stale one, which may be higher than it seems beside them
                there &= (there & stale).cumsum(0) == 0
                there &= there.cumsum(0) <= some
                some = min(2 * some, _LARGEST_BLOCK)
            else:
                there &= stale
                block = min(2 * block, _LARGEST_BLOCK)
            features = got.fields[3][rank[there], place[there]]
            found = self._measured(features, exact)
            looked_at += len(found) if exact != self.coverage.narrow else 0
            local = rows[there] - ranks.offset
            mine = (local >= 0) & (local < len(bounds))
            local = local[mine]
            bounds[local] = found[mine]
            ceiling[local] = -torch.inf if exact else found[mine]
            estimated[local] = True
            self._block = min(max(_BLOCK, looked_at // 2), _LARGEST_BLOCK)
            if exact:
                top = float(found.max())
                index = int(rows[there][found == top].min())
                if top > gain or (top == gain and index < pick):
                    gain, pick, point = top, index, features[rows[there] == index]
                if not bool(may_win(values[~there], rows[~there]).any()):
                    return pick, gain, point  # without another question
            values = values.index_put((there,), found.new_tensor(-torch.inf) if exact else found)
            measured = not bool((stale & ~there)[first_largest(values)])

    def exclude(self, row: int) -> None:
        """Makes a global row one that may not be picked (any more)."""
        if 0 <= row - self.ranks.offset < len(self.bounds):
            self.bounds[row - self.ranks.offset] = -torch.inf

    def _offers(self, ceiling: torch.Tensor, estimated: torch.Tensor, share: int) -> Gathered:
        """Each rank's highest rows: bounds, numbers, whether they are of this step, features; and one bound more."""
        pool = self.coverage.pool
        fields: list[Field] = [(torch.float64, (share + 1,)), (torch.int64, (share + 1,)), (torch.int64, (share + 1,))]

        def highest() -> tuple[torch.Tensor, ...]:
            self.coverage.follow()
            values, rows = ceiling, no_rows(pool)
            if pool.count:
                values, rows = torch.ops.alkernels.top_candidates(ceiling, min(share + 1, pool.count))
                rows = rows[values > -torch.inf]
            return (values[: len(rows)], rows + self.ranks.offset, estimated[rows].long(), *pool.gather(rows[:share]))

        return self.ranks.exchange("offers", [*fields, *row_fields(pool, share)], highest)

    def _measured(self, features: torch.Tensor, exact: bool) -> torch.Tensor:
        """What rows would add to all shards, summed in the order of ranks: the same bits on each."""
        got = self.ranks.exchange(
            "gains", [(torch.float64, (len(features),))], lambda: (self.coverage.gains_here(features, exact),)
        )
        total = got.fields[0][0]
        for part in got.fields[0][1:]:
            total = total + part
        return total
