"""k-means for the strategies that cluster: scikit-learn's or faiss's, seeded by our k-means++."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from alkernels._packages import package
from alkernels.ops.kmeans_plusplus import kmeans_plusplus
from alkernels.strategies._arguments import check_one_of, rows_a_tile

CLUSTERERS = ("sklearn", "faiss")
_ITERATIONS = 100
# Most clusters that a strategy makes by itself, and from where on mini-batches make them: TypiClust's numbers.
MOST_CLUSTERS, PLAIN_CLUSTERS = 500, 50


def check_clusterer(clusterer: str) -> None:
    check_one_of(clusterer, "clusterer", CLUSTERERS)


def kmeans(
    rows: torch.Tensor,
    count: int,
    seed: int,
    *,
    weights: torch.Tensor | None = None,
    clusterer: str = "sklearn",
    mini_batch: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres [count, D] in float64 and each row's cluster [n], on the rows' device; the work is the CPU's.

    Fewer centres where there are fewer distinct rows.

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
    drawn = kmeans_plusplus(rows, count, generator=seed)
    seeds = drawn.indices[drawn.scores > 0].cpu().numpy()  # rows at 0 coincide with others
    count = len(seeds)
    points, middle, unit = _centered(rows.detach().cpu())
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
            # rows that are not the same, but to float32
            warnings.filterwarnings("ignore", message="Number of distinct clusters")
            labels = model.fit(points, sample_weight=worth).labels_
        centers = model.cluster_centers_
    return (
        torch.from_numpy(np.asarray(centers, dtype=np.float64) * unit + middle).to(rows.device),
        torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(rows.device),
    )


def _centered(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """A copy around 0 and no larger than 1, as k-means squares what it is given; the middle and the unit."""
    tiles = rows.split(rows_a_tile(rows.device, rows.shape[1]))
    middle = sum(tile.double().sum(0) / len(rows) for tile in tiles)
    assert isinstance(middle, torch.Tensor)
    unit = max(float((tile.double() - middle).abs().max()) for tile in tiles) or 1.0
    out = torch.empty(rows.shape, dtype=torch.promote_types(rows.dtype, torch.float32))
    for tile, part in zip(tiles, out.split(len(tiles[0])), strict=True):
        part.copy_((tile.double() - middle) / unit)
    return out.numpy(), middle.numpy(), unit
