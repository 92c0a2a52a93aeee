"""What is raced: one :class:`Case` an op, for ``alkernels bench`` and for the pytest benchmarks alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from alkernels import reference
from alkernels._bench.data import FEATURES, Features
from alkernels._inputs import Pool
from alkernels._packages import package
from alkernels.ops import k_center_greedy as k_center
from alkernels.ops import kmeans_plusplus as kmeans

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
]
