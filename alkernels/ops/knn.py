"""k nearest neighbours, exact, in tiles."""

from __future__ import annotations

import torch
from tqdm import tqdm

from alkernels._inputs import (
    LARGEST_NARROW,
    Array,
    Neighbors,
    Pool,
    bytes_a_call,
    check_device,
    check_integer,
    check_memory_limit,
    check_metric,
    largest_magnitude,
    not_compiled,
    operations_a_call,
)
from alkernels._streaming import explain_memory
from alkernels.ops.k_center_greedy import to_distance
from alkernels.ops.running_distances import METRICS, middle
from alkernels.ops.selection import detached, library

# A call of the kernel packs no more bytes than this of points (some 16 a number, of 16 numbers at least), and holds no
# more of a memory-mapped file.
_BYTES_A_TILE = 32 << 20
# Beside tiles, packed points and the result it takes so many bytes.
_BYTES = 48 << 20


def knn(
    queries: Array,
    points: Array,
    k: int,
    *,
    metric: str = "euclidean",
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> Neighbors:
    """The `k` points nearest to each query, exact, without the matrix of distances.

    Parameters
    ----------
    queries : Tensor or ndarray of shape (N, D)
        float16, bfloat16, float32 or float64, any strides; a ``numpy.memmap``, or a dataset in a file that
        slices by rows (HDF5, Zarr, safetensors, Arrow).
    points : like `queries`, shape (M, D)
        What is searched. Passing the queries makes each row its own nearest neighbour.
    k : int
        How many neighbours, ``0 <= k <= M``.
    metric : {"euclidean", "cosine"}, default "euclidean"
        ``cosine`` is ``1 - cos``; a row of zeros is at distance 1 from all others.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with: copied to it once where they take up to 0.6 of its free
        memory, else streamed at each pass. Results come back to host memory. Default: where arrays are.
    memory_limit : int, optional
        Bytes that the call may take beyond what is in memory already: rows in files are read in tiles that fit.
        Default: a quarter of the free memory.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Neighbors
        ``distances`` (N, k) float64, ascending, and ``indices`` (N, k) int64, ties to the lower index. Tensors for
        tensors, NumPy for NumPy (as the queries are).

    Raises
    ------
    ValueError
        `k` or `metric` out of range, shapes that disagree, NaN or infinity.
    TypeError
        Arrays that are not floating-point, an argument of the wrong type.

    Notes
    -----
    float32 products screen the points; what may be among the k nearest is measured from float64 differences, and only
    that decides. About ``2 N M D`` operations; memory beyond the input and the result: 80 MB, and
    16 MB a thread where `k` is in the thousands. Not differentiable.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> points = torch.tensor([[0.0], [1.0], [5.0]])
    >>> alk.knn(torch.tensor([[0.9], [4.0]]), points, 2).indices
    tensor([[1, 0],
            [2, 1]])
    """
    if torch.compiler.is_compiling():
        not_compiled(device=device, memory_limit=memory_limit)
        return Neighbors(*torch.ops.alkernels.knn(*detached(queries, points), k, metric=metric))
    left, right = Pool(queries, "queries", device=device), Pool(points, "points", device=device)
    for pool in (left, right):
        if len(pool.sources) > 1:
            raise TypeError(f"{pool.name} must be one array, got a pair")
        check_device(pool)
    if left.widths != right.widths:
        raise ValueError(f"points must be as wide as queries, got width {right.widths[0]} and {left.widths[0]}")
    if left.device != right.device:
        raise ValueError(f"points must be on the device of queries ({left.device}), got {right.device}")
    metric = check_metric(metric, left)
    k = check_integer(k, "k")
    if not 0 <= k <= right.count:
        raise ValueError(f"k must be between 0 and {right.count} (rows of points), got {k}")
    limit = check_memory_limit(memory_limit)
    for pool in (left, right):  # the points' blocks are packed: they take half of what tiles may
        pool.limit_memory(limit, _BYTES + 16 * left.count * k, 2)
    with explain_memory(left, f"{left.count} lists of {k}", need=16 * left.count * k):
        squared, indices = _nearest(left, right, k, metric, progress)
        return Neighbors(left.out(to_distance(squared, metric)), left.out(indices))


def _nearest(left: Pool, right: Pool, k: int, metric: str, progress: bool) -> tuple[torch.Tensor, torch.Tensor]:
    device = left.device
    squared = torch.full((left.count, k), torch.inf, dtype=torch.float64, device=device)
    indices = torch.full((left.count, k), -1, dtype=torch.int64, device=device)
    largest = max(map(largest_magnitude, (left, right)))
    if not k or not left.count:
        return squared, indices
    wide = largest >= LARGEST_NARROW or torch.float64 in (left.sources[0].dtype, right.sources[0].dtype)
    shift = middle(right) if metric == "euclidean" else None
    d, memory = left.widths[0], min(bytes_a_call(device, _BYTES_A_TILE), 2 * right.tile_bytes)
    size = max(1, memory // (16 * max(d, 16) + 24))
    some = max(64, int(operations_a_call(device) / (2.0 * d * min(size, right.count))))
    total = left.count * right.count
    with tqdm(total=total, desc="knn", unit="pair", unit_scale=True, disable=not progress) as bar:
        for first, last, (block,) in right.tiles(size):
            for begin, end, (tile,) in left.tiles(some):
                torch.ops.alkernels.nearest_points(
                    tile, block, shift, METRICS[metric], first, wide, squared[begin:end], indices[begin:end]
                )
                bar.update((end - begin) * (last - first))
    return squared, indices


@torch.library.impl(library, "knn", "CompositeExplicitAutograd")
def _(queries, points, k, *, metric="euclidean"):  # type: ignore[no-untyped-def]
    return tuple(knn(queries, points, k, metric=metric))


@torch.library.register_fake("alkernels::knn")
def _(queries, points, k, *, metric="euclidean"):  # type: ignore[no-untyped-def]
    torch._check(queries.dim() == 2 and points.dim() == 2, lambda: "queries and points must be two-dimensional")
    torch._check(queries.shape[1] == points.shape[1], lambda: "points must be as wide as queries")
    torch._check(k >= 0, lambda: f"k must not be negative, got {k}")
    torch._check(k <= points.shape[0], lambda: f"k must be at most {points.shape[0]} (rows of points), got {k}")
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.float64), queries.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("alkernels::nearest_points")
def _(queries, points, shift, metric, first_point, wide, values, indices):  # type: ignore[no-untyped-def]
    torch._check(queries.dim() == 2 and points.dim() == 2 and queries.shape[1] == points.shape[1])
    torch._check(values.shape == indices.shape)
