"""Greedy coverage (facility location): rows that together are similar to all rows, lazily, in blocks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from alkernels._checkpoint import Checkpoint, checkpointed
from alkernels._inputs import (
    LARGEST_NARROW,
    Array,
    CoverageSelection,
    Pool,
    Selection,
    bytes_a_call,
    check_integer,
    check_labeled,
    check_memory_limit,
    check_number,
    check_pool,
    check_rows,
    check_vector,
    largest_magnitude,
    not_compiled,
    operations_a_call,
)
from alkernels._streaming import explain_memory
from alkernels.ops.lazy_greedy import LazyGreedy
from alkernels.ops.running_distances import middle, rounding_share
from alkernels.ops.selection import detached, library

KERNELS = {"cosine": 0, "rbf": 1, "tophat": 2}

# Beside tiles a selection takes so many bytes, and so many a row.
_BYTES, _BYTES_A_ROW = 48 << 20, 64
# Starts beyond this have sums that float32 cannot hold.
_LARGEST_START = 1e30
# Squared distances are measured from differences where products may put them off by more than this share of the
# bandwidth's square.
_DOUBT = 1e-10


def greedy_coverage(
    features: Array,
    k: int,
    *,
    candidates: Any = None,
    weights: Any = None,
    labeled: Array | None = None,
    covered: Any = None,
    kernel: str = "cosine",
    bandwidth: float | None = None,
    return_covered: bool = False,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Selection | CoverageSelection:
    """Pick `k` rows that together cover the pool: each pick adds the most weighted similarity.

    Greedy maximisation of ``F(S) = Σ_j w_j max(m_j, max_{i in S} s(i, j))``: facility location for cosine and RBF
    similarities, weighted maximum coverage for the top-hat. The picks are those of the sequential rule, within
    ``1 - 1/e`` of the best set; similarities are computed in tiles, and only candidates that may win are looked at.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        The pool: float16, bfloat16, float32 or float64, any strides; a ``numpy.memmap``, or a dataset in a file that
        slices by rows (HDF5, Zarr, safetensors, Arrow).
    k : int
        How many rows to pick, at most as many as there are candidates.
    candidates : mask of shape (N,) or row numbers, optional
        The rows that may be picked. Default: all.
    weights : array of shape (N,), optional
        How much covering each row is worth, not negative. Default: 1 each.
    labeled : like `features`, shape (L, D), optional
        Rows that cover the pool already.
    covered : array of shape (N,), optional
        The similarity ``m_j`` that each row starts at; what lies below it counts for nothing. Default: 0. For cosine,
        -1 lets negative similarities count.
    kernel : {"cosine", "rbf", "tophat"}, default "cosine"
        The similarity of rows at distance d: ``cosine``, 0 for a row of zeros; ``rbf``, ``exp(-(d / bandwidth)²)``;
        ``tophat``, 1 where ``d < bandwidth``, else 0.
    bandwidth : float, optional
        Above 0, in the unit of distances. Default: 1; cosine has none.
    return_covered : bool, default False
        Also return each row's similarity to the row that covers it best.
    device : torch.device or str, optional
        A CUDA device to work on features in host memory with: copied to it once where they take up to 0.6 of its free
        memory, else streamed at each pass. Results come back to host memory. Default: where features are.
    memory_limit : int, optional
        Bytes that the call may take beyond what is in memory already: rows in files are read in tiles that fit.
        Default: a quarter of the free memory.
    checkpoint : str or Path, optional
        A file that the state is saved to now and then, and taken from where it exists: a run that was killed at any
        moment goes on to the picks it would have made. Ctrl-C saves before it ends; a second one ends at once.
        Features are walked once more, for a fingerprint. The file stays behind.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Selection or CoverageSelection
        ``indices`` (k,) int64, distinct, in the order picked; ``scores`` (k,) float64, each pick's gain in ``F``,
        non-increasing. With `return_covered` also ``covered`` (N,) float64. Tensors for tensors, NumPy for NumPy.

    Raises
    ------
    ValueError
        `k`, `kernel`, `bandwidth` or a candidate out of range, negative weights or none above zero, shapes that
        disagree, NaN or infinity.
    TypeError
        A pool that is not floating-point, an argument of the wrong type.

    Notes
    -----
    float32 only bounds gains from above; those that decide are summed in float64, ties to the lowest index. A gain from
    an earlier step bounds a candidate's gain now, so after the first step (``2 N² D`` operations) few are looked at
    again. Memory beyond the pool: 64 MB and 64 bytes a row. Not differentiable: features are detached.

    References
    ----------
    .. [1] M. Minoux. Accelerated greedy algorithms for maximizing submodular set functions. Optimization Techniques,
       1978.
    .. [2] K. Wei, R. Iyer, J. Bilmes. Submodularity in data subset selection and active learning. ICML 2015.
    .. [3] W. Bae, J. Noh, D. J. Sutherland. Generalized coverage for more robust low-budget active learning. ECCV 2024.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> features = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> alk.greedy_coverage(features, 2, kernel="tophat", bandwidth=1.5)
    Selection(indices=tensor([1, 3]), scores=tensor([3., 1.], dtype=torch.float64))
    """
    if torch.compiler.is_compiling():
        not_compiled(device=device, memory_limit=memory_limit, checkpoint=checkpoint)
        rows, worth, known, start = detached(features, weights, labeled, covered)
        out = torch.ops.alkernels.greedy_coverage(
            rows,
            k,
            candidates=candidates,
            weights=worth,
            labeled=known,
            covered=start,
            similarity=kernel,
            bandwidth=bandwidth,
        )
        return CoverageSelection(*out) if return_covered else Selection(out[0], out[1])
    pool = check_pool(features, device)
    pool.limit_memory(check_memory_limit(memory_limit), memory_needed(pool))
    if len(pool.sources) > 1:
        raise TypeError("features must be one array, got a pair")
    similarity, width = check_kernel(kernel, bandwidth)
    may = None if candidates is None else check_rows(candidates, "candidates", pool.count, pool.device, pool.name)
    k = check_integer(k, "k")
    most, what = (pool.count, "rows of features") if may is None else (len(may), "candidates")
    if not 0 <= k <= most:
        raise ValueError(f"k must be between 0 and {most} ({what}), got {k}")
    worth = check_weights(weights, pool)
    known = check_labeled(labeled, pool)
    start = torch.zeros(pool.count, dtype=torch.float64, device=pool.device)
    if covered is not None:
        start = check_vector(covered, "covered", pool)
    with explain_memory(pool, f"{k} picks"):
        picks, gains = select(
            pool, k, may, worth, start, known, similarity, width, checkpoint=checkpoint, progress=progress
        )
    if return_covered:
        return CoverageSelection(pool.out(picks), pool.out(gains), pool.out(start))
    return Selection(pool.out(picks), pool.out(gains))


def memory_needed(pool: Pool) -> int:
    """Bytes that a selection takes beside pool and tiles."""
    return _BYTES + _BYTES_A_ROW * pool.count


class Coverage:
    """The pool, and how far each of its rows is covered.

    Attributes
    ----------
    covered : Tensor of shape (N,), float64
        Each row's similarity to the row that covers it best.
    """

    def __init__(
        self,
        pool: Pool,
        similarity: int,
        bandwidth: float,
        weights: torch.Tensor,
        covered: torch.Tensor,
        labeled: Pool | None = None,
    ) -> None:
        self.pool, self.covered, self.weights, self.labeled = pool, covered, weights, labeled
        self.similarity, self.bandwidth = similarity, bandwidth
        heaviest, largest, start = self.extent()
        # a power of two that brings the weights near 1, where float32 bounds them well
        self.unit = 2.0 ** math.floor(math.log2(heaviest))
        self.weights = weights / self.unit
        self.narrow = (
            pool.sources[0].dtype != torch.float64
            and largest < LARGEST_NARROW
            and start < _LARGEST_START
            and 1 / LARGEST_NARROW < bandwidth < LARGEST_NARROW
        )
        self.shift, self.refine = None, False
        if similarity != KERNELS["cosine"]:
            self.shift = self.middle()
            share = 2 * rounding_share(pool.widths[0], torch.float64)
            self.refine = share * self.largest_square(self.shift) > _DOUBT * bandwidth**2
        # Tiles do not depend on what is asked of them: a gain is the same bits beside any other candidates.
        self.tile = max(1, pool.rows_of(8 * pool.widths[0]) if pool.sliced else pool.count)
        width, at_once = pool.widths[0], operations_a_call(pool.device) / (2.0 * pool.widths[0] * self.tile)
        self.block = max(8, min(1024, bytes_a_call(pool.device, 1 << 20) // width, int(at_once)))
        self.add_labeled()

    def extent(self) -> tuple[float, float, float]:
        """The largest weight, magnitude of a feature, and magnitude that a row's coverage starts at."""
        known = [self.pool] if self.labeled is None else [self.pool, self.labeled]
        heaviest, start = (float(v.abs().max()) if len(v) else 0.0 for v in (self.weights, self.covered))
        return heaviest, max(map(largest_magnitude, known)), start

    def middle(self) -> torch.Tensor:
        """What rows are shifted by."""
        return middle(self.pool)

    def largest_square(self, shift: torch.Tensor) -> float:
        """The largest squared distance from the shift."""
        largest = 0.0
        for rows in [self.pool] if self.labeled is None else [self.pool, self.labeled]:
            for _, _, (tile,) in rows.tiles(rows.rows_of(32 * rows.widths[0])):
                largest = max(largest, float((tile.double() - shift).square_().sum(1).max()))
        return largest

    def add_labeled(self) -> None:
        """Covers the pool by the labelled rows."""
        if self.labeled is not None:
            for _, _, (tile,) in self.labeled.tiles(self.block):
                self.add(tile)

    def gains(self, rows: torch.Tensor, *, exact: bool) -> torch.Tensor:
        """What each of some rows would add; without `exact` upper bounds, cheaper."""
        parts = [self.gains_of(self.pool.gather(some)[0], exact=exact) for some in rows.split(self.block)]
        return torch.cat(parts) * self.unit

    def gains_of(self, points: torch.Tensor, *, exact: bool) -> torch.Tensor:
        """The same of up to `block` points [n, D], in units of `unit`."""
        total = torch.zeros(len(points), dtype=torch.float64, device=points.device)
        for begin, end, (tile,) in self.pool.tiles(self.tile):
            total += torch.ops.alkernels.coverage_gains(
                tile,
                self.weights[begin:end],
                self.covered[begin:end],
                points,
                self.shift,
                self.similarity,
                self.bandwidth,
                exact,
                self.refine,
            )
        return total

    def add(self, points: torch.Tensor) -> None:
        """Covers the pool by some points [n, D]."""
        for begin, end, (tile,) in self.pool.tiles(self.tile):
            torch.ops.alkernels.raise_covered(
                tile, points, self.shift, self.similarity, self.bandwidth, self.refine, self.covered[begin:end]
            )


def select(
    pool: Pool,
    k: int,
    candidates: torch.Tensor | None,
    weights: torch.Tensor,
    covered: torch.Tensor,
    labeled: Pool | None,
    similarity: int,
    bandwidth: float,
    *,
    checkpoint: str | Path | None = None,
    progress: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks and their gains, saved where that is wanted; `covered` becomes what they leave."""
    arrays = {"features": pool, "labeled": labeled, "candidates": candidates, "weights": weights, "covered": covered}
    settings = {"k": k, "kernel": similarity, "bandwidth": bandwidth}
    with checkpointed(checkpoint, "greedy_coverage", arrays, 0, **settings) as saved:
        coverage = Coverage(pool, similarity, bandwidth, weights, covered, labeled)
        return _select(coverage, k, candidates, saved, progress)


def _select(
    coverage: Coverage, k: int, candidates: torch.Tensor | None, saved: Checkpoint, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lazy rule."""
    pool = coverage.pool
    bounds = torch.full((pool.count,), torch.inf, dtype=torch.float64, device=pool.device)
    if candidates is not None:
        bounds.fill_(-torch.inf)[candidates] = torch.inf
    picks: list[int] = []
    gains: list[float] = []
    if saved.state is not None:
        bounds, picks, gains = saved.state["bounds"].to(pool.device), saved.state["picks"], saved.state["gains"]
        coverage.covered.copy_(saved.state["covered"])

    def state() -> dict[str, Any]:
        # bounds hold in the midst of a step too: what was evaluated at it, and is again, decides
        return {"bounds": bounds, "picks": picks, "gains": gains, "covered": coverage.covered}

    greedy = LazyGreedy(
        bounds,
        (lambda rows: coverage.gains(rows, exact=False)) if coverage.narrow else None,
        lambda rows: coverage.gains(rows, exact=True),
        after_block=lambda: saved.after_block(state),
    )
    with tqdm(total=k, initial=len(picks), desc="greedy coverage", unit="pick", disable=not progress) as bar:
        while len(picks) < k:
            pick, gain = greedy.best()
            picks.append(pick)
            gains.append(gain)
            greedy.exclude(pick)
            coverage.add(pool.gather(torch.tensor([pick], device=pool.device))[0])
            bar.update()
            saved.after_block(state, last=len(picks) == k)
    return (
        torch.tensor(picks, dtype=torch.int64, device=pool.device),
        torch.tensor(gains, dtype=torch.float64, device=pool.device),
    )


def check_kernel(kernel: Any, bandwidth: Any, name: str = "bandwidth") -> tuple[int, float]:
    if not isinstance(kernel, str) or kernel not in KERNELS:
        raise ValueError(f"kernel must be 'cosine', 'rbf' or 'tophat', got {kernel!r}")
    if bandwidth is None:
        return KERNELS[kernel], 1.0
    if kernel == "cosine":
        raise ValueError(f"{name} must not be given for kernel 'cosine', got {bandwidth!r}")
    width = check_number(bandwidth, name, "above 0, with a square that float64 can hold")
    if not 1e-150 < width < 1e150:
        raise ValueError(f"{name} must be above 0, with a square that float64 can hold, got {bandwidth!r}")
    return KERNELS[kernel], width


def check_weights(weights: Any, pool: Pool, name: str = "weights") -> torch.Tensor:
    worth = check_each_weight(weights, pool, name)
    check_total_weight(float(worth.sum()), name)
    return worth


def check_each_weight(weights: Any, pool: Pool, name: str) -> torch.Tensor:
    """Weights of which none is negative, 1 each by default."""
    if weights is None:
        return torch.ones(pool.count, dtype=torch.float64, device=pool.device)
    worth = check_vector(weights, name, pool)
    if (worth < 0).any():
        row = int((worth < 0).nonzero()[0])
        raise ValueError(f"{name} must not be negative, got {worth[row].item():.6g} in row {row}")
    return worth


def check_total_weight(total: float, name: str) -> None:
    if total == 0 or math.isinf(total):
        raise ValueError(f"{name} must have a sum above zero and finite, got {total}")


@torch.library.impl(library, "greedy_coverage", "CompositeExplicitAutograd")
def _(  # type: ignore[no-untyped-def]
    features, k, *, candidates=None, weights=None, labeled=None, covered=None, similarity="cosine", bandwidth=None
):
    return tuple(
        greedy_coverage(
            features,
            k,
            candidates=candidates,
            weights=weights,
            labeled=labeled,
            covered=covered,
            kernel=similarity,
            bandwidth=bandwidth,
            return_covered=True,
        )
    )


@torch.library.register_fake("alkernels::greedy_coverage")
def _(  # type: ignore[no-untyped-def]
    features, k, *, candidates=None, weights=None, labeled=None, covered=None, similarity="cosine", bandwidth=None
):
    torch._check(features.dim() == 2, lambda: f"features must be two-dimensional, got {features.dim()}")
    torch._check(k >= 0, lambda: f"k must not be negative, got {k}")
    torch._check(k <= features.shape[0], lambda: f"k must be at most {features.shape[0]} (rows of features), got {k}")
    return (
        features.new_empty(k, dtype=torch.int64),
        features.new_empty(k, dtype=torch.float64),
        features.new_empty(features.shape[0], dtype=torch.float64),
    )


@torch.library.register_fake("alkernels::coverage_gains")
def _(rows, weights, covered, candidates, shift, similarity, bandwidth, exact, refine):  # type: ignore[no-untyped-def]
    torch._check(rows.dim() == 2 and candidates.dim() == 2 and rows.shape[1] == candidates.shape[1])
    return weights.new_empty(candidates.shape[0])


@torch.library.register_fake("alkernels::raise_covered")
def _(rows, centers, shift, similarity, bandwidth, refine, covered):  # type: ignore[no-untyped-def]
    torch._check(rows.dim() == 2 and centers.dim() == 2 and rows.shape[1] == centers.shape[1])
    torch._check(covered.shape == (rows.shape[0],))
