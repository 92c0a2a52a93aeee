"""Diversity and coverage: random, core-set, facility location, and what clusters or covers the pool."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from alkernels._inputs import (
    Array,
    Factors,
    Pool,
    RowsLike,
    Selection,
    check_integer,
    check_labeled,
    check_memory_limit,
    check_metric,
    check_number,
    check_pool,
    check_start,
    largest_magnitude,
    seed_of,
)
from alkernels._probabilities import Probabilities
from alkernels._sources import RowsOf, is_numpy, shape_of
from alkernels._streaming import explain_memory
from alkernels.ops import greedy_coverage as coverage_op
from alkernels.ops import k_center_greedy as center_op
from alkernels.ops import kmeans_plusplus as seeding_op
from alkernels.ops.knn import knn
from alkernels.ops.running_distances import RunningDistances, memory_needed
from alkernels.strategies import _robust
from alkernels.strategies._arguments import (
    check_above_zero,
    check_features,
    check_single,
    rows_a_tile,
    scaled_to_one,
)
from alkernels.strategies._catalogue import strategy
from alkernels.strategies._clustering import MOST_CLUSTERS, PLAIN_CLUSTERS, check_clusterer, kmeans
from alkernels.strategies._picking import check_batch_size, check_scores, top

# The exact solver's largest pool by default.
_LARGEST_EXACT = 2000
# Of the paper's outliers, a share of the pool.
_OUTLIERS = 1e-4
# TypiClust's constants, of the authors' code.
_SMALL_CLUSTER, _NEIGHBORS, _EPSILON = 5, 20, 1e-5
# Farther than rows of length one (or zero) can be apart.
_EVERYWHERE = 2.5


class CoreSetSelection(NamedTuple):
    """A :class:`Selection` with its cover radius.

    Attributes
    ----------
    indices, scores
        As in :class:`Selection`.
    cover_radius : float
        The largest distance of a row to its nearest centre.
    """

    indices: Any
    scores: Any
    cover_radius: float


class RobustSelection(NamedTuple):
    """A :class:`Selection` with what is known of its cover.

    Attributes
    ----------
    indices, scores
        As in :class:`Selection`.
    radius : float
        The smallest radius that all rows but the outliers are within.
    optimal : bool
        No other picks have a smaller one: it was proved.
    """

    indices: Any
    scores: Any
    radius: float
    optimal: bool


class BallSelection(NamedTuple):
    """A :class:`Selection` of covering balls.

    Attributes
    ----------
    indices, scores
        As in :class:`Selection`.
    delta : float
        The radius of the balls.
    """

    indices: Any
    scores: Any
    delta: float


def _size(batch_size: Any, pool: Pool) -> int:
    return check_batch_size(batch_size, pool.count, f"rows of {pool.name}")


def _labeled(rows: RowsLike | None, pool: Pool) -> Pool | None:
    return check_labeled(rows, pool, f"labeled_{pool.name}")


def _whole(pool: Pool) -> torch.Tensor:
    return pool.tile(0, pool.count)[0]


def _joined(*parts: torch.Tensor) -> torch.Tensor:
    """Rows of any widths of numbers one behind the other, in float32 at least."""
    dtype = torch.float32
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.to(dtype) for part in parts])


@strategy(
    formula=r"u_n \sim U(0, 1)",
    cost="N",
    use="The baseline of every comparison.",
)
def random(pool: Any, *, generator: torch.Generator | int | None = None) -> Array:
    """A uniform random number for each row.

    Parameters
    ----------
    pool : array of N rows
        Any array of the pool; only its length matters.
    generator : torch.Generator or int, optional
        Draws the numbers. Default: torch's global generator.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64

    References
    ----------
    .. [1] D. D. Lewis, W. A. Gale. A sequential algorithm for training text classifiers. SIGIR 1994.
    """
    rows = pool[0] if isinstance(pool, (tuple, list)) else pool
    uniform = torch.Generator().manual_seed(seed_of(generator))
    scores = torch.rand(shape_of(rows)[0], dtype=torch.float64, generator=uniform)
    return scores.numpy() if is_numpy(rows) else scores.to(getattr(rows, "device", "cpu"))


def _farthest_first(
    pool: Pool,
    batch_size: int,
    known: Pool | None,
    start: int | None,
    metric: str,
    generator: torch.Generator | int | None,
    progress: bool,
    checkpoint: str | Path | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and distances of a k-center greedy."""
    with explain_memory(pool, f"{batch_size} picks", fewer="batch_size"):
        run = center_op.select(
            pool, batch_size, known, start, metric, generator, track=False, checkpoint=checkpoint, progress=progress
        )
        return run.indices, center_op.to_distance(run.squared, metric)


@strategy(
    formula=r"\arg\max_i \min_{j \in S} d(x_i, x_j)",
    cost="(L + b) N D",
    kernels=("k_center_greedy",),
    use="Large batches that must not repeat themselves, on features that mean something; takes outliers first.",
)
def k_center_greedy(
    features: RowsLike,
    batch_size: int,
    *,
    labeled_features: RowsLike | None = None,
    start: int | None = None,
    metric: str = "euclidean",
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> CoreSetSelection:
    """Core-set: each pick is the row farthest from the labelled rows and all earlier picks.

    The greedy 2-approximation of the k-center problem, :func:`alkernels.k_center_greedy`.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D), or a pair of shapes (N, C) and (N, D)
        Feature vectors of the pool, such as activations before the last layer, as they are. A pair ``(a, h)`` is the
        outer products ``a[i] ⊗ h[i]``, which are never built.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        Those of the labelled rows.
    start : int, optional
        The first pick. By default the row farthest from the labelled ones; without any, one drawn by `generator`.
    metric : {"euclidean", "cosine", "symmetric_kl"}, default "euclidean"
        As in :func:`alkernels.k_center_greedy`.
    generator : torch.Generator or int, optional
        Draws the first pick where nothing else decides it. Default: torch's global generator.
    device : torch.device or str, optional
        A CUDA device to work on features in host memory with.
    memory_limit : int, optional
        Bytes that it may take beyond what is in memory already: rows in files are read in tiles that fit.
    checkpoint : str or Path, optional
        A file to save the state to and to go on from, as in :func:`alkernels.k_center_greedy`.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    CoreSetSelection
        ``scores`` are the distances to the nearest centre when picked: they fall; ``inf`` for the first pick without
        labelled rows. ``cover_radius``: the largest distance that is left, ``inf`` where there is no centre at all.

    Raises
    ------
    ValueError
        `batch_size`, `start` or `metric` out of range, widths that disagree, NaN or infinity.
    TypeError
        An argument of the wrong type.

    Notes
    -----
    Without ties the picks do not depend on the order of the pool. Memory beyond the features: 20 bytes a row.

    References
    ----------
    .. [1] O. Sener, S. Savarese. Active learning for convolutional neural networks: a core-set approach. ICLR 2018.
    .. [2] T. F. Gonzalez. Clustering to minimize the maximum intercluster distance. Theor. Comput. Sci. 38, 1985.
    """
    pool = check_pool(features, device)
    pool.limit_memory(check_memory_limit(memory_limit), memory_needed(pool))
    metric = check_metric(metric, pool, center_op.METRICS)
    batch_size, start = _size(batch_size, pool), check_start(start, pool)
    known = _labeled(labeled_features, pool)
    # the pick after the last is the row farthest from all of them
    more = min(batch_size + 1, pool.count)
    picks, scores = _farthest_first(pool, more, known, start, metric, generator, progress, checkpoint)
    radius = float(scores[batch_size]) if more > batch_size else 0.0
    return CoreSetSelection(pool.out(picks[:batch_size]), pool.out(scores[:batch_size]), radius)


@strategy(
    formula=r"n_t \sim D^2 = \min_{j \in S} \lVert x_n - x_j \rVert^2",
    cost="passes N D m, a few passes a batch",
    kernels=("kmeans_plusplus",),
    use="A diverse sample that follows the density more than core-set does, and is not led by single outliers.",
)
def kmeans_plusplus(
    features: RowsLike,
    batch_size: int,
    *,
    labeled_features: RowsLike | None = None,
    start: int | None = None,
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Selection:
    """k-means++ seeding: each pick is drawn by the squared distance to the nearest earlier one.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D), or a pair of shapes (N, C) and (N, D)
        Feature vectors of the pool. A pair ``(a, h)`` is the outer products ``a[i] ⊗ h[i]``, which are never built.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        Those of the labelled rows.
    start : int, optional
        The first pick. By default drawn like the others, without labelled rows uniformly.
    generator : torch.Generator or int, optional
        Makes all draws. Default: torch's global generator.
    device : torch.device or str, optional
        A CUDA device to work on features in host memory with.
    memory_limit : int, optional
        Bytes that it may take beyond what is in memory already: rows in files are read in tiles that fit.
    checkpoint : str or Path, optional
        A file to save the state to and to go on from, as in :func:`alkernels.kmeans_plusplus`.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        ``scores`` are the squared distances when drawn; ``inf`` for the first pick without labelled rows.

    Raises
    ------
    ValueError
        `batch_size` or `start` out of range, widths that disagree, NaN or infinity.
    TypeError
        An argument of the wrong type.

    References
    ----------
    .. [1] D. Arthur, S. Vassilvitskii. k-means++: the advantages of careful seeding. SODA 2007.
    """
    pool = check_pool(features, device)
    pool.limit_memory(check_memory_limit(memory_limit), memory_needed(pool))
    batch_size, start = _size(batch_size, pool), check_start(start, pool)
    known = _labeled(labeled_features, pool)
    with explain_memory(pool, f"{batch_size} draws", fewer="batch_size"):
        run = seeding_op.select(
            pool, batch_size, known, start, generator, track=False, checkpoint=checkpoint, progress=progress
        )
    return Selection(pool.out(run.indices), pool.out(run.squared))


@strategy(
    formula=r"\min_{S} \min \{ r : |\{ i : \min_{j \in S} d(x_i, x_j) > r \}| \le \Xi \}",
    cost="integer programs; N² D log N with method='greedy'",
    kernels=("k_center_greedy", "greedy_coverage", "knn"),
    use="Core-set that may leave outliers out; about a tenth less radius than greedy.",
)
def robust_k_center(
    features: Array,
    batch_size: int,
    *,
    labeled_features: Array | None = None,
    outliers: int | None = None,
    method: str = "auto",
    time_limit: float = 60.0,
    start: int | None = None,
    generator: torch.Generator | int | None = None,
    progress: bool = False,
) -> RobustSelection:
    """Core-set with outliers: picks of the smallest radius around all rows but a few.

    From the radius of the k-center greedy picks down, discs of one radius after another are placed greedily, each
    where it holds most rows that are outside of all others. Then follows a bisection over the distances that occur:
    whether a radius is possible is an integer program of one binary a row, which SciPy's HiGHS solves. Large pools are
    left to the greedy discs, which are within three times the smallest radius by the rule of Charikar et al.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        Feature vectors of the pool.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        Those of the labelled rows.
    outliers : int, optional
        How many rows of the pool may lie outside. Outliers can be picked like any other row. Default: ``N // 10000``.
    method : {"auto", "exact", "greedy"}, default "auto"
        "exact" for integer programs, which store N x N distances; "greedy" for the discs alone; "auto" is exact up to
        N = 2000.
    time_limit : float, default 60
        Seconds for all integer programs together. After that the best picks so far are returned, which may then depend
        on the machine's speed.
    start : int, optional
        The first of the greedy picks to begin with. By default the row farthest from the labelled ones; without
        any, one drawn by `generator`.
    generator : torch.Generator or int, optional
        Draws that first pick. Default: torch's global generator.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    RobustSelection
        ``indices`` (b,) in farthest-first order among themselves, and as ``scores`` the distances to the nearest centre
        at that; without labelled rows the first is the lowest index (of greedy picks their first), at ``inf``.
        ``radius``, never above that of the greedy picks; infinite where there is no centre at all. ``optimal``: whether
        it is proved to be the smallest; always False of "greedy", but where every set would do.

    Raises
    ------
    ValueError
        An argument out of range, widths that disagree, NaN or infinity.
    TypeError
        An argument of the wrong type.

    Notes
    -----
    Where fewer picks suffice for the radius, farthest-first ones fill up. The lower end of the bisection is half the
    distance of greedy pick number ``b + outliers``, below which no radius can be (the paper's half the greedy radius is
    too high with outliers). "exact" takes about a second at N = 300, and from N = 1000 on often more than the
    time limit; memory some 30 N² bytes. "greedy" takes some ten steps of as much as a facility location each.

    References
    ----------
    .. [1] O. Sener, S. Savarese. Active learning for convolutional neural networks: a core-set approach. ICLR 2018.
    .. [2] M. Charikar, S. Khuller, D. M. Mount, G. Narasimhan. Algorithms for facility location problems with outliers.
       SODA 2001.
    """
    pool = check_features(features)
    count = pool.count
    batch_size, start = _size(batch_size, pool), check_start(start, pool)
    known = _labeled(labeled_features, pool)
    outliers = int(_OUTLIERS * count) if outliers is None else check_integer(outliers, "outliers")
    if outliers < 0:
        raise ValueError(f"outliers must not be negative, got {outliers}")
    if method not in ("auto", "exact", "greedy"):
        raise ValueError(f"method must be 'auto', 'exact' or 'greedy', got {method!r}")
    check_above_zero(time_limit, "time_limit")

    # one more than the picks and the outliers: two of them share a centre, whichever those are
    more = min(count, batch_size + outliers + 1)
    farthest, scores = _farthest_first(pool, more, known, start, "euclidean", generator, progress)
    picks, optimal = farthest[:batch_size], batch_size + outliers >= count or batch_size == 0
    if not optimal:
        bound = (1 - 1e-4) * float(scores[-1]) / 2
        better = _robust.approximate(
            _robust.Discs(pool, known, outliers),
            picks,
            lambda centers: _robust.radius_of(_to_centers(features, pool, known, centers), outliers),
            bound,
            progress,
        )
        if method == "exact" or (method == "auto" and count <= _LARGEST_EXACT):
            rows = _whole(pool).double()
            found, optimal = _robust.exact(
                torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy(),
                _to_centers(features, pool, known, picks[:0]),
                better.cpu().numpy(),
                batch_size,
                outliers,
                bound,
                float(time_limit),
                progress,
            )
            better = torch.from_numpy(found).to(pool.device)
        if not torch.equal(better, picks):
            picks = _filled(features, pool, known, better, batch_size)
    if torch.equal(picks, farthest[:batch_size]):
        scores = scores[:batch_size]
    else:
        picks = picks.sort().values
        among = check_pool(pool.gather(picks)[0])
        first = 0 if known is None else None
        order, scores = _farthest_first(among, batch_size, known, first, "euclidean", None, False)
        picks = picks[order]
    radius = _robust.radius_of(_to_centers(features, pool, known, picks), outliers)
    return RobustSelection(pool.out(picks), pool.out(scores), radius, optimal or radius == 0)


def _to_centers(features: Array, pool: Pool, known: Pool | None, picks: torch.Tensor) -> np.ndarray:
    """Each row's distance to the nearest labelled or picked row, infinite without any."""
    nearest = torch.full((pool.count,), torch.inf, dtype=torch.float64, device=pool.device)
    for centers in ([] if known is None else [_whole(known)]) + ([pool.gather(picks)[0]] if len(picks) else []):
        found = knn(features, centers, 1).distances[:, 0]
        nearest = torch.minimum(nearest, torch.as_tensor(found))
    return nearest.cpu().numpy()


def _filled(features: Array, pool: Pool, known: Pool | None, picks: torch.Tensor, count: int) -> torch.Tensor:
    """The picks and as many of the other rows, farthest first, as make up the count."""
    if len(picks) == count:
        return picks
    free = torch.ones(pool.count, dtype=torch.bool, device=pool.device).index_fill_(0, picks, False)
    rest = free.nonzero().flatten()
    others = check_pool(RowsOf(features, rest))  # type: ignore[arg-type]
    centers = [pool.gather(picks)[0]] + ([] if known is None else [_whole(known)])
    more, _ = _farthest_first(
        others, count - len(picks), Pool(_joined(*centers), "centers"), None, "euclidean", None, False
    )
    return torch.cat([picks, rest[more]])


@strategy(
    formula=r"\arg\max_i \min_{j \in S} \tfrac12 (\mathrm{KL}(p_i \| p_j) + \mathrm{KL}(p_j \| p_i))",
    cost="4 (L + b) N C",
    kernels=("k_center_greedy",),
    use="Predictions that differ, for classes that are confused in many ways; mean pixel predictions of segmentation.",
)
def contextual_diversity(
    probs: Array,
    batch_size: int,
    *,
    labeled_probs: Array | None = None,
    start: int | None = None,
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection:
    """Core-set of predictions (CDAL-CS): k-center greedy under the symmetric KL divergence.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities of the pool (of an image's pixels, their mean).
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_probs : like `probs`, shape (L, C), optional
        Those of the labelled rows.
    start : int, optional
        The first pick. By default the row farthest from the labelled ones; without any, one drawn by `generator`. (The
        authors' code draws it with labelled rows too.)
    generator : torch.Generator or int, optional
        Draws the first pick where nothing else decides it. Default: torch's global generator.
    device : torch.device or str, optional
        A CUDA device to work on probs in host memory with.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        ``scores`` are the divergences, in nats, from the nearest centre when picked; ``inf`` for the first pick without
        labelled rows, and where one prediction rules out a class that the other allows.

    Raises
    ------
    ValueError
        `batch_size` or `start` out of range, distributions that do not sum to 1 within 1e-3, negative probabilities,
        NaN.
    TypeError
        An argument of the wrong type.

    References
    ----------
    .. [1] S. Agarwal, H. Arora, S. Anand, C. Arora. Contextual diversity for active learning. ECCV 2020.
    """
    rows = Probabilities(probs, "probs", 2, False, device=device)
    pool = rows.pool
    if pool.count == 0:
        raise ValueError(f"probs must have at least one row, got shape {tuple(rows.shape)}")
    batch_size, start = _size(batch_size, pool), check_start(start, pool)
    known = _labeled(labeled_probs, pool)
    picks, scores = _farthest_first(pool, batch_size, known, start, "symmetric_kl", generator, progress)
    return Selection(pool.out(picks), pool.out(scores))


def _of_length_one(
    features: Array, labeled_features: Array | None, device: torch.device | str | None
) -> tuple[Pool, Array | None]:
    """The pool and the labelled rows scaled to length one, copies."""
    rows = check_features(features)
    rows.check_finite()
    scaled = scaled_to_one(rows)
    pool = check_pool(scaled.numpy() if rows.numpy else scaled, device)
    if labeled_features is None:
        return pool, None
    known = check_single(Pool(labeled_features, "labeled_features"))
    known.check_finite()
    return pool, scaled_to_one(known)


def _cover(
    pool: Pool,
    batch_size: Any,
    labeled: Array | None,
    scores: Any,
    kernel: str,
    bandwidth: float | None,
    progress: bool,
    name: str = "bandwidth",
    checkpoint: str | Path | None = None,
) -> Selection:
    """A greedy cover of the pool, weighted by scores; cosines count from -1."""
    similarity, width = coverage_op.check_kernel(kernel, bandwidth, name)
    batch_size = _size(batch_size, check_single(pool))
    worth = None if scores is None else check_scores(scores, "scores", pool.count)
    if worth is not None and not worth.any():
        worth = None  # as everywhere in the catalogue: rows that are all worth nothing are all worth the same
    weights = coverage_op.check_weights(worth, pool, "scores")
    known = _labeled(labeled, pool)
    least = torch.full((pool.count,), -1.0 if kernel == "cosine" else 0.0, dtype=torch.float64, device=pool.device)
    with explain_memory(pool, f"{batch_size} picks", fewer="batch_size"):
        picks, gains = coverage_op.select(
            pool, batch_size, None, weights, least, known, similarity, width, checkpoint=checkpoint, progress=progress
        )
        return Selection(pool.out(picks), pool.out(gains))


@strategy(
    formula=r"\arg\max_i \sum_j w_j \max\{0, s(x_i, x_j) - \max_{k \in S} s(x_k, x_j)\}",
    cost="N² D, then b N D and a few gains a pick",
    kernels=("greedy_coverage",),
    use="A batch that stands for the pool; with of= for the part of it that another strategy values.",
)
def facility_location(
    features: Array,
    batch_size: int,
    *,
    labeled_features: Array | None = None,
    scores: Any = None,
    kernel: str = "cosine",
    bandwidth: float | None = None,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Selection:
    """Rows to which together all rows of the pool are most similar: :func:`alkernels.greedy_coverage`.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        Feature vectors of the pool.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        Labelled rows, to which the pool is similar already.
    scores : array of shape (N,), optional
        What being covered is worth for each row, not negative: ``select("facility_location", b, of="entropy", ...)``.
        Default: 1 each.
    kernel : {"cosine", "rbf", "tophat"}, default "cosine"
        The similarity s, as in :func:`alkernels.greedy_coverage`. Cosines count in full, negative ones too: a row that
        nothing covers stands at -1, for the other kernels at 0.
    bandwidth : float, optional
        Of "rbf" and "tophat". Default: 1.
    device : torch.device or str, optional
        A CUDA device to work on features in host memory with.
    memory_limit : int, optional
        Bytes that it may take beyond what is in memory already: rows in files are read in tiles that fit.
    checkpoint : str or Path, optional
        A file to save the state to and to go on from, as in :func:`alkernels.greedy_coverage`.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        ``scores`` are the gains, non-increasing. Together they are at least ``1 - 1/e`` of those of the best batch.

    Raises
    ------
    ValueError
        An argument out of range, negative scores, widths that disagree, NaN or infinity.
    TypeError
        An argument of the wrong type.

    Notes
    -----
    N x N is not stored. Memory beyond the features: 64 MB and 64 bytes a row. Without ties the picks do not depend on
    the order of the pool.

    References
    ----------
    .. [1] K. Wei, R. Iyer, J. Bilmes. Submodularity in data subset selection and active learning. ICML 2015.
    """
    pool = check_pool(features, device)
    pool.limit_memory(check_memory_limit(memory_limit), coverage_op.memory_needed(pool))
    return _cover(pool, batch_size, labeled_features, scores, kernel, bandwidth, progress, checkpoint=checkpoint)


@strategy(
    formula=r"\arg\max_i \sum_j w_j \max\{0, k(i, j) - \max_{s \in S} k(s, j)\}, \; k = e^{-\|x_i - x_j\|^2 / h^2}",
    cost="N² D, then b N D and a few gains a pick",
    kernels=("greedy_coverage",),
    use="The first tens of labels, on features of a pretrained model.",
)
def max_herding(
    features: Array,
    batch_size: int,
    *,
    labeled_features: Array | None = None,
    bandwidth: float = 1.0,
    scores: Any = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection:
    """Generalized coverage: rows whose Gaussian kernels together cover the pool, on features of length one.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        Feature vectors of the pool. They are scaled to length one; a row of zeros stays.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        Labelled rows, which cover the pool already.
    bandwidth : float, default 1
        The kernel's h, in the unit of distances between rows of length one, which are at most 2.
    scores : array of shape (N,), optional
        What covering each row is worth, not negative. Default: 1 each.
    device : torch.device or str, optional
        A CUDA device to work on features in host memory with.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        ``scores`` are the gains, non-increasing.

    Raises
    ------
    ValueError
        An argument out of range, negative scores, widths that disagree, NaN or infinity.
    TypeError
        An argument of the wrong type.

    Notes
    -----
    N x N is not stored. Memory: a copy of the features, 64 MB and 64 bytes a row. Without ties the picks do not depend
    on the order of the pool.

    References
    ----------
    .. [1] W. Bae, J. Noh, D. J. Sutherland. Generalized coverage for more robust low-budget active learning. ECCV 2024.
    """
    pool, labeled = _of_length_one(features, labeled_features, device)
    return _cover(pool, batch_size, labeled, scores, "rbf", bandwidth, progress)


@strategy(
    formula=r"\arg\max_{i \in c} \Big(\frac{1}{n} \sum_{j \in \mathrm{NN}_n(i)} \|x_i - x_j\| + \epsilon\Big)^{-1}",
    cost="k-means of (N + L) D into L + b, then n_c² D a pick in a cluster of n_c",
    kernels=("kmeans_plusplus", "knn"),
    use="The first tens of labels, on features of a pretrained model.",
)
def typiclust(
    features: Array,
    batch_size: int,
    *,
    labeled_features: Array | None = None,
    clusterer: str = "sklearn",
    generator: torch.Generator | int | None = None,
    progress: bool = False,
) -> Selection:
    """The most typical row of each cluster, clusters without labels first.

    Pool and labelled rows are clustered by k-means into ``min(L + b, 500)``. Clusters of the fewest labelled rows come
    first, of those the largest, in turn; of each the row with the smallest mean distance to its nearest neighbours
    among the rows of its cluster that are neither labelled nor picked: 20 of them, or half the cluster.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        Feature vectors of the pool, of a pretrained model (the paper's are self-supervised, and of length one).
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        Those of the labelled rows.
    clusterer : {"sklearn", "faiss"}, default "sklearn"
        Whose k-means; scikit-learn's is of mini-batches above 50 clusters.
    generator : torch.Generator or int, optional
        Seeds the clustering. Default: torch's global generator.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        ``scores`` are typicalities, 0 for a row that is alone. They are not comparable between clusters.

    Raises
    ------
    ValueError
        An argument out of range, widths that disagree, NaN or infinity.
    TypeError
        An argument of the wrong type.

    Notes
    -----
    Clusters of 5 rows and fewer are left out until all others have no row left; then they follow in the same order (the
    authors' code stops with an error there). Memory: a copy of the features, and what k-means takes.

    References
    ----------
    .. [1] G. Hacohen, A. Dekel, D. Weinshall. Active learning on a budget: opposite strategies suit high and low
       budgets. ICML 2022.
    """
    pool = check_features(features)
    batch_size = _size(batch_size, pool)
    check_clusterer(clusterer)
    known = _labeled(labeled_features, pool)
    for some in (pool, known):
        if some is not None:
            largest_magnitude(some)
    if batch_size == 0:
        nothing = torch.empty(0, dtype=torch.float64, device=pool.device)
        return Selection(pool.out(nothing.long()), pool.out(nothing))
    labels = 0 if known is None else known.count
    rows = _joined(_whole(pool), *([] if known is None else [_whole(known)]))
    count = min(labels + batch_size, MOST_CLUSTERS)
    _, cluster = kmeans(rows, count, seed_of(generator), clusterer=clusterer, mini_batch=count > PLAIN_CLUSTERS)
    sizes = cluster.bincount(minlength=count).tolist()
    taken = cluster[pool.count :].bincount(minlength=count).tolist()
    inside = cluster[: pool.count].sort(stable=True)
    free = list(inside.indices.split(inside.values.bincount(minlength=count).tolist()))
    order = sorted(range(count), key=lambda c: (sizes[c] <= _SMALL_CLUSTER, taken[c], -sizes[c], c))

    picks: list[int] = []
    scores: list[float] = []
    with tqdm(total=batch_size, desc="typiclust", unit="pick", disable=not progress) as bar:
        for small in (False, True):
            turn = [c for c in order if (sizes[c] <= _SMALL_CLUSTER) is small]
            while turn := [c for c in turn if len(free[c])]:
                for c in turn[: batch_size - len(picks)]:
                    typicality = _typicality(rows[free[c]])
                    best = int(top(typicality, 1))
                    picks.append(int(free[c][best]))
                    scores.append(float(typicality[best]))
                    free[c] = torch.cat([free[c][:best], free[c][best + 1 :]])
                    bar.update()
                if len(picks) == batch_size:
                    break
    device = pool.device
    return Selection(
        pool.out(torch.tensor(picks, dtype=torch.int64, device=device)),
        pool.out(torch.tensor(scores, dtype=torch.float64, device=device)),
    )


def _typicality(rows: torch.Tensor) -> torch.Tensor:
    """One over the mean distance to the nearest neighbours; 0 for a lone row."""
    neighbors = min(_NEIGHBORS, len(rows) // 2)
    if neighbors == 0:
        return torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    # the nearest is the row itself, or a copy of it
    return 1 / (knn(rows, rows, neighbors + 1).distances[:, 1:].mean(1) + _EPSILON)


@strategy(
    formula=r"\arg\max_i |\{ j : \|x_i - x_j\| < \delta, \; j \text{ not covered} \}|",
    cost="N² D, and as much again for delta; then b N D",
    kernels=("greedy_coverage", "kmeans_plusplus", "knn"),
    use="The first tens of labels, on features of a pretrained model; hangs on delta.",
)
def probcover(
    features: Array,
    batch_size: int,
    *,
    labeled_features: Array | None = None,
    delta: float | None = None,
    num_classes: int | None = None,
    purity: float = 0.95,
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> BallSelection:
    """Balls of one radius that cover as many rows as possible, on features of length one.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        Feature vectors of the pool. They are scaled to length one; a row of zeros stays.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        Labelled rows, whose balls cover the pool already.
    delta : float, optional
        The balls' radius, exclusive. Default: the largest at which the share `purity` of all rows, pool and labelled,
        have nothing in their ball but rows of their own cluster, of k-means into `num_classes` clusters.
    num_classes : int, optional
        How many classes there are; needed without `delta`.
    purity : float, default 0.95
        Above 0, at most 1.
    generator : torch.Generator or int, optional
        Seeds the clustering. Default: torch's global generator.
    device : torch.device or str, optional
        A CUDA device to work on features in host memory with.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    BallSelection
        ``scores`` are how many rows each pick was first to cover, non-increasing; at 0 the rest follow by index.
        ``delta`` is the radius: rounds to come can be given it, so that all have the same.

    Raises
    ------
    ValueError
        An argument out of range, neither `delta` nor `num_classes`, widths that disagree, NaN or infinity.
    TypeError
        An argument of the wrong type.

    Notes
    -----
    The radius is exact: purity falls where the radius passes a row's distance to the nearest row of another cluster, so
    that it is one of these distances. (The paper tries a grid.) Where there is one cluster only, the ball is
    everything; where more rows than `purity` allows coincide with rows of other clusters, it is their copies alone.
    N x N is not stored. Memory: a few copies of the features, 64 MB and 64 bytes a row.

    Features that do not keep classes apart make small balls, which stay in the densest classes: of 20 picks of MNIST by
    32 principal components, the default radius (0.45) reaches 4 classes, `purity` 0.5 (0.75) all 10.

    References
    ----------
    .. [1] O. Yehuda, A. Dekel, G. Hacohen, D. Weinshall. Active learning through a covering lens. NeurIPS 2022.
    """
    pool, labeled = _of_length_one(features, labeled_features, device)
    batch_size = _size(batch_size, pool)
    known = _labeled(labeled, pool)
    if not 0 < check_number(purity, "purity", "above 0 and at most 1") <= 1:
        raise ValueError(f"purity must be above 0 and at most 1, got {purity!r}")
    if delta is None:
        points = _joined(_whole(pool), *([] if known is None else [_whole(known)]))
        if num_classes is None:
            raise ValueError("either delta or num_classes must be given, got neither")
        num_classes = check_integer(num_classes, "num_classes")
        if not 1 <= num_classes <= len(points):
            raise ValueError(f"num_classes must be between 1 and {len(points)} (rows), got {num_classes}")
        delta = _pure_radius(points, num_classes, float(purity), seed_of(generator))
    picked = _cover(pool, batch_size, labeled, None, "tophat", delta, progress, "delta")
    return BallSelection(picked.indices, picked.scores, float(delta))


def _pure_radius(points: torch.Tensor, clusters: int, purity: float, seed: int) -> float:
    """The largest radius at which the share `purity` of the points have no point of another cluster in their ball."""
    _, cluster = kmeans(points, clusters, seed)
    apart = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    for c in cluster.unique():
        inside = cluster == c
        if not inside.all():
            apart[inside] = knn(points[inside], points[~inside], 1).distances[:, 0]
    pure = min(len(points), max(1, math.ceil(purity * len(points) - 1e-9)))
    # a radius above 0 covers the copies of a point
    return min(_EVERYWHERE, max(1e-140, float(apart.sort(descending=True).values[pure - 1])))


@strategy(
    formula=r"\arg\max_{i \in c} d_i, \; c = \arg\max_c \sum_{i \in c} d_i^2, \; d_i = \min_{j \in S} \|x_i - x_j\|",
    cost="(L + b) N D, a pass over the pool for each pick",
    kernels=("lower_distances",),
    use="Regression; core-set that goes where many rows are far, rather than where one is.",
)
def lcmd(
    features: RowsLike,
    batch_size: int,
    *,
    labeled_features: RowsLike | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection:
    """Largest cluster, maximum distance: the farthest row of the cluster that is spread most.

    Labelled rows and picks are centres, each with the rows of the pool that it is nearest to. Of the cluster with the
    largest sum of squared distances the farthest row is picked next; without any centre, the row of the largest norm.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D), or a pair of shapes (N, C) and (N, D)
        Feature vectors of the pool; the authors' are gradients, or sketches of them. A pair ``(a, h)`` is the outer
        products ``a[i] ⊗ h[i]``, which are never built.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        Those of the labelled rows.
    device : torch.device or str, optional
        A CUDA device to work on features in host memory with.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        ``scores`` are the distances to the nearest centre when picked (they can rise), and the norm of the first pick
        without labelled rows.

    Raises
    ------
    ValueError
        `batch_size` out of range, widths that disagree, NaN or infinity.
    TypeError
        An argument of the wrong type.

    Notes
    -----
    Distances are float64. A pick depends on all distances, so that the pool is walked once for each: more than
    `k_center_greedy`, which makes its picks in blocks. Memory beyond the features: 40 bytes a row. Without ties the
    picks do not depend on the order of the pool.

    References
    ----------
    .. [1] D. Holzmüller, V. Zaverkin, J. Kästner, I. Steinwart. A framework and benchmark for deep batch active
       learning for regression. JMLR 24, 2023.
    """
    pool = check_pool(features, device)
    metric = check_metric("euclidean", pool)
    batch_size = _size(batch_size, pool)
    known = _labeled(labeled_features, pool)
    largest_magnitude(pool)
    with explain_memory(pool, f"{batch_size} picks", fewer="batch_size"):
        picks, scores = _largest_clusters(pool, batch_size, known, metric, progress)
        return Selection(pool.out(picks), pool.out(scores))


def _largest_clusters(
    pool: Pool, batch_size: int, known: Pool | None, metric: str, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and distances of LCMD."""
    state = RunningDistances(pool, metric, track=True)
    state.level = 0.0  # all in float64
    labels = 0
    if known is not None and batch_size:
        labels = known.count
        state.add_labeled(known)
    assert state.nearest is not None
    empty = torch.empty(0, dtype=torch.float64, device=pool.device)
    picks, scores = [empty.long()], [empty]
    sums = empty.new_empty(labels + batch_size)
    for made in tqdm(range(batch_size), desc="lcmd", unit="pick", disable=not progress):
        if labels + made == 0:
            values = _squared_lengths(pool)
        else:
            values = state.d2.clamp(min=0)
            cluster = top(sums.zero_().index_add_(0, state.nearest, values), 1)
            # where all distances are 0, a row of any cluster
            there = (state.nearest == cluster) | (sums[cluster] == 0)
            values = values.masked_fill_(~there | (state.d2 < 0), -1)
        pick = top(values, 1)
        picks.append(pick)
        scores.append(values[pick].sqrt())
        state.add_picks(pick, lower=made + 1 < batch_size)
    return torch.cat(picks), torch.cat(scores)


def _squared_lengths(pool: Pool) -> torch.Tensor:
    lengths = torch.empty(pool.count, dtype=torch.float64, device=pool.device)
    size = rows_a_tile(pool.device, sum(pool.widths))
    for begin, end, factors in pool.tiles(size):
        lengths[begin:end] = _product_of_squares(factors)
    return lengths


def _product_of_squares(factors: Factors) -> torch.Tensor:
    squares = [factor.double().square().sum(1) for factor in factors]
    return squares[0] if len(squares) == 1 else squares[0] * squares[1]
