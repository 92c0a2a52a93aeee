"""k-means++ over the shards of several ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from alkernels._inputs import CoverSelection, Factors, Pool, RowsLike, Selection
from alkernels.distributed._ranks import Gathered, Ranks
from alkernels.distributed._shards import ShardDistances, check_selection, first_centers, no_rows, row_fields
from alkernels.ops.kmeans_plusplus import to_weight
from alkernels.ops.running_distances import pair
from alkernels.ops.selection import Run, finished, result


def kmeans_plusplus(
    local_shard: RowsLike,
    k: int,
    *,
    labeled: RowsLike | None = None,
    start: int | None = None,
    generator: torch.Generator | int | None = None,
    return_distances: bool = False,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection | CoverSelection:
    """Draw `k` rows of a pool that is spread over ranks, each with probability proportional to its squared distance.

    :func:`alkernels.kmeans_plusplus` of all shards one behind the other, with two collectives for a whole block of
    draws: the shards' weights, and the rows that are proposed. Every rank calls it, with its own shard, and gets the
    same picks.

    Parameters
    ----------
    local_shard : Tensor or ndarray of shape (n, D), or a pair of shapes (n, C) and (n, D)
        This rank's rows, of which there may be none: float16, bfloat16, float32 or float64, any strides, or a
        ``numpy.memmap``. Width and dtype are the same on all ranks.
    k : int
        How many rows to draw, at most as many as all shards have together.
    labeled : like `local_shard`, shape (L, D), optional
        Rows that are centres already; the same on every rank.
    start : int, optional
        The first pick, a global row. By default one drawn by the D² law from `labeled`; without labelled rows, drawn
        uniformly.
    generator : torch.Generator or int, optional
        Makes all draws, in the same state on every rank. Default: torch's global generator on rank 0.
    return_distances : bool, default False
        Also return the squared distance of each row of this shard to its nearest centre, and which centre that is.
    group : ProcessGroup, optional
        The ranks that hold the pool. Default: all.
    device : torch.device or str, optional
        A CUDA device to work on shards in host memory with, as in :func:`alkernels.kmeans_plusplus`.
    progress : bool, default False
        Show a progress bar (tqdm), on rank 0.

    Returns
    -------
    Selection or CoverSelection
        ``indices`` (k,) int64, global rows in the order drawn: a shard's rows are numbered behind those of all lower
        ranks; ``scores`` (k,) as in one process. Both are the same on all ranks. With `return_distances` also
        ``distances`` (n,), squared, and ``nearest`` (n,) of this rank's rows, which count centres as in one process.

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
    The draws are those of one process that holds all shards and has the same seed, where sums of weights are exact
    (small integers), for any number of ranks and any sharding; else they follow the same law, and rounding may decide
    a draw at the border of two rows otherwise. Beyond what one process needs for its shard, a rank keeps the k picked
    rows and 8 bytes a row of its shard.

    References
    ----------
    .. [1] D. Arthur and S. Vassilvitskii. k-means++: the advantages of careful seeding. SODA 2007.

    Examples
    --------
    On each rank of a process group:

    >>> seeds = alk.distributed.kmeans_plusplus(shard, 1000, generator=0)  # doctest: +SKIP
    """
    with Ranks(group, "kmeans_plusplus") as ranks:
        pool, known, kind, seed, shift = check_selection(
            ranks, local_shard, k, labeled, start, "euclidean", ("euclidean", "cosine"), generator, device, draws=True
        )
        state = ShardDistances(ranks, pool, kind, return_distances, shift)
        run = select(ranks, state, int(k), known, start, seed, progress=progress)
        return ranks.finish(lambda: result(state.followed(run), to_weight, return_distances))


def select(
    ranks: Ranks, state: ShardDistances, k: int, labeled: Pool | None, start: int | None, seed: int, *, progress: bool
) -> Run:
    """The blocked rule: each rank draws the proposals that fall into its share of the weights, the shards follow."""
    pool = state.pool
    uniform = torch.Generator().manual_seed(seed)
    picks, squared = first_centers(ranks, state, k, labeled, start, uniform)
    made, block = len(picks), 32
    sums = state.d2

    def weigh() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal sums
        state.follow()
        sums = state.d2.clamp(min=0).cumsum_(0)
        return sums[-1:], (state.d2 >= 0).sum().view(1)

    with tqdm(total=k, initial=made, desc="k-means++", unit="pick", disable=not (progress and ranks.rank == 0)) as bar:
        while made < k:
            m = min(max(64, 2 * block), state.largest_block, 2 * (k - made) + 16)
            draws = torch.rand(2, m, dtype=torch.float64, generator=uniform)
            while True:
                got = ranks.exchange("weights", [(torch.float64, (1,)), (torch.int64, (1,))], weigh)
                # those of an empty shard are 0
                weights, left = (field.flatten().cpu() for field in got.fields)
                ends = weights.cumsum(0)
                total = float(ends[-1])
                if not math.isfinite(total):
                    ranks.refuse("local_shard must have squared distances whose sum float64 can hold, got an overflow")
                # weights of ten times the mean are reliable: none is off by more than 1e-4 of the mean
                if 10 * total / ranks.total >= state.level:
                    break
                state.must_reach(10 * total / ranks.total)
            if total == 0:  # every row left coincides with a centre
                rest = _rest(ranks, state, left, k - made)
                picks.append(rest)
                squared.append(torch.zeros(len(rest), dtype=torch.float64, device=pool.device))
                state.take(rest, None)
                bar.update(len(rest))
                break
            targets = draws[0] * total
            # rounding may leave a target at the end: then it is the last rank's of any weight
            owners = torch.searchsorted(ends, targets, right=True).clamp_(max=int(weights.nonzero()[-1]))
            proposed = [(owners == r).nonzero().flatten() for r in range(ranks.size)]
            mine = targets[proposed[ranks.rank]] - (ends[ranks.rank - 1] if ranks.rank else 0.0)

            def propose(mine: torch.Tensor = mine) -> tuple[torch.Tensor, ...]:
                if not len(mine):
                    return (state.d2[:0], no_rows(pool), *pool.gather(no_rows(pool)))
                last = torch.searchsorted(sums, sums[-1:])  # the first that reaches the sum: the last of any weight
                rows = torch.minimum(torch.searchsorted(sums, mine.to(sums.device), right=True), last)
                return (state.d2[rows], rows + ranks.offset, *pool.gather(rows))

            most = max(map(len, proposed))
            fields: list[Any] = [(torch.float64, (most,)), (torch.int64, (most,)), *row_fields(pool, most)]
            got = ranks.exchange("block", fields, propose)
            values, rows, *features = _in_order(got, proposed)
            positions, scores = torch.ops.alkernels.kmeans_plusplus_block(
                *pair(tuple(features)),
                state.shift,
                state.metric,
                values,
                rows,
                draws[1].to(pool.device),
                values.new_full((1,), state.level),
                k - made,
            )
            positions = positions[positions >= 0]
            block = len(positions)
            picks.append(rows[positions])
            squared.append(scores[:block])
            made += block
            state.take(picks[-1], tuple(factor[positions] for factor in features))
            state.expect(10 * total / ranks.total)
            bar.update(block)
    return finished(picks, squared, state)


def _in_order(got: Gathered, proposed: list[torch.Tensor]) -> Factors:
    """The fields of all proposals, in the order of their draws."""
    order = torch.cat(proposed).argsort().to(got.fields[0].device)
    return tuple(got.joined(f)[order] for f in range(len(got.fields)))


def _rest(ranks: Ranks, state: ShardDistances, left: torch.Tensor, wanted: int) -> torch.Tensor:
    """The first unpicked rows of all shards."""
    before = left.cumsum(0) - left
    shares = torch.minimum(left, (wanted - before).clamp(min=0))

    def unpicked() -> tuple[torch.Tensor]:
        return ((state.d2 >= 0).nonzero().flatten()[: int(shares[ranks.rank])] + ranks.offset,)

    return ranks.exchange("rest", [(torch.int64, (int(shares.max()),))], unpicked).joined()
