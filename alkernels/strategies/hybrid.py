"""Uncertainty and diversity together: perturbed scores, filters before clusters or coverage, graphs, pseudo-labels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from alkernels._inputs import (
    Array,
    Pool,
    Selection,
    as_tensor,
    check_flag,
    check_integer,
    check_squares,
    largest_magnitude,
    seed_of,
)
from alkernels._packages import package
from alkernels._probabilities import Probabilities
from alkernels._sources import RowsOf, is_numpy
from alkernels._warnings import warn_user
from alkernels.ops.greedy_coverage import greedy_coverage
from alkernels.ops.joint_entropy import check_draws
from alkernels.ops.knn import knn
from alkernels.ops.pairwise_kl import pairwise_kl
from alkernels.ops.prediction_scores import prediction_scores
from alkernels.strategies._arguments import (
    check_above_zero,
    check_as_many,
    check_classes,
    check_either,
    check_features,
    check_not_negative,
    check_one_of,
    multiple,
    rows_a_tile,
    scaled_to_one,
    unit_rows,
)
from alkernels.strategies._catalogue import strategy
from alkernels.strategies._clustering import MOST_CLUSTERS, PLAIN_CLUSTERS, check_clusterer, kmeans
from alkernels.strategies._picking import check_batch_size, check_scores, top
from alkernels.strategies.committee import check_votes, warn_one

# Average linkage holds all distances, 8 bytes each: 1.6 GB for so many rows.
_MOST_LINKED = 20_000
# Edges between near rows that are held at a time.
_EDGES_AT_ONCE = 1 << 22
# ALFA-Mix counts in caps up to 1.
_SMALLEST_CAP = 1e-9
# So many nearest rows of a centre are looked up before a whole row of distances is.
_NEAREST_AT_ONCE = 8


class CealSelection(NamedTuple):
    """A :class:`~alkernels.Selection` with pseudo-labels for one round of training.

    Attributes
    ----------
    indices, scores
        As in :class:`~alkernels.Selection`.
    pseudo_indices : Tensor or ndarray of shape (P,), int64
        The rows that the model is sure of, ascending; none of `indices`.
    pseudo_labels : Tensor or ndarray of shape (P,), int64
        Their likeliest classes.
    threshold : float
        The entropy they are below, in nats.
    """

    indices: Any
    scores: Any
    pseudo_indices: Any
    pseudo_labels: Any
    threshold: float


# ---- arguments and results ----


def _selection(pool: Pool, indices: torch.Tensor, scores: torch.Tensor) -> Selection:
    return Selection(pool.out(indices.to(pool.device)), pool.out(scores.to(pool.device)))


def _nothing(pool: Pool) -> Selection:
    return _selection(pool, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))


def _best_first(indices: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The indices by their scores, descending, ties to the lowest."""
    indices = indices.sort().values
    return indices[scores[indices].sort(descending=True, stable=True).indices]


def _likeliest(probs: Probabilities) -> torch.Tensor:
    """Each row's likeliest class, the lowest on ties, on the CPU; checks the rows."""
    classes = [torch.empty(0, dtype=torch.int64)]
    for _, _, tile in probs.checked_tiles():
        classes.append(tile.argmax(-1).cpu())
    return torch.cat(classes)


def _host_rows(pool: Pool, rows: torch.Tensor) -> torch.Tensor:
    """Some rows, at least float32, on the CPU."""
    (some,) = pool.gather(rows.to(pool.device))
    return some.to(torch.promote_types(some.dtype, torch.float32)).cpu()


# ---- perturbed scores ----


def _perturbed(scores: Any, batch_size: Any, beta: Any, generator: Any, kind: str) -> Selection:
    values = check_scores(scores, "scores").double()
    batch_size = check_batch_size(batch_size, len(values), "scores")
    beta = check_above_zero(beta, "beta")
    draws = torch.Generator().manual_seed(seed_of(generator))
    if kind == "power":
        if (values < 0).any():
            row = int((values < 0).nonzero()[0])
            raise ValueError(
                f"scores must not be negative for power, got {values[row].item():.6g} in row {row}; "
                "softmax and softrank take any"
            )
        values = values.log()
    elif kind == "softrank":
        order = torch.randperm(len(values), generator=draws).to(values.device)
        order = order[values[order].sort(descending=True, stable=True).indices]
        ranks = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)
        values = torch.empty_like(values).scatter_(0, order, -ranks.log())
    exponential = torch.empty(len(values), dtype=torch.float64).exponential_(generator=draws)
    gumbel = -exponential.clamp_(min=torch.finfo(torch.float64).tiny).log_().to(values.device)
    perturbed = values + gumbel / beta
    # rows that are equal all the same, at +inf or -inf, come in the order of their draws: the limit of large scores
    order = gumbel.sort(descending=True, stable=True).indices
    picks = order[top(perturbed[order], batch_size)]
    chosen = perturbed[picks]
    return Selection(picks.numpy(), chosen.numpy()) if is_numpy(scores) else Selection(picks, chosen)


@strategy(
    formula=r"\log s_n + G_n / \beta, \qquad G_n \sim \mathrm{Gumbel}(0, 1)",
    cost="N",
    use="The cheapest cure for a batch that repeats itself: any score, sampled instead of sorted.",
)
def power(
    scores: Array, batch_size: int, *, beta: float = 1.0, generator: torch.Generator | int | None = None
) -> Selection:
    """Draw rows without replacement with probability proportional to a power of their scores.

    The rows of the highest ``log(score) + G / beta``, with independent standard Gumbel numbers ``G``: the same law as
    drawing row after row, each with probability proportional to ``score ** beta`` among those left.

    Parameters
    ----------
    scores : Tensor or ndarray of shape (N,)
        Not negative. Rows of score 0 are drawn only when no others are left, then uniformly; ``+inf`` before all.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    beta : float, default 1.0
        Above 0: how much the scores decide. Large: the highest scores; near 0: uniform.
    generator : torch.Generator or int, optional
        Makes all draws. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64, in the order drawn; ``scores`` (b,) float64, the perturbed values, descending.

    Raises
    ------
    ValueError
        Negative scores, NaN, `batch_size` or `beta` out of range.

    Notes
    -----
    One pass over the scores in float64; random numbers are the CPU's, so that all devices agree.

    References
    ----------
    .. [1] A. Kirsch, S. Farquhar, P. Atighehchian, A. Jesson, F. Branchaud-Charron, Y. Gal. Stochastic batch
       acquisition: a simple baseline for deep active learning. TMLR 2023.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> alk.strategies.hybrid.power(torch.tensor([0.0, 0.5, 0.0]), 1, generator=0).indices
    tensor([1])
    """
    return _perturbed(scores, batch_size, beta, generator, "power")


@strategy(
    formula=r"s_n + G_n / \beta, \qquad G_n \sim \mathrm{Gumbel}(0, 1)",
    cost="N",
    use="As power, for scores that may be negative; the scale of the scores matters.",
)
def softmax(
    scores: Array, batch_size: int, *, beta: float = 1.0, generator: torch.Generator | int | None = None
) -> Selection:
    """Draw rows without replacement with probability proportional to the exponential of their scores.

    The rows of the highest ``score + G / beta``, with independent standard Gumbel numbers ``G``: the same law as
    drawing row after row, each with probability proportional to ``exp(beta * score)`` among those left.

    Parameters
    ----------
    scores : Tensor or ndarray of shape (N,)
        Any numbers; ``-inf`` is drawn only when no others are left, ``+inf`` before all.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    beta : float, default 1.0
        Above 0: how much the scores decide. Large: the highest scores; near 0: uniform.
    generator : torch.Generator or int, optional
        Makes all draws. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64, in the order drawn; ``scores`` (b,) float64, the perturbed values, descending.

    Raises
    ------
    ValueError
        NaN, `batch_size` or `beta` out of range.

    References
    ----------
    .. [1] A. Kirsch, S. Farquhar, P. Atighehchian, A. Jesson, F. Branchaud-Charron, Y. Gal. Stochastic batch
       acquisition: a simple baseline for deep active learning. TMLR 2023.
    """
    return _perturbed(scores, batch_size, beta, generator, "softmax")


@strategy(
    formula=r"-\log r_n + G_n / \beta, \qquad G_n \sim \mathrm{Gumbel}(0, 1),\ r_n \text{ the rank, 1 the best}",
    cost="N log N",
    use="As power, for scores of which only the order means something.",
)
def softrank(
    scores: Array, batch_size: int, *, beta: float = 1.0, generator: torch.Generator | int | None = None
) -> Selection:
    """Draw rows without replacement with probability proportional to a negative power of their ranks.

    The rows of the highest ``-log(rank) + G / beta``, with independent standard Gumbel numbers ``G``: the same law as
    drawing row after row, each with probability proportional to ``rank ** -beta`` among those left.

    Parameters
    ----------
    scores : Tensor or ndarray of shape (N,)
        Any numbers; the highest has rank 1. Equal scores share their ranks out at random, so that none is preferred.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    beta : float, default 1.0
        Above 0: how much the ranks decide. Large: the highest scores; near 0: uniform.
    generator : torch.Generator or int, optional
        Makes all draws. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64, in the order drawn; ``scores`` (b,) float64, the perturbed values, descending.

    Raises
    ------
    ValueError
        NaN, `batch_size` or `beta` out of range.

    References
    ----------
    .. [1] A. Kirsch, S. Farquhar, P. Atighehchian, A. Jesson, F. Branchaud-Charron, Y. Gal. Stochastic batch
       acquisition: a simple baseline for deep active learning. TMLR 2023.
    """
    return _perturbed(scores, batch_size, beta, generator, "softrank")


# ---- neighbours and coverage ----


@strategy(
    formula=r"\frac{1}{k} \sum_{i \in \mathrm{NN}_k(n)} \mathrm{KL}(p_i \,\|\, p_n),\ i \text{ labelled}",
    cost="N L D + N k C",
    kernels=("knn", "pairwise_kl"),
    use="Rows that the model sees unlike the labelled rows nearest to them: near a decision boundary.",
)
def cal(
    probs: Array,
    features: Array,
    labeled_probs: Array,
    labeled_features: Array,
    *,
    k: int = 10,
    log_input: bool = False,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Array:
    """Contrastive active learning: mean KL divergence from the nearest labelled rows' predictions to a row's own.

    Neighbours are the `k` labelled rows of the smallest Euclidean distance between features scaled to length one. What
    is compared are predictions, the neighbours' too, not their labels.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities of the pool.
    features : Tensor or ndarray of shape (N, D)
        Its feature vectors, such as the [CLS] embedding of the model. Rows of zeros stay rows of zeros.
    labeled_probs : like `probs`, shape (L, C)
        What the same model says of the labelled rows.
    labeled_features : like `features`, shape (L, D)
        Their feature vectors; at least one row.
    k : int, default 10
        How many neighbours; with fewer labelled rows, all of them.
    log_input : bool, default False
        `probs` and `labeled_probs` hold natural logarithms of probabilities, which keeps what underflows otherwise.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats. ``+inf`` where a row rules a class out that a neighbour does not.

    Raises
    ------
    ValueError
        No labelled row, shapes that disagree, `k` below 1, distributions that do not sum to 1 within 1e-3, NaN.

    Notes
    -----
    Rows are taken some thousands at a time: memory beyond the arrays is 100 MB and the result, and where a labelled row
    is all zeros a copy of `labeled_features`. Of equally near labelled rows the first ones count.

    References
    ----------
    .. [1] K. Margatina, G. Vernikos, L. Barrault, N. Aletras. Active learning by acquiring contrastive examples.
       EMNLP 2021.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> near, far = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1], [0.0, 1.0]])
    >>> probs = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    >>> alk.strategies.hybrid.cal(probs, far, probs[1:], near)
    tensor([0.3681, 0.0000], dtype=torch.float64)
    """
    k = check_integer(k, "k")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    likely = Probabilities(probs, "probs", 2, log_input, device=device)
    given = Probabilities(labeled_probs, "labeled_probs", 2, log_input, device=likely.pool.target)
    pool = check_features(features, device)
    known = Pool(labeled_features, "labeled_features", device=pool.target)
    check_as_many(pool.count, "features", likely.count, "probs")
    check_as_many(known.count, "labeled_features", given.count, "labeled_probs")
    if known.count == 0:
        raise ValueError("labeled_features must have at least one row, got none: cal compares with labelled rows")
    for other, own in ((known, pool), (given.pool, likely.pool)):
        if other.widths != own.widths:
            raise ValueError(f"{other.name} must be as wide as {own.name}, got {other.widths[0]} and {own.widths[0]}")
        if other.device != own.device:
            raise ValueError(f"{other.name} must be on the device of {own.name} ({own.device}), got {other.device}")
    largest_magnitude(known)
    given.check()
    k = min(k, known.count)

    (points,) = known.tile(0, known.count)
    # Of rows of length one the squared distance is 2 - 2 cos: the cosine metric finds the same neighbours without
    # copies of the rows. Not so for labelled rows of zeros, which are as far from all others as a cosine of 1/2.
    scaled = not bool(points.any(1).all())
    if scaled:
        of_zeros = points.any(1).sort(stable=True).indices[:k]  # those of zeros, and all others equally far
        points = unit_rows(points)
    scores = torch.empty(pool.count, dtype=torch.float64, device=likely.device)
    size = rows_a_tile(pool.device, 2 * pool.widths[0] + 3 * k + 2 * likely.shape[1])
    with tqdm(total=pool.count, desc="CAL", unit="row", unit_scale=True, disable=not progress) as bar:
        for begin in range(0, pool.count, size):
            end = min(begin + size, pool.count)
            (rows,), (stored,) = pool.tile(begin, end), likely.pool.tile(begin, end)
            check_squares(pool, pool.check_tile(begin, (rows,)))
            likely.check_tile(begin, stored)
            metric = "euclidean" if scaled else "cosine"
            near = knn(unit_rows(rows) if scaled else rows, points, k, metric=metric).indices
            if scaled:
                near[~rows.any(1)] = of_zeros
            # bfloat16 as it is: its sums are let be off by its own rounding
            said = stored if stored.dtype == torch.bfloat16 else stored.double()
            apart = pairwise_kl(given.whole, said, neighbors=near.to(said.device), gather="p", log_input=log_input)
            scores[begin:end] = torch.as_tensor(apart).mean(1)
            for source in (*pool.sources, *likely.pool.sources):
                source.release(begin, end)
            bar.update(end - begin)
    return likely.pool.out(scores)


@strategy(
    formula=r"\frac{1}{C} \sum_c \mathrm{Var}_k(p_{kc}) \text{ filters, then } \max_S \sum_j \max_{i \in S} \cos(i, j)",
    cost="N K C + keep_factor b N D",
    kernels=("greedy_coverage",),
    either=("scores", "mc_probs"),
    use="Segmentation with an ensemble: uncertain items that represent all the others.",
)
def suggestive_annotation(
    features: Array,
    batch_size: int,
    *,
    mc_probs: Array | None = None,
    scores: Array | None = None,
    keep_factor: float = 2,
    log_input: bool = False,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection:
    """The most uncertain rows by the variance of a committee, and among them those most similar to the whole pool.

    The ``keep_factor * batch_size`` most uncertain rows are candidates. Of these are picked, one after the other, those
    that raise the sum over all rows of the cosine to the most similar pick the most.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        Feature vectors, such as the channel means of the deepest features. The cosine of a row of zeros is 0.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    mc_probs : Tensor or ndarray of shape (N, K, C), optional
        Class probabilities of K members. Uncertainty is the variance over members (division by K), averaged over
        classes; for pixels or other outputs, average it yourself and pass `scores`.
    scores : Tensor or ndarray of shape (N,), optional
        Uncertainties of your own in place of that variance, higher = more uncertain.
    keep_factor : float, default 2
        How many candidates a pick, at least 1. The paper keeps 16 for 8.
    log_input : bool, default False
        `mc_probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Selection
        ``indices`` (b,) int64, in the order picked; ``scores`` (b,) float64, how much each pick adds to the sum of
        cosines, each of which starts at -1.

    Raises
    ------
    ValueError
        `batch_size` or `keep_factor` out of range, arrays that disagree, wrong distributions, NaN.

    Warns
    -----
    UserWarning
        One member cannot disagree: candidates are the first rows.

    Notes
    -----
    Deterministic, ties to the lowest index. Within ``1 - 1/e`` of the best batch of the candidates. Similarities are
    computed in tiles; none are stored.

    References
    ----------
    .. [1] L. Yang, Y. Zhang, J. Chen, S. Zhang, D. Z. Chen. Suggestive annotation: a deep active learning framework for
       biomedical image segmentation. MICCAI 2017.
    """
    pool = check_features(features)
    batch_size = check_batch_size(batch_size, pool.count, "rows of features")
    keep = multiple(keep_factor, "keep_factor", batch_size, pool.count)
    check_either(mc_probs, scores, "mc_probs or scores")
    if mc_probs is not None:
        draws = check_draws(mc_probs, "mc_probs", log_input, device=device)
        check_as_many(draws.count, "mc_probs", pool.count, "features")
        warn_one(int(draws.shape[1]), "mc_probs holds one draw")
        uncertain = _variances(draws)
    else:
        uncertain = check_scores(scores, "scores", pool.count)
    start = torch.full((pool.count,), -1.0, dtype=torch.float64)
    picked = greedy_coverage(
        features,
        batch_size,
        candidates=top(uncertain, keep),
        covered=start,
        kernel="cosine",
        device=device,
        progress=progress,
    )
    return Selection(picked.indices, picked.scores)


def _variances(draws: Probabilities) -> torch.Tensor:
    parts = [torch.empty(0, dtype=torch.float64, device=draws.device)]
    for _, _, tile in draws.checked_tiles(torch.float64):
        parts.append(tile.var(1, unbiased=False).mean(-1))
    return torch.cat(parts)


@strategy(
    formula=r"\max_S \sum_j s_j \max_{i \in S \cup L} e^{-(\lVert \hat x_i - \hat x_j \rVert / h)^2}",
    cost="N^2 D",
    kernels=("greedy_coverage", "knn"),
    of="margin",
    use="One rule for small and large budgets: covers the pool at first, uncertain rows later.",
)
def uherding(
    features: Array,
    scores: Array,
    batch_size: int,
    *,
    labeled_features: Array | None = None,
    bandwidth: float | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection:
    """Uncertainty herding: rows that cover the pool, in which each row counts as much as it is uncertain.

    Greedy maximisation of the sum over the pool of score times similarity to the most similar labelled or picked row;
    similarity is ``exp(-(d / bandwidth)²)`` of features scaled to length one.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        Feature vectors. Rows of zeros stay rows of zeros.
    scores : Tensor or ndarray of shape (N,)
        Uncertainties, finite and not negative; by default in `select` those of margin. The paper scales the model's
        temperature before. All zero: every row counts the same.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_features : like `features`, shape (L, D), optional
        The labelled rows. Without them, as in the paper, there is no model to be uncertain: every row counts the same
        (MaxHerding).
    bandwidth : float, optional
        Above 0. Default: the smallest distance above 0 between labelled rows (scaled to length one; what their dtype
        cannot tell apart is at 0), or 1 where there is none.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Selection
        ``indices`` (b,) int64, in the order picked; ``scores`` (b,) float64, each pick's gain, non-increasing.

    Raises
    ------
    ValueError
        Negative or infinite scores, `batch_size` or `bandwidth` out of range, arrays that disagree, NaN.

    Warns
    -----
    UserWarning
        Scores that differ are not used for want of labelled rows.

    Notes
    -----
    Deterministic, ties to the lowest index. Similarities are computed in tiles, none are stored; memory beyond the
    arrays: a copy of the features, scaled.

    References
    ----------
    .. [1] W. Bae, D. J. Sutherland, G. Oliveira. Uncertainty herding: one active learning method for all label budgets.
       ICLR 2025.
    .. [2] W. Bae, J. Noh, D. J. Sutherland. Generalized coverage for more robust low-budget active learning. ECCV 2024.
    """
    pool = check_features(features)
    batch_size = check_batch_size(batch_size, pool.count, "rows of features")
    worth = _weights(check_scores(scores, "scores", pool.count))
    known = None if labeled_features is None else Pool(labeled_features, "labeled_features")
    if known is not None and known.widths != pool.widths:
        raise ValueError(f"labeled_features must be as wide as features, got {known.widths[0]} and {pool.widths[0]}")
    pool.check_finite()
    if known is None or known.count == 0:
        if float(worth.min()) < float(worth.max()):
            warn_user("labeled_features holds no row: scores are not used, every row counts the same")
        worth, labeled, width = torch.ones_like(worth), None, 1.0
    else:
        known.check_finite()
        labeled = scaled_to_one(known)
        width = _smallest_distance(labeled, known) if bandwidth is None else 1.0
    width = width if bandwidth is None else check_above_zero(bandwidth, "bandwidth")
    if float(worth.max()) == 0:
        worth = torch.ones_like(worth)
    picked = greedy_coverage(
        scaled_to_one(pool),
        batch_size,
        weights=worth,
        labeled=labeled,
        kernel="rbf",
        bandwidth=width,
        device=device,
        progress=progress,
    )
    return _selection(pool, picked.indices, picked.scores)


def _weights(scores: torch.Tensor) -> torch.Tensor:
    """Scores that count rows: finite, not negative."""
    wrong = (scores < 0) | scores.isinf()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"scores must be finite and not negative, got {scores[row].item():.6g} in row {row}")
    return scores.double()


def _smallest_distance(rows: torch.Tensor, pool: Pool) -> float:
    """The smallest distance between rows of length one that is more than rounding; 1 where all are the same."""
    # two rows that differ by a factor alone differ by so much once they are rounded
    nothing = 4 * torch.finfo(pool.sources[0].dtype).eps
    smallest, left, k = math.inf, torch.arange(len(rows), device=rows.device), 2
    while len(left) and k // 2 < len(rows):
        k, open_ = min(k, len(rows)), [left[:0]]
        for some in left.split(max(1, rows_a_tile(rows.device, 2 * k))):
            distances = knn(rows[some], rows, k).distances
            apart = distances > nothing
            smallest = min([smallest, *distances[apart].min().view(1).tolist()]) if apart.any() else smallest
            open_.append(some[~apart.any(1)])
        left, k = torch.cat(open_), 2 * k
    return 1.0 if math.isinf(smallest) else smallest


# ---- clusters ----


@strategy(
    formula=r"\text{the } \beta b \text{ highest } s_n \to b \text{ clusters by } k\text{-means weighted by } s_n",
    cost="N + iterations beta b^2 D",
    kernels=("kmeans_plusplus", "knn"),
    of="margin",
    use="Large batches: nearly as uncertain as the filter, and no two alike.",
)
def diverse_minibatch(
    features: Array,
    scores: Array,
    batch_size: int,
    *,
    beta: float = 10,
    weighted: bool = True,
    assignment: str = "linear_sum",
    clusterer: str = "sklearn",
    generator: torch.Generator | int | None = None,
) -> Selection:
    """Diverse mini-batch: the highest scores, clustered; from each cluster's centre the row nearest to it.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        Feature vectors.
    scores : Tensor or ndarray of shape (N,)
        Informativeness; by default in `select` that of margin. With `weighted` finite and not negative.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    beta : float, default 10
        The ``beta * batch_size`` highest scores are clustered. 1: the highest scores are the batch.
    weighted : bool, default True
        k-means counts rows by their scores (all zero: the same).
    assignment : {"linear_sum", "nearest"}, default "linear_sum"
        How centres get rows of their own: at the smallest sum of distances, or centre after centre the nearest row that
        is left.
    clusterer : {"sklearn", "faiss"}, default "sklearn"
        Whose k-means; both start from :func:`alkernels.kmeans_plusplus`.
    generator : torch.Generator or int, optional
        Decides the clustering. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64 and their ``scores`` (b,) float64, descending.

    Raises
    ------
    ValueError
        An argument out of range, arrays that disagree, negative or infinite scores with `weighted`, NaN.

    Notes
    -----
    Fewer distinct rows than `batch_size` among the clustered ones: the highest scores fill up. Where two centres have
    the same nearest row, "linear_sum" takes a matrix of ``8 beta b²`` bytes and ``O(beta b³)`` time at worst: "nearest"
    is for batches of thousands.

    References
    ----------
    .. [1] F. Zhdanov. Diverse mini-batch active learning. arXiv 1901.05954, 2019.
    """
    pool = check_features(features)
    batch_size = check_batch_size(batch_size, pool.count, "rows of features")
    values = check_scores(scores, "scores", pool.count).double().cpu()
    keep = multiple(beta, "beta", batch_size, pool.count)
    check_one_of(assignment, "assignment", ("linear_sum", "nearest"))
    check_clusterer(clusterer)
    if check_flag(weighted, "weighted"):
        _weights(values)
    pool.check_finite()
    seed = seed_of(generator)
    candidates = top(values, keep)
    if keep == batch_size:
        return _selection(pool, candidates, values[candidates])
    weights = values[candidates] if weighted else None
    found = candidates[_one_a_cluster(_host_rows(pool, candidates), batch_size, seed, weights, assignment, clusterer)]
    picks = _filled(found, candidates, batch_size)
    picks = _best_first(picks, values)
    return _selection(pool, picks, values[picks])


def _one_a_cluster(
    rows: torch.Tensor,
    count: int,
    seed: int,
    weights: torch.Tensor | None,
    assignment: str,
    clusterer: str,
) -> torch.Tensor:
    """Distinct rows next to the centres of `count` clusters, or as many as there are distinct rows."""
    if weights is not None:
        most = float(weights.max())
        weights = weights / most if most > 0 else None
    centers, _ = kmeans(rows, count, seed, weights=weights, clusterer=clusterer)
    count = len(centers)
    near = knn(centers, rows, min(_NEAREST_AT_ONCE, len(rows))).indices
    if len(near[:, 0].unique()) == count:
        return near[:, 0]
    if assignment == "linear_sum":
        cost = torch.cdist(centers.double(), rows.double())
        _, columns = package("scipy.optimize", "strategies").linear_sum_assignment(cost.numpy())
        return torch.from_numpy(columns)
    free = torch.ones(len(rows), dtype=torch.bool)
    picks = []
    for center, listed in zip(centers, near, strict=True):
        open_ = listed[free[listed]]
        if len(open_):
            pick = int(open_[0])
        else:
            pick = int((rows.double() - center.double()).square().sum(1).masked_fill(~free, torch.inf).argmin())
        free[pick] = False
        picks.append(pick)
    return torch.tensor(picks)


def _filled(found: torch.Tensor, candidates: torch.Tensor, count: int) -> torch.Tensor:
    """What was found, and the first of the other candidates up to a count."""
    rest = candidates[~torch.isin(candidates, found)]
    return torch.cat([found, rest[: count - len(found)]])


@strategy(
    formula=r"\#\{k : \hat y_{kn} \ne \hat y_n\} > K / 2 \text{ filters}, \to b \text{ clusters by } k\text{-means}",
    cost="N K C + iterations b D a candidate",
    kernels=("kmeans_plusplus", "knn"),
    either=("mc_probs", "votes"),
    use="A linear head on frozen features of a foundation model: dropout of the features makes the draws.",
)
def dropquery(
    probs: Array,
    features: Array,
    batch_size: int,
    *,
    mc_probs: Array | None = None,
    votes: Any = None,
    threshold: int | None = None,
    min_factor: float = 25,
    log_input: bool = False,
    clusterer: str = "sklearn",
    generator: torch.Generator | int | None = None,
) -> Selection:
    """Rows whose label changes under dropout, clustered; from each cluster's centre the row nearest to it.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities without dropout.
    features : Tensor or ndarray of shape (N, D)
        Feature vectors.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    mc_probs : Tensor or ndarray of shape (N, K, C), optional
        Class probabilities of K dropout passes; the paper takes 3.
    votes : integer array of shape (N, K), optional
        Their likeliest classes, in place of `mc_probs`.
    threshold : int, optional
        Rows of which more passes than this disagree with `probs` are candidates. Default: ``K // 2``. It is lowered
        until there are enough.
    min_factor : float, default 25
        How many candidates a pick there are to be, at least 1.
    log_input : bool, default False
        `probs` and `mc_probs` hold natural logarithms of probabilities.
    clusterer : {"sklearn", "faiss"}, default "sklearn"
        Whose k-means; both start from :func:`alkernels.kmeans_plusplus`.
    generator : torch.Generator or int, optional
        Decides the clustering. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64 and ``scores`` (b,) float64, the share of passes that disagree, descending.

    Raises
    ------
    ValueError
        Neither or both of `mc_probs` and `votes`, an argument out of range, arrays that disagree, wrong distributions,
        NaN.

    Notes
    -----
    Where few rows' labels change, the threshold falls until all rows are candidates, and k-means is one of the whole
    pool: memory is then two copies of the features. Centre after centre gets the nearest row that is left. Fewer
    distinct rows than `batch_size` among the candidates:
    those that most passes disagree on fill up, ties to the lowest index.

    References
    ----------
    .. [1] S. R. Gupte, J. Aklilu, J. J. Nirschl, S. Yeung-Levy. Revisiting active learning in the era of vision
       foundation models. TMLR 2024.
    """
    check_either(mc_probs, votes, "mc_probs or votes")
    pool = check_features(features)
    batch_size = check_batch_size(batch_size, pool.count, "rows of features")
    enough = multiple(min_factor, "min_factor", batch_size, pool.count)
    check_clusterer(clusterer)
    likely = Probabilities(probs, "probs", 2, log_input)
    check_as_many(likely.count, "probs", pool.count, "features")
    different, members = _disagreements(_likeliest(likely), mc_probs, votes, log_input, likely.shape[1])
    limit = members // 2 if threshold is None else check_integer(threshold, "threshold")
    if not 0 <= limit < members:
        raise ValueError(f"threshold must be between 0 and {members - 1} (of {members} passes), got {limit}")
    pool.check_finite()
    seed = seed_of(generator)
    while int((different > limit).sum()) < enough:
        limit -= 1
    candidates = (different > limit).nonzero().flatten()
    shares = different.double() / members
    candidates = _best_first(candidates, shares)
    if batch_size == 0:
        return _nothing(pool)
    if len(candidates) == batch_size:
        picks = candidates
    else:
        rows = _host_rows(pool, candidates)
        found = candidates[_one_a_cluster(rows, batch_size, seed, None, "nearest", clusterer)]
        picks = _best_first(_filled(found, candidates, batch_size), shares)
    return _selection(pool, picks, shares[picks])


def _disagreements(
    labels: torch.Tensor, mc_probs: Array | None, votes: Any, log_input: bool, classes: int
) -> tuple[torch.Tensor, int]:
    """Of how many members the vote is not the label, [N], and how many members there are."""
    if mc_probs is None:
        cast = check_votes(votes, "votes").cpu()
        if cast.numel() and int(cast.max()) >= classes:
            raise ValueError(f"votes must be below {classes}, the number of classes of probs, got {int(cast.max())}")
        check_as_many(len(cast), "votes", len(labels), "probs")
        return (cast != labels[:, None]).sum(1), cast.shape[1]
    draws = Probabilities(mc_probs, "mc_probs", 3, log_input)
    check_as_many(draws.count, "mc_probs", len(labels), "probs")
    if draws.shape[2] != classes:
        raise ValueError(f"mc_probs must have as many classes as probs, got {draws.shape[2]} and {classes}")
    parts = [torch.empty(0, dtype=torch.int64)]
    for begin, end, tile in draws.checked_tiles():
        parts.append((tile.argmax(-1).cpu() != labels[begin:end, None]).sum(1))
    return torch.cat(parts), int(draws.shape[1])


@strategy(
    formula=r"\text{the } m b \text{ smallest margins, in turn one a cluster, small clusters first}",
    cost="N C, and the clustering (k-means: iterations N b D; components, average linkage: N^2 D)",
    kernels=("kmeans_plusplus",),
    use="Batches of up to millions: the pool is clustered once, each round takes a sort.",
)
def cluster_margin(
    probs: Array,
    features: Array,
    batch_size: int,
    *,
    clusters: Any = None,
    keep_factor: float = 10,
    num_clusters: int | None = None,
    threshold: float | None = None,
    clustering: str = "kmeans",
    log_input: bool = False,
    clusterer: str = "sklearn",
    generator: torch.Generator | int | None = None,
) -> Selection:
    """The rows of the smallest margins, taken in turn from the clusters they lie in, from small clusters first.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities.
    features : Tensor or ndarray of shape (N, D)
        Feature vectors, to cluster.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    clusters : integer array of shape (N,), optional
        A clustering of your own: what the paper makes once, of all embeddings, and keeps for every round. The features
        are not looked at then.
    keep_factor : float, default 10
        The ``keep_factor * batch_size`` smallest margins are looked at, at least 1.
    num_clusters : int, optional
        How many clusters "kmeans" and "average" make. Default: `batch_size`, at most 500.
    threshold : float, optional
        The distance up to which "components" and "average" join rows or clusters.
    clustering : {"kmeans", "components", "average"}, default "kmeans"
        "average" is the paper's average linkage, which holds all distances: up to 20000 rows. "components": what a
        chain of rows within `threshold` of each other joins, in tiles.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    clusterer : {"sklearn", "faiss"}, default "sklearn"
        Whose k-means; both start from :func:`alkernels.kmeans_plusplus`.
    generator : torch.Generator or int, optional
        Decides the clustering, and which row of a cluster is taken. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64, in the order picked; ``scores`` (b,) float64, one minus the margin.

    Raises
    ------
    ValueError
        An argument out of range or missing, arrays that disagree, more than 20000 rows for "average", wrong
        distributions, NaN.

    Notes
    -----
    The size of a cluster is how many of the smallest margins lie in it, ties to the lowest number; in each turn a
    random one of those that are left is taken.

    References
    ----------
    .. [1] G. Citovsky, G. DeSalvo, C. Gentile, L. Karydas, A. Rajagopalan, A. Rostamizadeh, S. Kumar. Batch active
       learning at scale. NeurIPS 2021.
    """
    likely = Probabilities(probs, "probs", 2, log_input)
    batch_size = check_batch_size(batch_size, likely.count, "rows of probs")
    keep = multiple(keep_factor, "keep_factor", batch_size, likely.count)
    check_one_of(clustering, "clustering", ("kmeans", "components", "average"))
    check_clusterer(clusterer)
    draws = torch.Generator().manual_seed(seed_of(generator))
    values = prediction_scores(likely, "margin").cpu()
    if batch_size == 0:
        return _nothing(likely.pool)
    if clusters is not None:
        group = check_classes(clusters, "clusters", likely.count, None, "probs").cpu()
    else:
        pool = check_features(features)
        check_as_many(pool.count, "features", likely.count, "probs")
        pool.check_finite()
        group = _clusters(pool, batch_size, clustering, num_clusters, threshold, clusterer, draws)
    candidates = top(values, keep)
    candidates = candidates[torch.randperm(keep, generator=draws)]
    # in turn: the how manieth of its cluster a row is, then how small its cluster is
    _, cluster, sizes = group[candidates].unique(return_inverse=True, return_counts=True)
    place = torch.empty(len(sizes), dtype=torch.int64)
    place[sizes.sort(stable=True).indices] = torch.arange(len(sizes))
    by_cluster = cluster.sort(stable=True).indices
    turn = torch.empty(keep, dtype=torch.int64)
    turn[by_cluster] = torch.arange(keep) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    picks = candidates[(turn * max(1, len(sizes)) + place[cluster]).argsort()[:batch_size]]
    return _selection(likely.pool, picks, values[picks])


def _clusters(
    pool: Pool,
    batch_size: int,
    clustering: str,
    num_clusters: int | None,
    threshold: float | None,
    clusterer: str,
    draws: torch.Generator,
) -> torch.Tensor:
    """A cluster number for each row, on the CPU."""
    if threshold is not None:
        if clustering == "kmeans":
            raise ValueError(f"threshold must not be given for clustering 'kmeans', got {threshold!r}")
        if num_clusters is not None:
            raise ValueError(f"num_clusters must not be given together with threshold, got {num_clusters!r}")
        threshold = check_above_zero(threshold, "threshold")
    elif clustering == "components":
        raise ValueError("threshold must be given for clustering 'components', got None")
    count = min(max(1, batch_size), MOST_CLUSTERS) if num_clusters is None else num_clusters
    count = check_integer(count, "num_clusters")
    if not 1 <= count <= pool.count:
        raise ValueError(f"num_clusters must be between 1 and {pool.count} (rows of features), got {count}")
    if clustering == "components":
        return _components(pool, float(threshold or 0))
    seed = int(torch.randint(2**31, (), generator=draws))
    if clustering == "kmeans":
        (rows,) = pool.tile(0, pool.count)
        return kmeans(rows, count, seed, clusterer=clusterer, mini_batch=count > PLAIN_CLUSTERS)[1].cpu()
    if pool.count > _MOST_LINKED:
        raise ValueError(
            f"clustering must be 'kmeans' or 'components' for more than {_MOST_LINKED} rows (average linkage holds all "
            f"distances), got 'average' for {pool.count}"
        )
    if pool.count == 1:
        return torch.zeros(1, dtype=torch.int64)
    hierarchy = package("scipy.cluster.hierarchy", "strategies")
    rows = _host_rows(pool, torch.arange(pool.count)).double()
    tree = hierarchy.linkage(rows.numpy(), "average")
    limit, kind = (count, "maxclust") if threshold is None else (threshold, "distance")
    return torch.from_numpy(hierarchy.fcluster(tree, limit, kind).astype(np.int64))


def _components(pool: Pool, threshold: float) -> torch.Tensor:
    """Connected components of the graph of all pairs of rows within a distance, in tiles."""
    sparse = package("scipy.sparse", "strategies")
    graph = package("scipy.sparse.csgraph", "strategies")
    count, size = pool.count, 1024
    middle = sum(tile.double().sum(0) for _, _, (tile,) in pool.tiles(4 * size)) / count
    label = np.arange(count)
    left: list[np.ndarray] = []
    right: list[np.ndarray] = []

    def joined() -> np.ndarray:
        a, b = np.concatenate([np.arange(count), *left]), np.concatenate([label, *right])
        edges = sparse.coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
        left.clear()
        right.clear()
        _, parts = graph.connected_components(edges, directed=False)
        first = np.full(parts.max() + 1, count)
        np.minimum.at(first, parts, np.arange(count))
        return first[parts]

    for begin in range(0, count, size):
        rows = pool.tile(begin, min(begin + size, count))[0].double() - middle
        for first in range(begin, count, size):
            others = pool.tile(first, min(first + size, count))[0].double() - middle
            a, b = (torch.cdist(rows, others) <= threshold).nonzero().cpu().numpy().T
            a, b = a + begin, b + first
            new = label[a] != label[b]
            left.append(a[new])
            right.append(b[new])
            if sum(map(len, left)) > _EDGES_AT_ONCE:
                label = joined()
    return torch.from_numpy(joined())


# ---- pseudo-labels ----


@strategy(
    formula=r"\text{top-}b \text{ by a measure}; \quad \{n : H(p_n) < \delta_t\} \text{ with } \arg\max_y p_{ny}",
    cost="N C",
    kernels=("prediction_scores",),
    use="Fine-tuning of a model that is sure of much: what it is sure of is trained on as it predicts, for one round.",
)
def ceal(
    probs: Array,
    batch_size: int,
    *,
    measure: str = "entropy",
    delta: float = 0.05,
    decay_rate: float = 0.0033,
    round: int = 0,
    decay: str = "linear",
    log_input: bool = False,
    device: torch.device | str | None = None,
) -> CealSelection:
    """Cost-effective active learning: the most uncertain rows to label, and pseudo-labels for the surest.

    One round of it. Train on labels and pseudo-labels together, then throw the pseudo-labels away: their rows are part
    of the pool again, and are judged anew in the next round.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    measure : {"entropy", "margin", "least_confident"}, default "entropy"
        What the rows to label are picked by.
    delta : float, default 0.05
        In round 0 rows of an entropy below this many nats get pseudo-labels, unless they are picked.
    decay_rate : float, default 0.0033
        How fast that threshold falls, to 0 at the lowest.
    round : int, default 0
        How many times the model was fine-tuned so far, t.
    decay : {"linear", "cumulative"}, default "linear"
        The threshold: ``delta - decay_rate * t``, or as the paper's recursion can be read as well,
        ``delta - decay_rate * (1 + 2 + ... + t)``.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on probs in host memory with.

    Returns
    -------
    CealSelection
        ``indices`` (b,) int64 and ``scores`` (b,) float64, descending; ``pseudo_indices`` (P,) and ``pseudo_labels``
        (P,) int64; ``threshold``, a float.

    Raises
    ------
    ValueError
        An argument out of range, wrong distributions, NaN.

    Notes
    -----
    Deterministic, ties to the lowest index.

    References
    ----------
    .. [1] K. Wang, D. Zhang, Y. Li, R. Zhang, L. Lin. Cost-effective active learning for deep image classification.
       IEEE TCSVT 2017.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.7, 0.3]])
    >>> picked = alk.strategies.hybrid.ceal(probs, 1)
    >>> picked.indices, picked.pseudo_indices, picked.pseudo_labels
    (tensor([0]), tensor([1]), tensor([0]))
    """
    likely = Probabilities(probs, "probs", 2, log_input, device=device)
    batch_size = check_batch_size(batch_size, likely.count, "rows of probs")
    check_one_of(measure, "measure", ("entropy", "margin", "least_confident"))
    check_one_of(decay, "decay", ("linear", "cumulative"))
    start, rate = (check_not_negative(v, n) for v, n in ((delta, "delta"), (decay_rate, "decay_rate")))
    step = check_integer(round, "round")
    if step < 0:
        raise ValueError(f"round must not be negative, got {step}")
    threshold = max(0.0, start - rate * (step if decay == "linear" else step * (step + 1) // 2))
    doubt = prediction_scores(likely, "entropy")
    values = doubt if measure == "entropy" else prediction_scores(likely, measure)
    picks = top(values, batch_size)
    sure = doubt < threshold
    sure[picks] = False
    chosen = sure.nonzero().flatten()
    out = likely.pool.out
    parts = [some.new_empty(0) for some in (chosen,)]
    parts += [likely.pool.gather(some)[0].argmax(-1) for some in chosen.split(likely.rows_a_tile)]
    return CealSelection(out(picks), out(values[picks]), out(chosen), out(torch.cat(parts)), threshold)


# ---- mixed features ----


@strategy(
    formula=r"\exists c: \hat y(z + \alpha_c \odot (\bar z_c - z)) \ne \hat y(z) \text{ filters}, "
    r"\to b \text{ clusters by } k\text{-means}",
    cost="N C D, with features that are exactly equal to a class's mean N C^2 D",
    kernels=("kmeans_plusplus", "knn"),
    use="Few labels and a linear head: rows that a step towards the labelled classes makes another class.",
)
def alfa_mix(
    features: Array,
    probs: Array,
    labeled_features: Array,
    labels: Any,
    head_weight: Array,
    batch_size: int,
    *,
    head_bias: Array | None = None,
    cap: float = 0.2,
    log_input: bool = False,
    clusterer: str = "sklearn",
    generator: torch.Generator | int | None = None,
) -> Selection:
    """Rows whose predicted class changes when their features are mixed with those of labelled classes, clustered.

    Each class's anchor is the mean of its labelled features. A row is mixed with an anchor as ``(1 - a) z + a anchor``
    with the closed form ``a = e |anchor - z| g / (|g| (anchor - z))``, where ``g`` is the loss gradient at the
    predicted class and ``e = cap / sqrt(D)``. Rows that any anchor turns are candidates; where there are no more than
    the batch takes, `cap` is raised step by step up to 1. Candidates, scaled to length one, are clustered by k-means;
    of each cluster the row nearest to the centre is picked, and random rows fill up.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D)
        What the linear last layer is given, of the pool.
    probs : Tensor or ndarray of shape (N, C)
        What it makes of that: ``softmax(features @ head_weight.T + head_bias)``.
    labeled_features : like `features`, shape (L, D)
        The same of the labelled rows; at least one.
    labels : integer array of shape (L,)
        Their classes. A class without labelled rows has the mean of all of them for its anchor.
    head_weight : Tensor or ndarray of shape (C, D)
        The last layer's weights.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    head_bias : Tensor or ndarray of shape (C,), optional
        Its biases. Default: 0.
    cap : float, default 0.2
        Above 0: the first and the step of the caps.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    clusterer : {"sklearn", "faiss"}, default "sklearn"
        Whose k-means; both start from :func:`alkernels.kmeans_plusplus`.
    generator : torch.Generator or int, optional
        Decides the clustering and the random rows. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64; ``scores`` (b,) float64, minus the smallest cap that turns the row (``-inf``: none
        does), descending, random rows behind.

    Raises
    ------
    ValueError
        No labelled row, an argument out of range, arrays that disagree, wrong distributions, NaN.

    Notes
    -----
    The mix is a step of length ``e |anchor - z|`` against the predicted class, along ``g`` but for coordinates in which
    row and anchor are equal. Along a line the predicted class does not come back, so that one pass gives each row the
    smallest cap that turns it, and with it the candidates of every cap. Where `probs` and the last layer differ on the
    class, the row is turned by any cap. Tiles of rows, class by class: nothing of size N × C × D is held; memory beyond
    the arrays: two copies of the candidates' features for k-means.

    References
    ----------
    .. [1] A. Parvaneh, E. Abbasnejad, D. Teney, R. Haffari, A. van den Hengel, J. Q. Shi. Active learning by feature
       mixing. CVPR 2022.
    """
    pool = check_features(features)
    batch_size = check_batch_size(batch_size, pool.count, "rows of features")
    likely = Probabilities(probs, "probs", 2, log_input)
    check_as_many(likely.count, "probs", pool.count, "features")
    classes, width = int(likely.shape[1]), pool.widths[0]
    if check_above_zero(cap, "cap") < _SMALLEST_CAP:
        raise ValueError(f"cap must be at least {_SMALLEST_CAP:g}, got {cap!r}")
    check_clusterer(clusterer)
    weight = _head(head_weight, "head_weight", (classes, width), pool.device)
    if head_bias is None:
        bias = torch.zeros(classes, dtype=torch.float64, device=pool.device)
    else:
        bias = _head(head_bias, "head_bias", (classes,), pool.device)
    anchors = _anchors(labeled_features, labels, classes, pool)
    pool.check_finite()
    critical = _critical_caps(pool, likely, weight, bias, anchors).cpu()
    draws = torch.Generator().manual_seed(seed_of(generator))
    if batch_size == 0:
        return _nothing(pool)
    # the first level of more than a batch is near the one that its last row has
    reached = min(1.0, float(critical.sort().values[min(batch_size, pool.count - 1)]))
    level = max(1, math.floor(reached / cap) - 1)
    while int((critical < level * cap).sum()) <= batch_size and level * cap < 1:
        level += 1
    candidates = (critical < level * cap).nonzero().flatten()
    picks = candidates
    if len(candidates) > batch_size:
        rows = scaled_to_one(Pool(RowsOf(features, candidates), "features")).cpu()  # type: ignore[arg-type]
        seed = int(torch.randint(2**31, (), generator=draws))
        picks = candidates[_medoids(rows, batch_size, seed, clusterer)]
    scores = 0.0 - critical
    picks = _best_first(picks, scores)
    free = torch.ones(pool.count, dtype=torch.bool)
    free[picks] = False
    rest = free.nonzero().flatten()
    picks = torch.cat([picks, rest[torch.randperm(len(rest), generator=draws)[: batch_size - len(picks)]]])
    return _selection(pool, picks, scores[picks])


def _head(values: Any, name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    tensor = as_tensor(values, name, f"an array of shape {shape}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got dtype {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be of shape {shape}, classes of probs by features, got {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite, got {tensor[~torch.isfinite(tensor)][0].item()}")
    return tensor.to(device, torch.float64)


def _anchors(labeled_features: Array, labels: Any, classes: int, pool: Pool) -> torch.Tensor:
    """Each class's mean labelled feature vector, [C, D] float64; of all where it has none."""
    known = Pool(labeled_features, "labeled_features")
    if known.count == 0:
        raise ValueError("labeled_features must have at least one row, got none: alfa_mix mixes with labelled rows")
    if known.widths != pool.widths:
        raise ValueError(f"labeled_features must be as wide as features, got {known.widths[0]} and {pool.widths[0]}")
    known.check_finite()
    of_class = check_classes(labels, "labels", known.count, classes, "labeled_features").to(known.device)
    sums = torch.zeros(classes, known.widths[0], dtype=torch.float64, device=known.device)
    for begin, end, (tile,) in known.tiles(rows_a_tile(known.device, 2 * known.widths[0])):
        sums.index_add_(0, of_class[begin:end], tile.double())
    counts = of_class.bincount(minlength=classes)[:, None]
    means = torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum(0) / known.count)
    return means.to(pool.device)


def _critical_caps(
    pool: Pool, likely: Probabilities, weight: torch.Tensor, bias: torch.Tensor, anchors: torch.Tensor
) -> torch.Tensor:
    """For each row the cap above which a mix with some anchor is of another class, [N] float64; inf for none."""
    classes, width = weight.shape
    out = torch.empty(pool.count, dtype=torch.float64, device=pool.device)
    size = rows_a_tile(pool.device, 6 * width + 6 * classes)
    for begin in range(0, pool.count, size):
        end = min(begin + size, pool.count)
        rows = pool.tile(begin, end)[0].double()
        stored = likely.pool.tile(begin, end)[0]
        likely.check_tile(begin, stored)
        p = likely.values(stored, torch.float64).to(rows.device)
        own = p.argmax(1, keepdim=True)
        slope = p.scatter_add(1, own, p.new_full((1, 1), -1.0).expand(len(p), 1)) @ weight
        length = slope.norm(dim=1, keepdim=True)
        slope = torch.where(length > 0, slope / length.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        logits = rows @ weight.t() + bias
        behind = logits.gather(1, own) - logits  # how far the other classes are behind
        whole = slope @ weight.t()
        most = torch.full_like(out[begin:end], torch.inf)
        for anchor in anchors:
            same = rows == anchor
            rise = torch.where(same, 0.0, slope) @ weight.t() if same.any() else whole
            gain = rise - rise.gather(1, own)  # ... and how fast they catch up
            step = torch.where(gain > 0, behind / gain, torch.inf).amin(1).clamp(min=0)
            apart = (anchor - rows).norm(dim=1)
            most = torch.minimum(most, torch.where(apart > 0, step * math.sqrt(width) / apart, torch.inf))
        out[begin:end] = torch.where((behind < 0).any(1), -torch.inf, most)
        for source in (*pool.sources, *likely.pool.sources):
            source.release(begin, end)
    return out.clamp_(min=0)


def _medoids(rows: torch.Tensor, count: int, seed: int, clusterer: str) -> torch.Tensor:
    """Of each of `count` clusters the row nearest to its centre; fewer where there are fewer distinct rows."""
    centers, cluster = kmeans(rows, count, seed, clusterer=clusterer)
    both = zip(rows.split(4096), cluster.split(4096), strict=True)
    apart = torch.cat([(some - centers[of]).square_().sum(1) for some, of in both])
    order = apart.sort(stable=True).indices
    order = order[cluster[order].sort(stable=True).indices]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = cluster[order][1:] != cluster[order][:-1]
    return order[first]


# ---- graphs ----


@strategy(
    formula=r"\text{bisection of the shortest unlabelled stretch between labels } y = k \text{ and } y \ne k,\ "
    r"\text{rows in order of } p_k - \max_y p_y",
    cost="N C + b N log N",
    use="Classes of very different frequency, out-of-distribution rows: batches come out balanced.",
)
def galaxy(
    probs: Array,
    labeled_probs: Array,
    labels: Any,
    batch_size: int,
    *,
    log_input: bool = False,
    generator: torch.Generator | int | None = None,
) -> Selection:
    """Graph-based active learning: bisection for where each class ends, in the order of its probabilities.

    For each pick a class k is drawn. All rows, labelled or not, are put in line by ``p_k - max p``, those of equal
    values by ``max p``. Of the stretches of unlabelled rows between a labelled row of class k and one of another class
    the shortest is halved. Where there is none, the unlabelled row nearest to such a pair of neighbours is picked, and
    where no pair of labelled rows differs, a random row.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities of the pool.
    labeled_probs : like `probs`, shape (L, C)
        Those of the labelled rows; at least one.
    labels : integer array of shape (L,)
        Their classes.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    log_input : bool, default False
        `probs` and `labeled_probs` hold natural logarithms of probabilities.
    generator : torch.Generator or int, optional
        Draws classes and rows. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64, in the order picked; ``scores`` (b,) float64: minus the number of rows of the stretch
        that was halved, minus the places from the pair, or ``-inf`` for a random row.

    Raises
    ------
    ValueError
        No labelled row, an argument out of range, arrays that disagree, wrong distributions, NaN.

    Notes
    -----
    The paper learns each label before the next pick, also within a batch. Here labels come once a batch: a picked row
    counts as of its likeliest class until the batch is full. That finds fewer of the rarest rows; with `batch_size` 1,
    the same `probs` and each label passed on, the two are the same.

    Two classes make one line. Each drawn class is sorted once; memory beyond the arrays is 4 bytes a row and drawn
    class, and 100 MB.

    References
    ----------
    .. [1] J. Zhang, J. Katz-Samuels, R. Nowak. GALAXY: graph-based active learning at the extreme. ICML 2022.
    """
    likely = Probabilities(probs, "probs", 2, log_input)
    given = Probabilities(labeled_probs, "labeled_probs", 2, log_input)
    batch_size = check_batch_size(batch_size, likely.count, "rows of probs")
    classes = int(likely.shape[1])
    if given.shape[1] != classes:
        raise ValueError(f"labeled_probs must have as many classes as probs, got {given.shape[1]} and {classes}")
    if given.count == 0:
        raise ValueError("labeled_probs must have at least one row, got none: galaxy searches between labelled rows")
    known = check_classes(labels, "labels", given.count, classes, "labeled_probs").cpu()
    guess = _likeliest(likely).numpy()
    given.check()
    draws = torch.Generator().manual_seed(seed_of(generator))
    drawn = torch.randint(1 if classes <= 2 else classes, (batch_size,), generator=draws)
    lines = _lines(likely, given, drawn.unique().tolist())
    label = np.concatenate([np.full(likely.count, -1), known.numpy()])
    picks, scores = [], []
    for k in drawn.tolist():
        pick, score = _next_in_line(label, lines[k], k)
        if pick is None:
            free = np.flatnonzero(label < 0)
            pick = int(free[int(torch.randint(len(free), (), generator=draws))])
        label[pick] = guess[pick]
        picks.append(pick)
        scores.append(score)
    return _selection(likely.pool, torch.tensor(picks, dtype=torch.int64), torch.tensor(scores, dtype=torch.float64))


def _lines(likely: Probabilities, given: Probabilities, classes: list[int]) -> dict[int, np.ndarray]:
    """For each class all rows in line, the surest of that class first; labelled rows are numbered behind the others."""
    count = likely.count + given.count
    best = np.empty(count)
    lines: dict[int, np.ndarray] = {}
    at_once = rows_a_tile(torch.device("cpu"), count)
    for some in [classes[i : i + at_once] for i in range(0, len(classes), at_once)]:
        lead = np.empty((len(some), count))
        for rows, first in ((likely, 0), (given, likely.count)):
            for begin, end, tile in rows.tiles(torch.float64):
                most = tile.amax(1, keepdim=True)
                lead[:, first + begin : first + end] = (tile[:, some] - most).t().cpu().numpy()
                best[first + begin : first + end] = most[:, 0].cpu().numpy()
        for k, ahead in zip(some, lead, strict=True):
            lines[k] = np.lexsort((-best, -ahead)).astype(np.int32 if count < 2**31 else np.int64)
    return lines


def _next_in_line(label: np.ndarray, line: np.ndarray, k: int) -> tuple[int | None, float]:
    """The row to ask for next, and minus how far it is from what is known; None where nothing is known to differ."""
    known = label[line]
    places = np.flatnonzero(known >= 0)
    positive = known[places] == k
    differ = positive[1:] != positive[:-1]
    if not differ.any():
        return None, -math.inf
    between = np.diff(places) - 1
    open_ = differ & (between > 0)
    if open_.any():
        i = int(np.argmin(np.where(open_, between, len(line))))
        return int(line[(places[i] + places[i + 1]) // 2]), -float(between[i])
    left = places[:-1][differ]  # the pairs are neighbours: this place and the next
    free = np.flatnonzero(known < 0)
    behind = np.searchsorted(free, left)
    back = np.where(behind > 0, left - free[behind - 1], len(line))
    ahead = np.where(behind < len(free), free[np.minimum(behind, len(free) - 1)] - left - 1, len(line))
    nearest = np.minimum(back, ahead)
    i = int(np.argmin(nearest))
    # as near on both sides: the side of the class
    backwards = back[i] < ahead[i] or (back[i] == ahead[i] and positive[:-1][differ][i])
    place = left[i] - back[i] if backwards else left[i] + 1 + ahead[i]
    return int(line[place]), -float(nearest[i])
