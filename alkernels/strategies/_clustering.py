"""k-means for the strategies that cluster: scikit-learn's or faiss's, seeded by our k-means++."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from alkernels._packages import package
from alkernels.ops.kmeans_plusplus import kmeans_plusplus

CLUSTERERS = ("sklearn", "faiss")
_ITERATIONS = 100


def check_clusterer(clusterer: str) -> None:
    if clusterer not in CLUSTERERS:
        raise ValueError(f"clusterer must be 'sklearn' or 'faiss', got {clusterer!r}")


def kmeans(
    rows: torch.Tensor,
    count: int,
    seed: int,
    *,
    weights: torch.Tensor | None = None,
    clusterer: str = "sklearn",
    mini_batch: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres [count, D] and each row's cluster [n], on the rows' device; the work is the CPU's.

    Parameters
    ----------
    rows : Tensor of shape (n, D)
    count : int
        How many clusters, at most n.
    seed : int
        Decides the seeding.
    weights : Tensor of shape (n,), optional
        How much each row counts; not all zero.
    clusterer : {"sklearn", "faiss"}
    mini_batch : bool
        scikit-learn's MiniBatchKMeans, for hundreds of clusters.
    """
    check_clusterer(clusterer)
    seeds = kmeans_plusplus(rows, count, generator=seed).indices.cpu().numpy()
    host = rows.detach().cpu()
    points = np.ascontiguousarray((host if host.dtype == torch.float64 else host.float()).numpy())
    worth = None if weights is None else weights.cpu().numpy().astype(points.dtype)
    if clusterer == "faiss":
        faiss = package("faiss", "strategies")
        points = points.astype(np.float32)
        model = faiss.Kmeans(
            points.shape[1],
            count,
            niter=_ITERATIONS,
            seed=seed % 2**31,
            max_points_per_centroid=2**31 - 1,
            min_points_per_centroid=1,
        )
        model.train(points, weights=None if worth is None else worth.astype(np.float32), init_centroids=points[seeds])
        centers, labels = model.centroids, model.index.search(points, 1)[1][:, 0]
    else:
        cluster = package("sklearn.cluster", "strategies")
        kind = cluster.MiniBatchKMeans if mini_batch else cluster.KMeans
        model = kind(count, init=points[seeds], n_init=1, max_iter=_ITERATIONS, random_state=seed % 2**32)
        with warnings.catch_warnings():
            # fewer distinct rows than clusters: the caller fills up what is missing
            warnings.filterwarnings("ignore", message="Number of distinct clusters")
            labels = model.fit(points, sample_weight=worth).labels_
        centers = model.cluster_centers_
    return (
        torch.from_numpy(np.asarray(centers)).to(rows.device),
        torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(rows.device),
    )
