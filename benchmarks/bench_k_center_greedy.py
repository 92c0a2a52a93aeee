"""k-center greedy: alkernels, and the plain PyTorch loop of alkernels.reference that walks the pool once a pick."""

import pytest
import torch
from data import POOLS, pool

import alkernels as alk
from alkernels._inputs import Pool
from alkernels.ops.k_center_greedy import select

OP = "k-center greedy"


@pytest.mark.parametrize("name", POOLS)
def bench_alkernels(name, measure, sgemm_seconds):
    x, k = pool(name)
    operations = 2 * x.numel() * k
    passes = select(Pool(x, "features"), k, None, 0, "euclidean", None, track=False, progress=False).state.passes
    ours = measure(
        OP,
        name,
        "alkernels",
        lambda: alk.k_center_greedy(x, k, start=0),
        operations,
        floor=sgemm_seconds(operations),
        passes=passes,
    )
    plain = alk.reference.k_center_greedy(x, k, start=0)
    # near-ties part the two sequences, so compare what they achieve: the distance at every step
    torch.testing.assert_close(ours.scores, plain.scores.double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", POOLS)
def bench_alkernels_with_distances(name, measure):
    x, k = pool(name)
    measure(
        OP,
        name,
        "alkernels, return_distances=True",
        lambda: alk.k_center_greedy(x, k, start=0, return_distances=True),
        2 * x.numel() * k,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", POOLS)
def bench_alkernels_dtypes(name, dtype, measure):
    x, k = pool(name)
    x = x.to(dtype)
    what = f"alkernels, {str(dtype).split('.')[1]}"
    measure(OP, name, what, lambda: alk.k_center_greedy(x, k, start=0), 2 * x.numel() * k)


@pytest.mark.parametrize("name", POOLS)
def bench_plain_pytorch(name, measure):
    x, k = pool(name)
    measure(
        OP,
        name,
        "plain PyTorch, one pick a pass",
        lambda: alk.reference.k_center_greedy(x, k, start=0),
        2 * x.numel() * k,
        rounds=3,
        passes=k,
    )
