"""k nearest neighbours among the points of several ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from alkernels._inputs import (
    LARGEST_NARROW,
    Array,
    Neighbors,
    Pool,
    bytes_a_call,
    check_metric,
    largest_magnitude,
    operations_a_call,
)
from alkernels.distributed._ranks import Gathered, Ranks
from alkernels.distributed._shards import check_count, check_shard, check_total, facts_of, row_fields, shared_middle
from alkernels.ops.k_center_greedy import to_distance
from alkernels.ops.running_distances import METRICS

# The points that all ranks put into one collective are no more bytes than this, with some 16 a number.
_BYTES_A_TILE = 32 << 20


def knn(
    queries: Array,
    points: Array,
    k: int,
    *,
    metric: str = "euclidean",
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Neighbors:
    """The `k` points nearest to each of this rank's queries, among the points of all ranks.

    :func:`alkernels.knn` of all shards of points one behind the other, which travel tile by tile. Every rank calls it,
    with its own queries and points.

    Parameters
    ----------
    queries : Tensor or ndarray of shape (n, D)
        This rank's queries, of which there may be none: float16, bfloat16, float32 or float64, any strides, or a
        ``numpy.memmap``.
    points : like `queries`, shape (m, D)
        This rank's share of what is searched; there may be none. Widths and dtypes are the same on all ranks.
    k : int
        How many neighbours, at most as many as all ranks have points together.
    metric : {"euclidean", "cosine"}, default "euclidean"
        As in :func:`alkernels.knn`.
    group : ProcessGroup, optional
        The ranks that hold the points. Default: all.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with, as in :func:`alkernels.knn`.
    progress : bool, default False
        Show a progress bar (tqdm), on rank 0.

    Returns
    -------
    Neighbors
        Of this rank's queries: ``distances`` (n, k) float64, ascending, and ``indices`` (n, k) int64, global rows of
        points, which are numbered behind those of all lower ranks; ties to the lower index.

    Raises
    ------
    ValueError
        As in one process, on all ranks where it is so on one, with its number; ranks that disagree on an argument.
    TypeError
        Arrays that are not floating-point, an argument of the wrong type.
    RuntimeError
        A rank raised another error, is gone, or stopped answering within the group's timeout.

    Notes
    -----
    Neighbours are decided in float64, from differences, as in one process. Each rank sends all of its points once, and
    multiplies all points by its queries: the more evenly queries are spread, the better.

    Examples
    --------
    On each rank of a process group:

    >>> distances, indices = alk.distributed.knn(shard, shard, 11)  # each row first  # doctest: +SKIP
    """
    with Ranks(group, "knn") as ranks:
        found: dict[str, Any] = {}

        def facts() -> dict[str, Any]:
            left = found["queries"] = check_shard(queries, "queries", device, pairs=False)
            right = found["points"] = check_shard(points, "points", device, pairs=False)
            if left.widths != right.widths:
                raise ValueError(f"points must be as wide as queries, got width {right.widths[0]} and {left.widths[0]}")
            if left.device != right.device:
                raise ValueError(f"points must be on the device of queries ({left.device}), got {right.device}")
            check_metric(metric, left)
            return {
                **facts_of(left),
                **facts_of(right),
                "k": check_count(k, "k"),
                "metric": metric,
                "rows": right.count,
            }

        ranks.agree(facts)
        left, right = found["queries"], found["points"]
        ranks.home = left.device
        squared, indices = _nearest(ranks, left, right, int(k), metric, progress=progress)
        return ranks.finish(lambda: Neighbors(left.out(to_distance(squared, metric)), left.out(indices)))


def _nearest(
    ranks: Ranks, left: Pool, right: Pool, k: int, metric: str, *, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    device = left.device

    def magnitude() -> tuple[torch.Tensor]:
        check_total(ranks, "points", k)
        largest = max(map(largest_magnitude, (left, right)))
        return (torch.tensor([largest], dtype=torch.float64, device=device),)

    largest = float(ranks.exchange("extent", [(torch.float64, (1,))], magnitude).joined().max())
    squared = torch.full((left.count, k), torch.inf, dtype=torch.float64, device=device)
    indices = torch.full((left.count, k), -1, dtype=torch.int64, device=device)
    if not k:
        return squared, indices
    wide = largest >= LARGEST_NARROW or torch.float64 in (left.sources[0].dtype, right.sources[0].dtype)
    shift = shared_middle(ranks, right) if metric == "euclidean" else None
    d, memory = left.widths[0], bytes_a_call(device, _BYTES_A_TILE)
    share = min(max(ranks.counts), max(1, memory // (16 * max(d, 16) + 24) // ranks.size))
    arrived: list[tuple[int, Gathered]] = []

    def search() -> tuple[()]:
        """Merges the tiles that came last into the lists of this rank's queries."""
        if not arrived:
            return ()
        begun, got = arrived.pop()
        for rank, count in enumerate(got.counts):
            block = got.fields[0][rank, :count]
            some = max(64, int(operations_a_call(device) / (2.0 * d * max(1, count))))
            for begin, end, (tile,) in left.tiles(some) if count else ():
                torch.ops.alkernels.nearest_points(
                    tile,
                    block,
                    shift,
                    METRICS[metric],
                    ranks.starts[rank] + begun,
                    wide,
                    squared[begin:end],
                    indices[begin:end],
                )
        return ()

    most = max(ranks.counts)
    with tqdm(total=most, desc="knn", unit="row", disable=not (progress and ranks.rank == 0)) as bar:
        for begin in range(0, most, share):

            def offer(begin: int = begin) -> tuple[torch.Tensor, ...]:
                search()
                return right.tile(min(begin, right.count), min(begin + share, right.count))

            arrived.append((begin, ranks.exchange("points", row_fields(right, share), offer)))
            bar.update(min(share, most - begin))
    ranks.exchange("lists", [], search)
    return squared, indices
