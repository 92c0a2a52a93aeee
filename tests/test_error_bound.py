"""The bound on rounding errors that decides which rows are measured again (error_share in csrc/cpu/metric_rows.h)."""

import pytest
import torch
from conftest import true_squared

EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def multiples(d):
    return 6 + min(d, 32) / 5 + min(d, 512) / 128 + d / 1024


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


@pytest.mark.parametrize("d", [1, 2, 3, 17, 50, 384, 2048])
@pytest.mark.parametrize("name", DATA)
def test_distances_are_within_the_bound(name, d):
    rng = torch.Generator().manual_seed(0)
    n = 600
    x = DATA[name](rng, n, d)
    shift = x.median(0).values.double()
    norm = ((x.double() - shift) ** 2).sum(1)
    for i in range(0, n, 40):
        d2 = torch.full((n,), torch.inf, dtype=torch.float64)
        error = torch.zeros(n)
        # level = inf: nothing is measured again
        torch.ops.alkernels.lower_distances(x, None, x[i : i + 1], None, shift, 0, 0, torch.inf, d2, error, None)
        truth = true_squared(x.double(), x[i].double())
        bound = multiples(d) * EPS[torch.float32] * (norm + norm[i])
        assert ((d2 - truth).abs() <= bound + 1e-36).all()
        assert ((d2 - truth).abs() <= error.double() * 1.0001).all()
        # and what is said of the error is no larger than this bound
        assert (error.double() <= bound * 1.01 + 1e-35).all()


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
