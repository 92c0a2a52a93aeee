"""scikit-learn: k-means++ seeding with its signature, and as what ``KMeans(init=...)`` calls."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch

from alkernels._inputs import CoverSelection, check_integer
from alkernels.ops import kmeans_plusplus as seeding

try:
    from sklearn import cluster
    from sklearn.utils import check_array, check_random_state
except ImportError as error:
    raise ImportError(
        "alkernels.integrations.sklearn needs the package scikit-learn: pip install 'alkernels[strategies]'"
    ) from error

# Draws for each seed: from about five on, seeds are as good as scikit-learn's (see the page on it).
_DRAWS_A_SEED = 5


def kmeans_plusplus(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    x_squared_norms: Any = None,
    random_state: Any = None,
    n_local_trials: int | None = None,
    device: torch.device | str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """``sklearn.cluster.kmeans_plusplus``: seeds for k-means, each drawn by the squared distance to those before.

    scikit-learn takes the best of ``2 + log(n_clusters)`` draws for each seed, with as many passes over the rows. By
    default these are five times as many plain draws as seeds, in a few passes, and scikit-learn's own seeding among
    them, each weighted by the rows that are nearest to it: seeds as good in a small part of the time. Seeds are
    distinct rows, also where points coincide.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Dense rows, a ``numpy.memmap`` of floats is not copied.
    n_clusters : int
        How many seeds.
    sample_weight : array-like of shape (n_samples,), optional
        Equal weights only: others are refused.
    x_squared_norms : array-like of shape (n_samples,), optional
        Is checked for its length, and not used.
    random_state : int, numpy.random.RandomState or None
        Decides all draws, by scikit-learn's rules.
    n_local_trials : int, optional
        1 draws plain seeds, by the law of scikit-learn's ``n_local_trials=1``. None: as above. Others are refused.
    device : torch.device or str, optional
        A CUDA device to work with.

    Returns
    -------
    centers : ndarray of shape (n_clusters, n_features)
        Rows of X, of its dtype.
    indices : ndarray of shape (n_clusters,), int64
        Which ones, in the order drawn.

    Raises
    ------
    ValueError
        More seeds than rows or less than one, weights that differ, more than one trial, NaN or infinity.
    TypeError
        A sparse matrix, an argument of the wrong type.

    References
    ----------
    .. [1] D. Arthur and S. Vassilvitskii. k-means++: the advantages of careful seeding. SODA 2007.
    .. [2] B. Bahmani, B. Moseley, A. Vattani, R. Kumar, S. Vassilvitskii. Scalable k-means++. VLDB 2012 (weighted
       seeding among more draws than seeds).

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.sklearn import kmeans_plusplus
    >>> centers, indices = kmeans_plusplus(np.array([[0.0], [0.0], [9.0]]), 2, random_state=0)
    >>> np.sort(centers[:, 0])
    array([0., 9.])
    """
    n_clusters = check_integer(n_clusters, "n_clusters")
    rows = check_array(X, dtype=[np.float64, np.float32])
    if not 1 <= n_clusters <= len(rows):
        raise ValueError(f"n_clusters must be between 1 and n_samples={len(rows)}, got {n_clusters}")
    _check_weights(sample_weight, len(rows))
    if x_squared_norms is not None and np.shape(x_squared_norms) != (len(rows),):
        raise ValueError(
            f"x_squared_norms must have one number a row of X, shape ({len(rows)},), got {np.shape(x_squared_norms)}"
        )
    if n_local_trials is not None and check_integer(n_local_trials, "n_local_trials") != 1:
        raise ValueError(f"n_local_trials must be None or 1, got {n_local_trials}")
    state = check_random_state(random_state)
    seed = int(state.randint(2**31 - 1))
    if n_local_trials == 1:
        drawn = seeding.kmeans_plusplus(rows, n_clusters, generator=seed, device=device)
        indices = np.asarray(drawn.indices)
    else:
        indices = _among_draws(rows, n_clusters, seed, state, device)
    return (X if isinstance(X, np.ndarray) else rows)[indices], indices


def kmeans_init(X: np.ndarray, n_clusters: int, random_state: Any = None) -> np.ndarray:
    """The seeds alone: ``KMeans(n_clusters, init=kmeans_init)``, also of ``MiniBatchKMeans`` and ``BisectingKMeans``.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
    n_clusters : int
    random_state : int, numpy.random.RandomState or None

    Returns
    -------
    ndarray of shape (n_clusters, n_features)

    Raises
    ------
    ValueError, TypeError
        As :func:`kmeans_plusplus`. scikit-learn passes a callable no weights: with those of ``fit(sample_weight=...)``
        only the iterations are weighted, not the seeding.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.cluster import KMeans
    >>> from alkernels.integrations.sklearn import kmeans_init
    >>> points = np.random.RandomState(0).randn(500, 8)
    >>> KMeans(5, init=kmeans_init, n_init=3, random_state=0).fit(points).cluster_centers_.shape
    (5, 8)
    """
    return kmeans_plusplus(X, n_clusters, random_state=random_state)[0]


def _among_draws(rows: np.ndarray, n_clusters: int, seed: int, state: Any, device: Any) -> np.ndarray:
    """scikit-learn's seeds among more plain draws, weighted by what is nearest to them."""
    count = min(_DRAWS_A_SEED * n_clusters, len(rows))
    drawn = seeding.kmeans_plusplus(rows, count, generator=seed, return_distances=True, device=device)
    assert isinstance(drawn, CoverSelection)
    draws = np.asarray(drawn.indices)
    weights = np.bincount(np.asarray(drawn.nearest), minlength=count).astype(rows.dtype)
    _, best = cluster.kmeans_plusplus(rows[draws], n_clusters, sample_weight=weights, random_state=state)
    if len(np.unique(best)) < n_clusters:  # fewer distinct points than seeds
        return draws[:n_clusters]
    return draws[best]


def _check_weights(sample_weight: Any, count: int) -> None:
    if sample_weight is None or isinstance(sample_weight, numbers.Real):
        return
    weights = np.asarray(sample_weight)
    if weights.shape != (count,):
        raise ValueError(f"sample_weight must have one number a row of X, shape ({count},), got {weights.shape}")
    if not (np.isfinite(weights).all() and weights[0] > 0 and (weights == weights[0]).all()):
        raise ValueError(
            "sample_weight must be the same above 0 for every row, as draws are by distance alone, got other weights; "
            "sklearn.cluster.kmeans_plusplus takes them"
        )
