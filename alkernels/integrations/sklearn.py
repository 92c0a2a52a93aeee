"""scikit-learn: k-means++ seeding with its signature, and as what ``KMeans(init=...)`` calls."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch

from alkernels._inputs import check_integer
from alkernels.ops import kmeans_plusplus as seeding

try:
    from sklearn.utils import check_array, check_random_state
except ImportError as error:
    raise ImportError(
        "alkernels.integrations.sklearn needs the package scikit-learn: pip install 'alkernels[strategies]'"
    ) from error


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

    What differs: seeding is plain, one draw for a centre, where scikit-learn takes the best of ``2 + log(n_clusters)``
    draws by default: the same as its ``n_local_trials=1`` in law. Seeds are distinct rows, also where points coincide.

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
        None or 1: others are refused.
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

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.sklearn import kmeans_plusplus
    >>> centers, indices = kmeans_plusplus(np.array([[0.0], [0.0], [9.0]]), 2, random_state=0)
    >>> sorted(centers[:, 0])
    [0.0, 9.0]
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
        raise ValueError(f"n_local_trials must be None or 1, seeding without trials, got {n_local_trials}")
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    indices = np.asarray(seeding.kmeans_plusplus(rows, n_clusters, generator=seed, device=device).indices)
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

    Notes
    -----
    Without local trials one seeding is a little worse than scikit-learn's. Where that matters ask for several with
    ``n_init``: one of them costs a small part of what scikit-learn's takes.

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
