"""k-center greedy over the shards of several ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from alkernels._inputs import CoverSelection, Pool, RowsLike, Selection
from alkernels.distributed._ranks import Ranks
from alkernels.distributed._shards import (
    ShardDistances,
    check_selection,
    first_centers,
    larger_first,
    no_rows,
    row_fields,
)
from alkernels.ops.k_center_greedy import METRICS, to_distance
from alkernels.ops.running_distances import pair
from alkernels.ops.selection import Run, finished, result


def k_center_greedy(
    local_shard: RowsLike,
    k: int,
    *,
    labeled: RowsLike | None = None,
    start: int | None = None,
    metric: str = "euclidean",
    generator: torch.Generator | int | None = None,
    return_distances: bool = False,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection | CoverSelection:
    """Pick `k` rows of a pool that is spread over ranks, each the farthest from all earlier picks.

    :func:`alkernels.k_center_greedy` of all shards one behind the other, with one collective for a whole block of
    picks. Every rank calls it, with its own shard, and gets the same picks.

    Parameters
    ----------
    local_shard : Tensor or ndarray of shape (n, D), or a pair of shapes (n, C) and (n, D)
        This rank's rows, of which there may be none: float16, bfloat16, float32 or float64, any strides, or a
        ``numpy.memmap``. Width and dtype are the same on all ranks.
    k : int
        How many rows to pick, at most as many as all shards have together.
    labeled : like `local_shard`, shape (L, D), optional
        Rows that are centres already; the same on every rank.
    start : int, optional
        The first pick, a global row. By default the row farthest from `labeled`; without labelled rows, one drawn by
        `generator`.
    metric : {"euclidean", "cosine", "symmetric_kl"}, default "euclidean"
        As in :func:`alkernels.k_center_greedy`.
    generator : torch.Generator or int, optional
        Draws the first pick where neither `labeled` nor `start` decides it, in the same state on every rank. Default:
        torch's global generator on rank 0.
    return_distances : bool, default False
        Also return the distance of each row of this shard to its nearest centre, and which centre that is.
    group : ProcessGroup, optional
        The ranks that hold the pool. Default: all.
    device : torch.device or str, optional
        A CUDA device to work on shards in host memory with, as in :func:`alkernels.k_center_greedy`.
    progress : bool, default False
        Show a progress bar (tqdm), on rank 0.

    Returns
    -------
    Selection or CoverSelection
        ``indices`` (k,) int64, global rows in the order picked: a shard's rows are numbered behind those of all lower
        ranks; ``scores`` (k,) as in one process. Both are the same on all ranks. With `return_distances` also
        ``distances`` (n,) and ``nearest`` (n,) of this rank's rows, which count centres as in one process.

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
    The picks are those of one process that holds all shards: index by index where products are exact in float32 (small
    integers), for any number of ranks and any sharding; else within the same bound. Beyond what one process needs for
    its shard, a rank keeps the k picked rows, and during a block R times its message, for R ranks: m rows of features
    and 16 bytes a row, ``m <= 1024``. Besides one collective a block there are five small ones a call.

    References
    ----------
    .. [1] T. F. Gonzalez. Clustering to minimize the maximum intercluster distance. Theor. Comput. Sci. 38, 1985.

    Examples
    --------
    In a script that ``torchrun --nproc-per-node 4 script.py`` starts:

    >>> import numpy as np, torch.distributed as dist, alkernels as alk
    >>> dist.init_process_group("gloo")  # doctest: +SKIP
    >>> pool = np.load("pool.npy", mmap_mode="r")  # doctest: +SKIP
    >>> shard = np.array_split(pool, dist.get_world_size())[dist.get_rank()]  # doctest: +SKIP
    >>> picks = alk.distributed.k_center_greedy(shard, 1000, start=0)  # doctest: +SKIP
    >>> dist.destroy_process_group()  # or its threads may abort the process as it ends  # doctest: +SKIP
    """
    with Ranks(group, "k_center_greedy") as ranks:
        pool, known, kind, seed, shift = check_selection(
            ranks, local_shard, k, labeled, start, metric, METRICS, generator, device, draws=False
        )
        state = ShardDistances(ranks, pool, kind, return_distances, shift)
        run = select(ranks, state, int(k), known, start, seed, progress=progress)

        def unit(squared: torch.Tensor) -> torch.Tensor:
            return to_distance(squared, kind)

        return ranks.finish(lambda: result(state.followed(run), unit, return_distances))


def select(
    ranks: Ranks, state: ShardDistances, k: int, labeled: Pool | None, start: int | None, seed: int, *, progress: bool
) -> Run:
    """The blocked rule: on each rank the m farthest rows of all shards play it out, and its shard follows."""
    pool = state.pool
    picks, squared = first_centers(ranks, state, k, labeled, start, torch.Generator().manual_seed(seed))
    made, block = len(picks), 16
    if made < k:

        def farthest() -> tuple[torch.Tensor]:
            state.follow()
            return (state.d2.max().view(1) if pool.count else state.d2,)

        state.must_reach(float(ranks.exchange("farthest", [(torch.float64, (1,))], farthest).joined().max()) / 4)
    with tqdm(
        total=k, initial=made, desc="k-center greedy", unit="pick", disable=not (progress and ranks.rank == 0)
    ) as bar:
        while made < k:
            m = min(state.candidates(block), ranks.total - made)

            def offer(m: int = m) -> tuple[torch.Tensor, ...]:
                state.follow()
                if not pool.count:
                    return (state.d2, no_rows(pool), *pool.gather(no_rows(pool)))
                values, rows = torch.ops.alkernels.top_candidates(state.d2, min(m + 1, pool.count))
                return (values, rows + ranks.offset, *pool.gather(rows[:m]))

            fields: list[Any] = [(torch.float64, (m + 1,)), (torch.int64, (m + 1,)), *row_fields(pool, m)]
            got = ranks.exchange("block", fields, offer)
            values, where = larger_first(got, m + 1)
            # of the rows outside; -1: all outside are picked
            bound = values[m:] if len(values) > m else values.new_full((1,), -1.0)
            values, (rank, place) = values[:m], (part[:m] for part in where)
            rows = got.fields[1][rank, place]
            features = tuple(field[rank, place] for field in got.fields[2:])
            highest, outside = float(values[0]), float(bound)
            if highest < state.level:  # distances fell farther than was expected: nothing can be told apart yet
                state.must_reach(max(outside, highest / 4))
                continue
            positions, scores = torch.ops.alkernels.k_center_block(
                *pair(features),
                state.shift,
                state.metric,
                values,
                rows,
                bound,
                values.new_full((1,), state.level),
                k - made,
            )
            positions = positions[positions >= 0]
            block = len(positions)
            picks.append(rows[positions])
            squared.append(scores[:block])
            made += block
            state.take(picks[-1], tuple(factor[positions] for factor in features))
            state.expect(max(outside, float(scores[block - 1]) / 4))
            bar.update(block)
    return finished(picks, squared, state)
