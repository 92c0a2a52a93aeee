"""What is raced: one :class:`Case` an op, for ``alkernels bench`` and for the pytest benchmarks alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from alkernels import reference
from alkernels._bench.data import (
    FEATURES,
    Cover,
    Draws,
    Features,
    Joined,
    Pairs,
    Scored,
    Search,
    Smallest,
    digit_draws,
    glove,
    halves,
    mnist_features,
    word_classes,
)
from alkernels._inputs import Pool
from alkernels._packages import package
from alkernels._probabilities import Probabilities
from alkernels.ops import bald as bald_ops
from alkernels.ops import batchbald as batchbald_ops
from alkernels.ops import greedy_coverage as coverage
from alkernels.ops import joint_entropy as entropy
from alkernels.ops import k_center_greedy as k_center
from alkernels.ops import kmeans_plusplus as kmeans
from alkernels.ops import knn as nearest
from alkernels.ops import pairwise_kl as kl
from alkernels.ops import prediction_scores as scores

OURS = "alkernels"


@dataclass(frozen=True)
class Side:
    """One way to compute a case.

    Attributes
    ----------
    prepare : callable
        From the data to the call that is timed; conversions and imports belong here.
    passes : callable, optional
        From the data to the number of walks over the pool.
    checked : bool
        Whether its result must agree with ours; not where it starts from rounded data.
    cpu_only : bool
        Left out on a GPU.
    """

    prepare: Callable[[Any], Callable[[], Any]]
    passes: Callable[[Any], int] | None = None
    checked: bool = True
    cpu_only: bool = False


@dataclass(frozen=True)
class Case:
    """An op, what it is run on, and who runs.

    Attributes
    ----------
    op : str
        Its name in Python and on the command line; several cases may share it.
    pools : mapping
        From a pool's name to a function that makes its data, smaller where it is passed True. Data is a named tuple:
        its tensors are moved to the device, its tensors' shapes and its integers make the pool's label.
    sides : mapping
        By name: ours, its plain PyTorch twin, then variants of ours (names that begin with "alkernels, ") and peers.
    check : callable
        check(data, ours, theirs) raises an AssertionError where two results do not agree.
    work : callable
        From the data to the number of operations, or of bytes, that the task takes.
    unit : {"GFLOP/s", "GB/s"}
        Of `work` a second; only operations are compared with a matrix product's.
    own : callable, optional
        own(features, k) makes the data of a user's file; None where the op takes something else.
    """

    op: str
    pools: Mapping[str, Callable[[bool], Any]]
    sides: Mapping[str, Side]
    check: Callable[[Any, Any, Any], None]
    work: Callable[[Any], float]
    unit: str = "GFLOP/s"
    own: Callable[[torch.Tensor, int], Any] | None = None


def _distance_operations(d: Features) -> float:
    return 2 * d.x.numel() * d.k


# ---- k-center greedy ----


def _k_center_passes(d: Features) -> int:
    return k_center.select(
        Pool(d.x, "features"), d.k, None, 0, "euclidean", None, track=False, progress=False
    ).state.passes


def _same_radii(d: Features, ours: Any, theirs: Any) -> None:
    # near-ties part the two sequences, so compare what they achieve, the distance at every step, as far as
    # float32 products resolve it
    resolution = 1e-5 * float(d.x.square().sum(1).max())
    torch.testing.assert_close(
        theirs.scores.double().square(), ours.scores.double().square(), rtol=2e-3, atol=resolution
    )


def _k_center(convert: Callable[[torch.Tensor], torch.Tensor], **options: Any) -> Callable[[Features], Any]:
    return lambda d: partial(k_center.k_center_greedy, convert(d.x), d.k, start=0, **options)


# ---- k-means++ ----


def _kmeans_passes(d: Features) -> int:
    return kmeans.select(Pool(d.x, "features"), d.k, None, None, 0, track=False, progress=False).state.passes


def _similar_costs(d: Features, ours: Any, theirs: Any) -> None:
    def cost(result: Any) -> float:
        picks = torch.as_tensor(result[0], device=d.x.device)
        assert len(picks) == d.k, f"{len(picks)} picks instead of {d.k}"
        run = k_center.select(
            Pool(d.x, "features"), 0, Pool(d.x[picks], "picks"), None, "euclidean", 0, track=True, progress=False
        )
        return float(run.state.distances().sum())

    # the draws are others: few of them leave much to chance; and a cost of nearly nothing is rounding
    factor = math.exp(0.05 + 4 / math.sqrt(d.k))
    nothing = 1e-5 * float(d.x.double().square().sum())
    a, b = cost(ours), cost(theirs)
    assert max(a, b) <= factor * min(a, b) + nothing, f"k-means costs {a:.6g} and {b:.6g}"


def _plain_kmeans(d: Features) -> Callable[[], Any]:
    return lambda: reference.kmeans_plusplus(d.x, d.k, generator=torch.Generator().manual_seed(0))


def _sklearn_kmeans(d: Features) -> Callable[[], Any]:
    seeding, array = package("sklearn.cluster", "bench").kmeans_plusplus, d.x.numpy()
    # its thread pools are not torch's
    package("threadpoolctl", "bench").threadpool_limits(torch.get_num_threads())
    return lambda: seeding(array, d.k, n_local_trials=1, random_state=0)[::-1]  # indices first, as in ours


# ---- posterior draws ----

PEAKED, FLAT = 15.0, 3.0


def _close(rtol: float, atol: float) -> Callable[[Any, Any, Any], None]:
    return lambda d, ours, theirs: torch.testing.assert_close(theirs.double(), ours.double(), rtol=rtol, atol=atol)


def _joined(quick: bool, sharpness: float) -> Joined:
    probs = digit_draws(1000 if quick else 2000, 50, sharpness)
    return Joined(probs, probs[:4])


def _joint_operations(d: Joined) -> float:
    return 2 * d.probs.numel() * d.probs.shape[2] ** len(d.others)


def _scored(score: str) -> Case:
    """A score of one model's predictions, checked in the same pass, which the plain formula does not do."""
    return Case(
        op="prediction_scores",
        pools={f"GloVe classes, {score}": lambda quick: Scored(word_classes(20_000 if quick else 100_000))},
        sides={
            OURS: Side(
                lambda d: lambda: scores.prediction_scores(Probabilities(d.probs, "probs", 2, False), score),
                passes=lambda d: 1,
            ),
            "plain PyTorch": Side(lambda d: partial(reference.prediction_scores, d.probs, score), passes=lambda d: 1),
        },
        check=_close(1e-5, 1e-6),
        work=lambda d: d.probs.nbytes,
        unit="GB/s",
    )


def _exhaustive_operations(d: Draws) -> float:
    """Of scoring every candidate at every step."""
    return 2 * d.probs.numel() * sum(d.probs.shape[2] ** step for step in range(d.b))


def _same_gains(d: Any, ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(theirs.scores.double(), ours.scores.double(), rtol=1e-3, atol=1e-5)


# ---- divergences and neighbours ----


def _pair_operations(d: Pairs | Smallest | Search) -> float:
    return 2 * d[0].numel() * len(d[1])


def _same_values(d: Any, ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(theirs[0]).double(), ours[0].double(), rtol=1e-2, atol=1e-3)


def _same_distances(d: Search, ours: Any, theirs: Any) -> None:
    # a row is at 0 from itself, and float32 products know that as well as their squares' rounding allows
    resolution = 1e-5 * float(d.points.square().sum(1).max())
    squares = (torch.as_tensor(r[0]).double().square() for r in (theirs, ours))
    torch.testing.assert_close(*squares, rtol=2e-3, atol=resolution)


def _sklearn_knn(d: Search) -> Callable[[], Any]:
    module, points, queries = package("sklearn.neighbors", "bench"), d.points.numpy(), d.queries.numpy()
    package("threadpoolctl", "bench").threadpool_limits(torch.get_num_threads())
    return lambda: module.NearestNeighbors(n_neighbors=d.k, algorithm="brute").fit(points).kneighbors(queries)


def _faiss_knn(d: Search) -> Callable[[], Any]:
    faiss, points, queries = package("faiss", "bench"), d.points.numpy(), d.queries.numpy()
    faiss.omp_set_num_threads(torch.get_num_threads())

    def search() -> Any:
        index = faiss.IndexFlatL2(points.shape[1])
        index.add(points)
        squared, indices = index.search(queries, d.k)
        return np.sqrt(np.maximum(squared, 0)), indices

    return search


# ---- coverage ----


def _cover(n: int, k: int, kernel: str, bandwidth: float) -> Callable[[bool], Cover]:
    return lambda quick: Cover(glove(n // 4 if quick else n), k, kernel, bandwidth)


def _ours_of_cover(d: Cover) -> Callable[[], Any]:
    return partial(
        coverage.greedy_coverage,
        d.x,
        d.k,
        kernel=d.kernel,
        bandwidth=None if d.kernel == "cosine" else d.bandwidth,
    )


CASES = [
    Case(
        op="k_center_greedy",
        pools=FEATURES,
        sides={
            OURS: Side(_k_center(torch.Tensor.float), passes=_k_center_passes),
            "plain PyTorch, one pick a pass": Side(
                lambda d: partial(reference.k_center_greedy, d.x, d.k, start=0), passes=lambda d: d.k
            ),
            "alkernels, return_distances=True": Side(_k_center(torch.Tensor.float, return_distances=True)),
            "alkernels, bfloat16": Side(_k_center(torch.Tensor.bfloat16), checked=False),
            "alkernels, float64": Side(_k_center(torch.Tensor.double)),
        },
        check=_same_radii,
        work=_distance_operations,
        own=Features,
    ),
    Case(
        op="kmeans_plusplus",
        pools=FEATURES,
        sides={
            OURS: Side(lambda d: partial(kmeans.kmeans_plusplus, d.x, d.k, generator=0), passes=_kmeans_passes),
            "plain PyTorch, one draw a pass": Side(_plain_kmeans, passes=lambda d: d.k),
            "scikit-learn, n_local_trials=1": Side(_sklearn_kmeans, passes=lambda d: d.k, cpu_only=True),
        },
        check=_similar_costs,
        work=_distance_operations,
        own=Features,
    ),
    Case(
        op="joint_entropy",
        pools={
            "MNIST draws, peaked": lambda quick: _joined(quick, PEAKED),
            "MNIST draws, flat": lambda quick: _joined(quick, FLAT),
        },
        sides={
            OURS: Side(lambda d: partial(entropy.joint_entropy, d.probs, d.others), passes=lambda d: 2),
            "plain PyTorch, a product a chunk": Side(
                lambda d: partial(reference.joint_entropy, d.probs, d.others), passes=lambda d: 1
            ),
            "alkernels, float64": Side(lambda d: partial(entropy.joint_entropy, d.probs.double(), d.others.double())),
        },
        check=_close(1e-5, 1e-5),
        work=_joint_operations,
    ),
    Case(
        op="batchbald",
        pools={
            "MNIST draws, peaked": lambda quick: Draws(digit_draws(1000 if quick else 2000, 50, PEAKED), 5),
            "MNIST draws, flat": lambda quick: Draws(digit_draws(1000 if quick else 2000, 50, FLAT), 5),
        },
        sides={
            OURS: Side(lambda d: partial(batchbald_ops.batchbald, d.probs, d.b)),
            "plain PyTorch, all at every step": Side(lambda d: partial(reference.batchbald, d.probs, d.b)),
            "alkernels, float64": Side(lambda d: partial(batchbald_ops.batchbald, d.probs.double(), d.b)),
        },
        check=_same_gains,
        work=_exhaustive_operations,
    ),
    Case(
        op="bald",
        pools={"MNIST draws": lambda quick: Scored(digit_draws(1000 if quick else 5000, 50, FLAT))},
        sides={
            OURS: Side(lambda d: partial(bald_ops.bald, d.probs), passes=lambda d: 1),
            "plain PyTorch": Side(lambda d: partial(reference.bald, d.probs), passes=lambda d: 2),
        },
        check=_close(1e-3, 1e-5),
        work=lambda d: d.probs.nbytes,
        unit="GB/s",
    ),
    _scored("entropy"),
    _scored("margin"),
    Case(
        op="epig",
        pools={
            "MNIST draws": lambda quick: Joined(
                digit_draws(1000 if quick else 5000, 50, FLAT)[100:],
                digit_draws(1000 if quick else 5000, 50, FLAT)[: 20 if quick else 100],
            )
        },
        sides={
            OURS: Side(lambda d: partial(bald_ops.epig, d.probs, d.others), passes=lambda d: 2),
            "plain PyTorch, a target a pass": Side(
                lambda d: partial(reference.epig, d.probs, d.others), passes=lambda d: len(d.others)
            ),
        },
        check=_close(1e-3, 1e-5),
        work=lambda d: 2 * d.probs.numel() * d.others.shape[0] * d.others.shape[2],
    ),
    Case(
        op="pairwise_kl",
        pools={"GloVe classes, all pairs": lambda quick: halves(5000 if quick else 20_000)},
        sides={
            OURS: Side(lambda d: partial(kl.pairwise_kl, d.p, d.q), passes=lambda d: 1),
            "plain PyTorch": Side(lambda d: partial(reference.pairwise_kl, d.p, d.q), passes=lambda d: 1),
        },
        check=_close(1e-2, 1e-4),
        work=_pair_operations,
    ),
    Case(
        op="pairwise_kl",
        pools={"GloVe classes, k smallest": lambda quick: Smallest(*halves(5000 if quick else 20_000), 10)},
        sides={
            OURS: Side(lambda d: partial(kl.pairwise_kl, d.p, d.q, reduce="topk", k=d.k), passes=lambda d: 1),
            "plain PyTorch, a topk a chunk": Side(
                lambda d: partial(reference.pairwise_kl, d.p, d.q, k=d.k), passes=lambda d: 1
            ),
        },
        check=_same_values,
        work=_pair_operations,
    ),
    Case(
        op="knn",
        pools={
            "GloVe": lambda quick: Search(glove(5000 if quick else 20_000), glove(5000 if quick else 20_000), 10),
            "MNIST conv, narrow": lambda quick: Search(mnist_features(2), mnist_features(2), 10),
        },
        sides={
            OURS: Side(lambda d: partial(nearest.knn, *d), passes=lambda d: 1),
            "plain PyTorch, a topk a chunk": Side(lambda d: partial(reference.knn, *d), passes=lambda d: 1),
            "faiss, IndexFlatL2": Side(_faiss_knn, cpu_only=True),
            "scikit-learn, brute": Side(_sklearn_knn, cpu_only=True),
        },
        check=_same_distances,
        work=_pair_operations,
        own=lambda x, k: Search(x, x, min(10, len(x))),
    ),
    Case(
        op="greedy_coverage",
        pools={
            "GloVe, cosine": _cover(20_000, 20, "cosine", 1.0),
            "GloVe, rbf": _cover(10_000, 20, "rbf", 4.0),
            "GloVe, tophat": _cover(10_000, 20, "tophat", 4.0),
        },
        sides={
            OURS: Side(_ours_of_cover),
            "plain PyTorch, all at every pick": Side(
                lambda d: partial(reference.greedy_coverage, d.x, d.k, kernel=d.kernel, bandwidth=d.bandwidth),
                passes=lambda d: d.k * len(d.x),
            ),
        },
        check=_same_gains,
        work=lambda d: 2.0 * d.k * len(d.x) * d.x.numel(),
        own=lambda x, k: Cover(x, k, "cosine", 1.0),
    ),
]
