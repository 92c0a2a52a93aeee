"""The bound on rounding errors that decides which rows are measured again (error_share in csrc/cpu/metric_rows.h)."""

import pytest
import torch
from conftest import row, true_squared

DATA = {
    "normal": lambda g, n, d: torch.randn(n, d, generator=g),
    "far from the origin": lambda g, n, d: torch.randn(n, d, generator=g) + 100,
    "random walk": lambda g, n, d: torch.randn(n, d, generator=g).cumsum(0),
    "clusters": lambda g, n, d: (
        torch.randn(n, d, generator=g)[torch.arange(n) % 9] + 1e-3 * torch.randn(n, d, generator=g)
    ),
    "a line": lambda g, n, d: torch.randn(n, 1, generator=g) * torch.ones(1, d),
    "positive": lambda g, n, d: torch.rand(n, d, generator=g),
    "heavy tails": lambda g, n, d: torch.randn(n, d, generator=g) * torch.randn(n, 1, generator=g).exp() ** 2,
}


@pytest.mark.parametrize("d", [1, 2, 3, 17, 50, 384, 2048, pytest.param(20000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "outer"])
@pytest.mark.parametrize("name", DATA)
def test_distances_are_within_the_bound(name, metric, order, d):
    rng = torch.Generator().manual_seed(0)
    n = 300 if d < 2000 else 100
    x = DATA[name](rng, n, d)
    y = DATA[name](rng, n, 5) if metric == "outer" else None
    shift = x.median(0).values.double() if metric == "euclidean" else None
    if order == "F":
        x = x.t().contiguous().t()
    code = {"euclidean": 0, "cosine": 1, "outer": 2}[metric]
    for i in range(0, n, n // 5):
        d2 = torch.full((n,), torch.inf, dtype=torch.float64)
        error = torch.zeros(n)
        center2 = None if y is None else y[i : i + 1]
        # level = inf: nothing is measured again
        torch.ops.alkernels.lower_distances(x, y, x[i : i + 1], center2, shift, code, 0, torch.inf, d2, error, None)
        rows = x.double() if y is None else (x.double(), y.double())
        truth = true_squared(rows, row(rows, i), metric)
        assert ((d2 - truth).abs() <= error.double()).all()
        assert torch.isfinite(error).all()


@pytest.mark.parametrize("name", DATA)
def test_errors_cover_what_earlier_and_later_blocks_left_open(name):
    """Blocks one after the other, the level now loose, now strict: the error must cover the loser of every near-tie."""
    rng = torch.Generator().manual_seed(0)
    x = DATA[name](rng, 500, 64)
    d2 = torch.full((500,), torch.inf, dtype=torch.float64)
    error = torch.zeros(500)
    shift = x.median(0).values.double()
    truth = d2.clone()
    for begin, level in ((0, torch.inf), (7, 0.0), (20, torch.inf), (90, 0.0), (91, torch.inf), (120, 0.0)):
        block = x[begin : begin + 30].clone()
        # and copies of rows, shifted by as little as float32 tells apart: near-ties
        block[:10] = x[200:210] * (1 + 2.0**-22)
        torch.ops.alkernels.lower_distances(x, None, block, None, shift, 0, 0, level, d2, error, None)
        for c in block.double():
            truth = torch.minimum(truth, true_squared(x.double(), c))
        assert ((d2 - truth).abs() <= error.double() + 1e-12 * truth).all()


@pytest.mark.parametrize("name", DATA)
def test_level_zero_measures_everything_in_float64(name):
    rng = torch.Generator().manual_seed(0)
    x = DATA[name](rng, 500, 30)
    d2 = torch.full((500,), torch.inf, dtype=torch.float64)
    error = torch.ones(500)
    shift = torch.zeros(30, dtype=torch.float64)
    torch.ops.alkernels.lower_distances(x, None, x[::50].clone(), None, shift, 0, 0, 0.0, d2, error, None)
    truth = torch.stack([true_squared(x.double(), c.double()) for c in x[::50]]).min(0).values
    torch.testing.assert_close(d2, truth, rtol=1e-12, atol=0)
    assert (error == 0).all()
