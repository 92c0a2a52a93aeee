"""k-means++ seeding: alkernels, the plain PyTorch loop of alkernels.reference, scikit-learn without local trials."""

import pytest
import torch
from data import POOLS, pool
from sklearn.cluster import kmeans_plusplus as sklearn_kmeans_plusplus

import alkernels as alk
from alkernels._inputs import Pool
from alkernels.ops.kmeans_plusplus import select

OP = "k-means++"


def cost(x, picks):
    return float(alk.k_center_greedy(x, 0, labeled=x[picks], return_distances=True).distances.square().sum())


@pytest.mark.parametrize("name", POOLS)
def bench_alkernels(name, measure, sgemm_seconds):
    x, k = pool(name)
    operations = 2 * x.numel() * k
    passes = select(Pool(x, "features"), k, None, None, 0, track=False, progress=False).state.passes
    ours = measure(
        OP,
        name,
        "alkernels",
        lambda: alk.kmeans_plusplus(x, k, generator=0),
        operations,
        floor=sgemm_seconds(operations),
        passes=passes,
    )
    plain = alk.reference.kmeans_plusplus(x, k, generator=torch.Generator().manual_seed(0))
    assert 0.9 < cost(x, ours.indices) / cost(x, plain.indices) < 1.1


@pytest.mark.parametrize("name", POOLS)
def bench_plain_pytorch(name, measure):
    x, k = pool(name)
    measure(
        OP,
        name,
        "plain PyTorch, one draw a pass",
        lambda: alk.reference.kmeans_plusplus(x, k, generator=torch.Generator().manual_seed(0)),
        2 * x.numel() * k,
        rounds=3,
        passes=k,
    )


@pytest.mark.parametrize("name", POOLS)
def bench_scikit_learn(name, measure):
    x, k = pool(name)
    array = x.numpy()
    measure(
        OP,
        name,
        "scikit-learn, n_local_trials=1",
        lambda: sklearn_kmeans_plusplus(array, k, n_local_trials=1, random_state=0),
        2 * x.numel() * k,
        rounds=3,
        passes=k,
    )
