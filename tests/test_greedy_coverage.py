"""greedy_coverage against an explicit matrix of similarities, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import MEASURE, run_python

import alkernels as alk
from alkernels._inputs import Pool
from alkernels.ops.greedy_coverage import KERNELS, Coverage

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def integers(rng, *shape, high=8):
    return torch.randint(-high, high + 1, shape, generator=rng).float()


def signs(rng, n, d=12):
    """Rows of four entries ±2^j and zeros else: norms are powers of two, cosines multiples of 1/4."""
    rows = torch.zeros(n, d)
    where = torch.rand(n, d, generator=rng).topk(4).indices
    rows.scatter_(1, where, torch.randint(0, 2, (n, 4), generator=rng).float() * 2 - 1)
    return rows * 2.0 ** torch.randint(-3, 4, (n, 1), generator=rng)


def similarity(rows, others, kernel, bandwidth=1.0):
    """The definition, from differences (cosine: of rows scaled to length one)."""
    rows, others = rows.double(), others.double()
    if kernel == "cosine":
        # the norm of the row over its largest entry: nothing under- or overflows
        unit = [
            torch.nn.functional.normalize(x / x.abs().amax(1, keepdim=True).clamp(min=1e-300), dim=1, eps=1e-300)
            for x in (rows, others)
        ]
        return unit[0] @ unit[1].t()
    d2 = torch.stack([(rows - c).square().sum(1) for c in others], 1)
    return (d2 < bandwidth**2).double() if kernel == "tophat" else (-d2 / bandwidth**2).exp()


def gains_of(matrix, weights, covered):
    """Each candidate's gain: Σ_j w_j max(0, s(i, j) - m_j)."""
    return (matrix - covered).clamp_(min=0) @ weights


def state(x, options):
    """Similarities [N, N], weights, what rows start at, and the rows that may be picked."""
    n, kernel, bandwidth = len(x), options.get("kernel", "cosine"), options.get("bandwidth") or 1.0
    covered = torch.zeros(n, dtype=torch.float64)
    if options.get("covered") is not None:
        covered = torch.as_tensor(options["covered"]).double().clone()
    if options.get("labeled") is not None and len(options["labeled"]):
        covered = torch.maximum(covered, similarity(x, options["labeled"], kernel, bandwidth).amax(1))
    weights = torch.ones(n, dtype=torch.float64)
    if options.get("weights") is not None:
        weights = torch.as_tensor(options["weights"]).double()
    may = torch.ones(n, dtype=torch.bool)
    if options.get("candidates") is not None:
        may = torch.zeros(n, dtype=torch.bool)
        may[torch.as_tensor(options["candidates"])] = True
    return similarity(x, x, kernel, bandwidth), weights, covered, may


def plain(x, k, **options):
    """The sequential rule, ties to the lowest index: picks, gains, what is covered in the end."""
    matrix, weights, covered, may = state(x, options)
    picks, found = [], []
    for _ in range(k):
        gain = gains_of(matrix, weights, covered).masked_fill(~may, -1)
        picks.append(int((gain == gain.max()).nonzero()[0]))
        found.append(float(gain[picks[-1]]))
        may[picks[-1]] = False
        covered = torch.maximum(covered, matrix[picks[-1]])
    return picks, torch.tensor(found, dtype=torch.float64), covered


def assert_greedy(x, out, **options):
    """The specification: each pick's true gain is within 1e-5 of the largest at that step, and so is its score."""
    matrix, weights, covered, may = state(x, options)
    nothing = 1e-12 * float(weights.sum())
    picks = torch.as_tensor(out.indices).tolist()
    assert len(set(picks)) == len(picks) == len(out.scores)
    for step, pick in enumerate(picks):
        assert may[pick], f"pick {step}: row {pick} may not be picked"
        gain = gains_of(matrix, weights, covered)
        best = float(gain[may].max())
        assert gain[pick] >= (1 - 1e-5) * best - nothing, f"pick {step}: {gain[pick]} < {best}"
        assert float(torch.as_tensor(out.scores)[step]) == pytest.approx(float(gain[pick]), rel=1e-5, abs=nothing)
        may[pick] = False
        covered = torch.maximum(covered, matrix[pick])
    return covered


# ---- the same picks where arithmetic is exact ----

SHAPES = [(1, 1, 1), (2, 1, 2), (31, 17, 31), (129, 3, 129), (300, 2, 60), (700, 5, 40), (2300, 2, 8)]


@pytest.mark.parametrize("bandwidth", [1.0, 2.5, 7.0])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_tophat_on_integers_equals_the_plain_rule(n, d, k, bandwidth, rng, device):
    x = integers(rng, n, d)
    out = alk.greedy_coverage(x.to(device), k, kernel="tophat", bandwidth=bandwidth, return_covered=True)
    picks, gains, covered = plain(x, k, kernel="tophat", bandwidth=bandwidth)
    assert out.indices.cpu().tolist() == picks
    assert torch.equal(out.scores.cpu(), gains) and torch.equal(out.covered.cpu(), covered)
    reference = alk.reference.greedy_coverage(x.double(), k, kernel="tophat", bandwidth=bandwidth)
    assert reference.indices.tolist() == picks


@pytest.mark.parametrize("covered", [None, -1.0])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (130, 130), (400, 60), (2300, 12)])
def test_cosine_of_power_of_two_norms_equals_the_plain_rule(n, k, covered, rng, device):
    x = signs(rng, n)
    start = None if covered is None else torch.full((n,), covered)
    out = alk.greedy_coverage(x.to(device), k, covered=start, return_covered=True)
    picks, gains, end = plain(x, k, covered=start)
    assert out.indices.cpu().tolist() == picks
    assert torch.equal(out.scores.cpu(), gains) and torch.equal(out.covered.cpu(), end)


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("bandwidth", [0.7, 3.0, 40.0])
def test_rbf_on_integers(n, d, k, bandwidth, rng, device):
    x = integers(rng, n, d)
    out = alk.greedy_coverage(x.to(device), k, kernel="rbf", bandwidth=bandwidth, return_covered=True)
    matrix, weights, covered, may = state(x, {"kernel": "rbf", "bandwidth": bandwidth})
    for pick, score in zip(out.indices.tolist(), out.scores.tolist(), strict=True):
        gain = gains_of(matrix, weights, covered)
        assert gain[pick] >= gain[may].max() - 1e-12 * n
        assert score == pytest.approx(float(gain[pick]), rel=1e-12, abs=1e-12 * n)
        may[pick] = False
        covered = torch.maximum(covered, matrix[pick])
    torch.testing.assert_close(out.covered.cpu(), covered, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", range(6))
def test_all_options_together(case, kernel, rng):
    """Weights with zeros, a start, labelled rows and few candidates, against the plain rule, exactly."""
    n = 240 + case
    x = signs(rng, n) if kernel == "cosine" else integers(rng, n, 3)
    weights = torch.randint(0, 5, (n,), generator=rng) / 4
    options = {"kernel": kernel, "weights": weights}
    if kernel != "cosine":
        options["bandwidth"] = 4.0
    if case % 2:
        options["covered"] = torch.randint(-4, 4, (n,), generator=rng) / 4
    if case % 3:
        options["labeled"] = signs(rng, 3) if kernel == "cosine" else integers(rng, 3, 3)
    if case > 2:
        options["candidates"] = torch.randperm(n, generator=rng)[:40]
    out = alk.greedy_coverage(x, 25, return_covered=True, **options)
    assert isinstance(out, alk.CoverageSelection)
    picks, gains, covered = plain(x, 25, **options)
    if kernel == "rbf":
        assert_greedy(x, out, **options)
        torch.testing.assert_close(out.scores, gains, rtol=1e-12, atol=1e-12 * n)
        torch.testing.assert_close(out.covered, covered, rtol=0, atol=1e-12)
    else:
        assert out.indices.tolist() == picks
        assert torch.equal(out.scores, gains) and torch.equal(out.covered, covered)


# ---- real data ----


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_every_pick_is_within_1e_5_of_the_best(data):
    n, d = data.draw(st.integers(1, 80), "n"), data.draw(st.integers(1, 40), "d")
    k = data.draw(st.integers(0, min(n, 25)), "k")
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    kind = data.draw(st.sampled_from(["normal", "copies", "far", "clusters", "huge row", "zero rows", "huge"]), "kind")
    scale = 10.0 ** data.draw(st.integers(-6, 6), "scale")
    x = torch.randn(n, d, generator=rng)
    if kind == "copies":
        x = x[torch.randint(max(1, n // 4), (n,), generator=rng)]
    elif kind == "far":
        x += 1000
    elif kind == "clusters":
        x = 100 * x[torch.randint(max(1, n // 5), (n,), generator=rng)] + torch.randn(n, d, generator=rng)
    elif kind == "huge row":
        x[data.draw(st.integers(0, n - 1), "row")] *= 1e9
    elif kind == "zero rows":
        x[:: data.draw(st.integers(1, 4), "zeros")] = 0
    elif kind == "huge":
        scale = 1e20
    x = (x * scale).to(data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype"))
    kernel = data.draw(st.sampled_from(sorted(KERNELS)), "kernel")
    options = {"kernel": kernel}
    if kernel != "cosine":
        options["bandwidth"] = (
            min(scale, 1e17) * math.sqrt(d) * data.draw(st.sampled_from([0.3, 1.0, 3.0]), "bandwidth")
        )
    if data.draw(st.booleans(), "weights"):
        options["weights"] = (
            torch.rand(n, generator=rng, dtype=torch.float64) * 10.0 ** data.draw(st.integers(-9, 9)) + 1e-12
        )
    if kernel == "cosine" and data.draw(st.booleans(), "from -1"):
        options["covered"] = -torch.ones(n)
    if data.draw(st.booleans(), "labeled"):
        options["labeled"] = x[torch.randint(n, (3,), generator=rng)] + scale / 10
    before = x.clone()
    out = alk.greedy_coverage(x, k, return_covered=True, **options)
    assert torch.equal(x, before)
    covered = assert_greedy(x, out, **options)
    torch.testing.assert_close(out.covered, covered, rtol=0, atol=1e-6)
    assert (out.scores >= 0).all()
    assert (out.scores.diff() <= 1e-12 * (1 + out.scores[:-1])).all()


def clusters(rng, n=300, d=6, centers=20, spread=1e-3, far=1e3):
    return far * torch.randn(centers, d, generator=rng)[torch.arange(n) % centers] + spread * torch.randn(
        n, d, generator=rng
    )


# data, bandwidth
HARD = {
    "normal": lambda g: (torch.randn(300, 30, generator=g), 5.0),
    "far from the origin": lambda g: (torch.randn(300, 30, generator=g) + 3e4, 5.0),
    "tight clusters far apart": lambda g: (clusters(g), 1e-3),
    "clusters further apart": lambda g: (clusters(g, spread=1.0, far=1e6), 1.0),
    "clusters far apart, wide bandwidth": lambda g: (clusters(g), 1e3),
    "tiny": lambda g: (1e-6 * torch.randn(300, 8, generator=g), 2e-6),
    "squares underflow float32": lambda g: (1e-17 * torch.randn(300, 8, generator=g), 2e-17),
    "subnormal": lambda g: (1e-41 * torch.randn(300, 8, generator=g), 1.0),
    "large": lambda g: (1e6 * torch.randn(300, 8, generator=g), 2e6),
    "huge, nothing is near": lambda g: (1e20 * torch.randn(300, 8, generator=g), 1.0),
    "huge, as the bandwidth": lambda g: (1e17 * torch.randn(300, 8, generator=g), 2e17),
    "copies of huge rows": lambda g: (1e8 * torch.randn(60, 33, generator=g).repeat(3, 1), 1.0),
    "copies of large rows": lambda g: (1e5 * torch.randn(60, 33, generator=g).repeat(3, 1), 1.0),
    "one huge row": lambda g: (torch.cat([torch.randn(299, 8, generator=g), torch.full((1, 8), 1e9)]), 1.0),
    "one huge row of many": lambda g: (
        torch.randn(300, 17, generator=g) * torch.cat([torch.ones(299, 1), torch.full((1, 1), 1e9)]),
        1.2,
    ),
    "one huge row in front": lambda g: (torch.cat([torch.full((1, 8), 1e14), torch.randn(299, 8, generator=g)]), 1.0),
    "constant columns": lambda g: (torch.cat([torch.randn(300, 3, generator=g), torch.full((300, 50), 7.7)], 1), 1.0),
    "wide": lambda g: (torch.randn(150, 2000, generator=g), 60.0),
    "positive": lambda g: (torch.rand(200, 700, generator=g) + 5, 10.0),
    "heavy tails": lambda g: (
        torch.randn(300, 20, generator=g) * torch.randn(300, 1, generator=g).exp() ** 3,
        4.0,
    ),
    "a line": lambda g: (torch.randn(300, 1, generator=g) * torch.ones(1, 90), 3.0),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", HARD)
def test_hard_data(name, kernel, rng, device):
    x, bandwidth = HARD[name](rng)
    options = {"kernel": kernel} if kernel == "cosine" else {"kernel": kernel, "bandwidth": bandwidth}
    out = alk.greedy_coverage(x.to(device), 60, return_covered=True, **options)
    covered = assert_greedy(x, out, **options)
    torch.testing.assert_close(out.covered.cpu(), covered, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_differences_of_two_near_candidates_decide(kernel, rng):
    """Gains 1e-9 apart, which float32 cannot tell: pairs of rows, one of them a little nearer to the rest."""
    x = torch.randn(200, 16, generator=rng).double()
    x = torch.cat([x, x * (1 + 1e-9 * torch.randn(200, 16, generator=rng))])
    out = alk.greedy_coverage(x.float(), 40, kernel=kernel, bandwidth=None if kernel == "cosine" else 4.0)
    matrix, weights, covered, may = state(x.float(), {"kernel": kernel, "bandwidth": 4.0})
    for pick in out.indices.tolist():
        gain = gains_of(matrix, weights, covered)
        assert gain[pick] >= gain[may].max() - 1e-11
        may[pick] = False
        covered = torch.maximum(covered, matrix[pick])


# ---- the bound ----


def bounds_and_gains(x, kernel, bandwidth, weights=None, covered=None):
    n = len(x)
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
    covered = torch.zeros(n, dtype=torch.float64) if covered is None else covered.double()
    coverage = Coverage(Pool(x, "features"), KERNELS[kernel], bandwidth, weights, covered)
    rows = torch.arange(n)
    return coverage.gains(rows, exact=False), coverage.gains(rows, exact=True)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", HARD)
def test_estimates_are_never_below_the_gain(name, kernel, rng):
    x, bandwidth = HARD[name](rng)
    starts = [None, torch.rand(len(x), generator=rng, dtype=torch.float64), -torch.ones(len(x))]
    matrix = similarity(x, x, kernel, bandwidth)
    starts.append(matrix[:40].amax(0))  # as after 40 picks: gains that are nothing but differences
    for factor in (1.0, 0.03, 30.0):
        for covered in starts:
            bound, gain = bounds_and_gains(x, kernel, max(bandwidth * factor, 1.1e-18), covered=covered)
            if x.abs().max() < 1e15:  # above it nothing is estimated in float32
                assert (bound >= gain).all()


@pytest.mark.parametrize("kernel", ["rbf", "tophat"])
def test_estimates_are_close_on_ordinary_data(kernel, rng):
    """A bound that is far too large would be right and useless."""
    x = torch.randn(300, 30, generator=rng)
    bound, gain = bounds_and_gains(x, kernel, 7.0)
    assert (bound <= gain * 1.001 + 1).all()


@pytest.mark.parametrize("weight", [1e-60, 1e-42, 1e-30, 1e30, 1e39, 1e300])
@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_of_any_size(kernel, weight, rng):
    """Only ratios of weights count, whatever float32 holds."""
    x = torch.randn(200, 5, generator=rng)
    weights = weight * torch.rand(200, generator=rng, dtype=torch.float64)
    options = {"kernel": kernel, "weights": weights}
    bound, gain = bounds_and_gains(x, kernel, 1.0, weights=weights)
    assert (bound >= gain).all()
    assert_greedy(x, alk.greedy_coverage(x, 20, **options), **options)


def test_weights_of_very_different_size(rng):
    x = torch.arange(100.0)[:, None] * 5
    weights = torch.logspace(0, -99, 100, dtype=torch.float64)
    out = alk.greedy_coverage(x, 90, kernel="tophat", weights=weights)
    assert out.indices.tolist() == list(range(90))


def test_similarities_below_what_float32_holds():
    """One row counts, all candidates are so far from it that exp(-d²) is below 1e-38: the nearest still wins."""
    x = torch.cat([torch.zeros(1, 1), torch.linspace(26, 10, 100)[:, None]])
    weights = torch.zeros(101)
    weights[0] = 1
    bound, gain = bounds_and_gains(x, "rbf", 1.0, weights=weights)
    assert (bound >= gain).all()
    out = alk.greedy_coverage(x, 1, kernel="rbf", candidates=range(1, 101), weights=weights)
    assert out.indices.tolist() == [100] and float(out.scores) == pytest.approx(math.exp(-100), rel=1e-9)


@pytest.mark.parametrize("start", [-1e6, -1e30, -1e39])
def test_starts_far_below_any_similarity(start, rng):
    """Every row's first cover is worth the same huge step; after it, similarities decide."""
    x = integers(rng, 90, 2)
    covered = torch.full((90,), start, dtype=torch.float64)
    if start > -1e30:  # beyond, float32 is not asked
        bound, gain = bounds_and_gains(x, "tophat", 3.0, covered=covered)
        assert (bound >= gain).all()
    out = alk.greedy_coverage(x, 8, kernel="tophat", bandwidth=3.0, covered=covered)
    assert len(set(out.indices.tolist())) == 8
    if start == -1e6:
        assert out.indices.tolist() == plain(x, 8, kernel="tophat", bandwidth=3.0, covered=covered)[0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_squares_that_overflow_float64(kernel):
    """As k_center_greedy: what cannot be computed is refused, and never picked from silently."""
    x = torch.tensor([[1.0, 0.0], [1e200, 0.0], [3e200, 0.0], [7e200, 0.0]], dtype=torch.float64)
    try:
        out = alk.greedy_coverage(x, 4, kernel=kernel, return_covered=True)
    except ValueError as error:
        assert "features must have" in str(error) and "float64" in str(error)
    else:
        picks, gains, _ = plain(x, 4, kernel=kernel)
        assert out.indices.tolist() == picks and out.scores.tolist() == pytest.approx(gains.tolist())


# ---- options ----


def test_forms_of_candidates(rng):
    x = integers(rng, 120, 3)
    rows = torch.randperm(120, generator=rng)[:50]
    mask = torch.zeros(120, dtype=torch.bool)
    mask[rows] = True
    option = {"kernel": "tophat", "bandwidth": 5.0}
    expected = plain(x, 30, candidates=rows, **option)[0]
    for form in (
        rows,
        rows.int(),
        rows.flip(0),
        rows.tolist(),
        tuple(rows.tolist()),
        rows.numpy(),
        rows.numpy().astype(np.int32),
        rows.numpy()[::-1],
        rows.numpy().astype(np.uint8),
        mask,
        mask.tolist(),
        mask.numpy(),
    ):
        assert alk.greedy_coverage(x, 30, candidates=form, **option).indices.tolist() == expected
    all_but_two = torch.arange(120)[torch.arange(120) % 60 != 3]
    out = alk.greedy_coverage(x, 118, candidates=all_but_two, **option)
    assert sorted(out.indices.tolist()) == all_but_two.tolist()
    assert out.indices.tolist() == plain(x, 118, candidates=all_but_two, **option)[0]
    assert alk.greedy_coverage(x, 1, candidates=[77]).indices.tolist() == [77]
    assert alk.greedy_coverage(x, 0, candidates=[]).indices.shape == (0,)
    assert alk.greedy_coverage(x, 0, candidates=torch.zeros(120, dtype=torch.bool)).scores.shape == (0,)


def test_rows_that_may_not_be_picked_still_count(rng):
    x = torch.tensor([[0.0], [10.0], [10.1], [10.2]])
    assert alk.greedy_coverage(x, 1, kernel="tophat", candidates=[0, 1]).indices.tolist() == [1]


def test_forms_of_weights_and_covered(rng):
    x = integers(rng, 60, 3)
    weights = torch.rand(60, generator=rng, dtype=torch.float64)
    covered = torch.rand(60, generator=rng, dtype=torch.float64) / 2
    expected = alk.greedy_coverage(x, 20, weights=weights, covered=covered)
    before = weights.clone(), covered.clone()
    for form in (
        lambda t: t.numpy(),
        lambda t: t.tolist(),
        lambda t: t.flip(0).numpy()[::-1],
        lambda t: t.repeat(2)[:60],
    ):
        out = alk.greedy_coverage(x, 20, weights=form(weights), covered=form(covered))
        assert torch.equal(out.indices, expected.indices) and torch.equal(out.scores, expected.scores)
    assert torch.equal(weights, before[0]) and torch.equal(covered, before[1])
    whole = alk.greedy_coverage(x, 20, weights=torch.randint(1, 4, (60,), generator=rng))
    assert torch.isfinite(whole.scores).all()
    none = alk.greedy_coverage(x, 20, weights=torch.ones(60), covered=torch.zeros(60), labeled=x[:0])
    assert torch.equal(none.indices, alk.greedy_coverage(x, 20).indices)


def test_a_list_of_weights_keeps_its_digits():
    x = torch.arange(4.0)[:, None] * 9
    out = alk.greedy_coverage(x, 4, kernel="tophat", weights=[0.1, 0.2, 0.3, 0.4])
    assert out.scores.tolist() == [0.4, 0.3, 0.2, 0.1]


def test_labeled_is_the_same_as_what_it_covers(rng, device):
    x, known = torch.randn(300, 7, generator=rng), torch.randn(1500, 7, generator=rng) / 3  # two blocks
    for kernel in KERNELS:
        covered = similarity(x, known, kernel, 1.0).amax(1).clamp(min=0)
        a = alk.greedy_coverage(x.to(device), 15, kernel=kernel, labeled=known.to(device), return_covered=True)
        assert_greedy(x, a, kernel=kernel, labeled=known)
        b = alk.greedy_coverage(x, 15, kernel=kernel, covered=covered)
        torch.testing.assert_close(a.scores.cpu(), b.scores, rtol=1e-9, atol=1e-9)
        for form in (known.double(), known.numpy(), known.t().contiguous().t()):
            assert torch.equal(alk.greedy_coverage(x, 15, kernel=kernel, labeled=form).indices, a.indices.cpu())


@pytest.mark.parametrize("kernel", KERNELS)
def test_covered_is_the_definition(kernel, rng):
    x, known = torch.randn(200, 9, generator=rng), torch.randn(4, 9, generator=rng)
    start = torch.rand(200, generator=rng, dtype=torch.float64) / 5 - 0.1
    for labeled, covered, k in (
        (None, None, 0),
        (None, None, 9),
        (known, None, 0),
        (known, start, 9),
        (None, start, 0),
    ):
        out = alk.greedy_coverage(x, k, kernel=kernel, labeled=labeled, covered=covered, return_covered=True)
        centers = torch.cat([x[out.indices], known if labeled is not None else known[:0]])
        expected = torch.zeros(200, dtype=torch.float64) if covered is None else start
        if len(centers):
            expected = torch.maximum(expected, similarity(x, centers, kernel).amax(1))
        torch.testing.assert_close(out.covered, expected, rtol=0, atol=1e-12)
    total = float(out.scores.sum())
    assert total == 0 and isinstance(alk.greedy_coverage(x, 1, kernel=kernel), alk.Selection)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gains_add_up_to_what_is_covered(kernel, rng):
    x, weights = torch.randn(400, 6, generator=rng), torch.rand(400, generator=rng, dtype=torch.float64)
    out = alk.greedy_coverage(x, 30, kernel=kernel, weights=weights, return_covered=True)
    assert float(out.scores.sum()) == pytest.approx(float((weights * out.covered).sum()), rel=1e-12)


def test_negative_similarities_count_from_minus_one():
    """Suggestive annotation's rule: the first pick maximises the sum of cosines, negative ones included."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, -0.1], [-1.0, 0.1]])
    matrix = similarity(x, x, "cosine")
    out = alk.greedy_coverage(x, 2, covered=-torch.ones(5), return_covered=True)
    assert int(out.indices[0]) == int(matrix.sum(1).argmax())
    assert float(out.scores[0]) == pytest.approx(float(matrix.sum(1).max()) + 5)
    assert alk.greedy_coverage(x, 1).indices.tolist() != out.indices[:1].tolist()


def test_probcover(rng):
    """Edges to what is nearer than the radius; the largest out-degree among edges left, again and again."""
    x = torch.nn.functional.normalize(torch.randn(250, 4, generator=rng), dim=1)
    known = x[:6]
    edges = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist") < 0.5
    edges[:, edges[:6].any(0)] = False
    expected = []
    for _ in range(12):
        expected.append(int(edges.sum(1).argmax()))
        edges[:, edges[expected[-1]].clone()] = False
    out = alk.greedy_coverage(x, 12, kernel="tophat", bandwidth=0.5, labeled=known)
    assert (out.scores > 0).all() and out.indices.tolist() == expected


@pytest.mark.parametrize("kernel", KERNELS)
def test_at_least_1_minus_1_over_e_of_the_best_set(kernel, rng):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x, weights = torch.randn(11, 2, generator=g), torch.rand(11, generator=g, dtype=torch.float64)
        matrix = similarity(x, x, kernel).clamp(min=0)
        best = max(float(matrix[list(s)].amax(0) @ weights) for s in itertools.combinations(range(11), 4))
        assert float(alk.greedy_coverage(x, 4, kernel=kernel, weights=weights).scores.sum()) >= (1 - 1 / math.e) * best


# ---- ties, zeros ----


def test_gains_of_zero_go_by_index():
    x = torch.tensor([[0.0], [9.0]]).repeat(40, 1)
    for kernel in ("tophat", "rbf"):
        out = alk.greedy_coverage(x, 80, kernel=kernel, bandwidth=0.1)
        assert out.indices.tolist() == list(range(80))
        assert out.scores.tolist() == [40.0, 40.0] + [0.0] * 78
        some = [70, 11, 12, 13, 50]
        out = alk.greedy_coverage(x, 5, kernel=kernel, bandwidth=0.1, candidates=some)
        assert out.indices.tolist() == [11, 12, 13, 50, 70]
        out = alk.greedy_coverage(x, 80, kernel=kernel, bandwidth=0.1, covered=torch.ones(80))
        assert out.indices.tolist() == list(range(80)) and out.scores.eq(0).all()
        out = alk.greedy_coverage(x, 3, kernel=kernel, bandwidth=0.1, labeled=x[:2])
        assert out.indices.tolist() == [0, 1, 2] and out.scores.eq(0).all()
    assert alk.greedy_coverage(torch.ones(5000, 3), 5000, kernel="rbf").indices.tolist() == list(range(5000))
    halves = torch.tensor([[1.0, 1.0, 1.0, 1.0]]).repeat(300, 1)
    assert alk.greedy_coverage(halves, 300).indices.tolist() == list(range(300))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_first_of_some_copies_is_picked(kernel, rng):
    """A gain has the same bits beside any other candidates, whichever panel of the tile it falls into."""
    base = torch.randn(45, 7, generator=rng)
    x = base.repeat(3, 1)
    out = alk.greedy_coverage(x, 45, kernel=kernel)
    positive = out.indices[out.scores > 1e-9]
    assert len(positive) > 10 and (positive < 45).all()
    bound, gain = bounds_and_gains(x, kernel, 1.0)
    assert torch.equal(gain[:45], gain[45:90]) and torch.equal(gain[:45], gain[90:])
    assert torch.equal(bound[:45], bound[90:])
    coverage = Coverage(
        Pool(x, "features"), KERNELS[kernel], 1.0, torch.ones(135, dtype=torch.float64), torch.zeros(135).double()
    )
    assert torch.equal(torch.cat([coverage.gains(torch.tensor([i]), exact=True) for i in range(135)]), gain)


def test_permuting_the_pool_permutes_the_picks(rng):
    x, order = torch.randn(300, 6, generator=rng), torch.randperm(300, generator=rng)
    for kernel in ("cosine", "rbf"):
        permuted = alk.greedy_coverage(x[order], 20, kernel=kernel).indices
        assert torch.equal(order[permuted], alk.greedy_coverage(x, 20, kernel=kernel).indices)


def test_zero_rows_are_orthogonal_to_all_under_cosine():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    out = alk.greedy_coverage(x, 4, return_covered=True)
    assert out.indices.tolist() == [1, 0, 2, 3]
    assert out.scores.tolist() == [2.0, 0.0, 0.0, 0.0] and out.covered.tolist() == [0.0, 1.0, 0.0, 1.0]
    from_minus_one = alk.greedy_coverage(x, 4, covered=-torch.ones(4), return_covered=True)
    assert from_minus_one.indices.tolist() == [1, 0, 2, 3]
    assert from_minus_one.scores.tolist() == [6.0, 0.0, 0.0, 0.0]
    assert alk.greedy_coverage(torch.zeros(5, 3), 5).indices.tolist() == list(range(5))


# ---- dtypes, layouts, NumPy ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every third column", "reversed by flip"])
def test_dtypes_and_layouts(dtype, layout, rng, device):
    x, known = integers(rng, 200, 19), integers(rng, 3, 19)
    expected = plain(x, 30, kernel="tophat", bandwidth=20.0, labeled=known)[0]
    x = x.to(device, dtype)
    if layout == "transposed":
        x = x.t().contiguous().t()
    elif layout == "every third column":
        x = x.repeat_interleave(3, dim=1)[:, 1::3]
    elif layout == "reversed by flip":
        x = x.flip(0).contiguous().flip(0)
    for labels in DTYPES:
        out = alk.greedy_coverage(x, 30, kernel="tophat", bandwidth=20.0, labeled=known.to(device, labels))
        assert out.indices.cpu().tolist() == expected and out.scores.dtype == torch.float64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_real_values_of_each_dtype(kernel, dtype, rng, device):
    x = torch.randn(400, 24, generator=rng).to(device, dtype)
    options = {"kernel": kernel} if kernel == "cosine" else {"kernel": kernel, "bandwidth": 5.0}
    assert_greedy(x.cpu(), alk.greedy_coverage(x, 50, **options), **options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["C", "F", "reversed", "read-only", "other byte order", "memmap", "memmap F"])
def test_numpy_comes_back_for_numpy(dtype, layout, rng, tmp_path):
    x = integers(rng, 150, 7).numpy().astype(dtype)
    expected = alk.greedy_coverage(torch.from_numpy(x.copy()), 30, kernel="tophat", bandwidth=6, return_covered=True)
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "reversed":
        x = x[::-1, ::-1].copy()[::-1, ::-1]
    elif layout == "read-only":
        x.flags.writeable = False
    elif layout == "other byte order":
        x = x.astype(x.dtype.newbyteorder())
    elif layout.startswith("memmap"):
        np.save(tmp_path / "x.npy", np.asfortranarray(x) if layout.endswith("F") else x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    out = alk.greedy_coverage(x, 30, kernel="tophat", bandwidth=6, return_covered=True)
    for ours, theirs in zip(out, expected, strict=True):
        assert isinstance(ours, np.ndarray) and np.array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_memory_map_of_several_tiles(kernel, rng, tmp_path):
    x = integers(rng, 6000, 512, high=2)  # tiles of 4096 rows
    np.save(tmp_path / "x.npy", x.numpy())
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {"kernel": kernel, "candidates": range(0, 6000, 97), "return_covered": True, "labeled": x[1:3]}
    if kernel != "cosine":
        options["bandwidth"] = 44.0
    ours, theirs = alk.greedy_coverage(array, 12, **options), alk.greedy_coverage(x, 12, **options)
    assert np.array_equal(ours.indices, theirs.indices.numpy())
    np.testing.assert_allclose(ours.scores, theirs.scores.numpy(), rtol=1e-12)
    assert np.array_equal(ours.covered, theirs.covered.numpy())


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_for_any_number_of_threads(kernel, rng):
    x = torch.randn(5000, 16, generator=rng)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(alk.greedy_coverage(x, 10, kernel=kernel, candidates=range(0, 5000, 3), return_covered=True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing_and_one(rng):
    x = torch.randn(9, 3, generator=rng)
    out = alk.greedy_coverage(x, 0, return_covered=True)
    assert out.indices.shape == out.scores.shape == (0,) and out.indices.dtype == torch.int64
    assert out.covered.eq(0).all() and out.scores.dtype == torch.float64
    assert alk.greedy_coverage(x[:1], 1).scores.tolist() == [pytest.approx(1.0)]
    assert sorted(alk.greedy_coverage(x, 9).indices.tolist()) == list(range(9))


def test_gradients_are_not_asked_for(rng):
    x = torch.randn(30, 3, generator=rng, requires_grad=True)
    weights = torch.rand(30, generator=rng, requires_grad=True)
    out = alk.greedy_coverage(x, 5, weights=weights, labeled=x[:2], return_covered=True)
    assert not any(t.requires_grad for t in out)


def test_progress_bar(rng, capsys):
    alk.greedy_coverage(torch.randn(90, 3, generator=rng), 20, progress=True)
    assert "20/20" in capsys.readouterr().err
    alk.greedy_coverage(torch.randn(90, 3, generator=rng), 20)
    assert capsys.readouterr().err == ""


# ---- bad input ----


def bad(rng):
    x = torch.randn(20, 3, generator=rng)
    nan, one = torch.ones(20), torch.ones(20)
    nan[4] = torch.nan
    one[5] = -0.5
    return {
        "k above N": ((x, 21), {}, ValueError, "k must be between 0 and 20 .*got 21"),
        "k above candidates": (
            (x, 3),
            {"candidates": [1, 2]},
            ValueError,
            r"k must be between 0 and 2 \(candidates\), got 3",
        ),
        "no candidates": ((x, 1), {"candidates": []}, ValueError, r"k must be between 0 and 0 \(candidates\), got 1"),
        "k negative": ((x, -1), {}, ValueError, "k must be between 0 and 20 .*got -1"),
        "k not whole": ((x, 2.0), {}, TypeError, "k must be an integer, got float"),
        "kernel": (
            (x, 2),
            {"kernel": "linear"},
            ValueError,
            "kernel must be 'cosine', 'rbf' or 'tophat', got 'linear'",
        ),
        "kernel a number": ((x, 2), {"kernel": 1}, ValueError, "kernel must be 'cosine', 'rbf' or 'tophat', got 1"),
        "bandwidth 0": ((x, 2), {"kernel": "rbf", "bandwidth": 0}, ValueError, "bandwidth must be above 0.*got 0"),
        "bandwidth negative": (
            (x, 2),
            {"kernel": "tophat", "bandwidth": -1.0},
            ValueError,
            "bandwidth must be above 0.*got -1.0",
        ),
        "bandwidth nan": (
            (x, 2),
            {"kernel": "rbf", "bandwidth": float("nan")},
            ValueError,
            "bandwidth must be above 0.*got nan",
        ),
        "bandwidth infinite": (
            (x, 2),
            {"kernel": "rbf", "bandwidth": float("inf")},
            ValueError,
            "bandwidth must be .*got inf",
        ),
        "bandwidth text": (
            (x, 2),
            {"kernel": "rbf", "bandwidth": "wide"},
            TypeError,
            "bandwidth must be a number, got str 'wide'",
        ),
        "bandwidth numeral": (
            (x, 2),
            {"kernel": "rbf", "bandwidth": "1.0"},
            TypeError,
            "bandwidth must be a number, got str '1.0'",
        ),
        "bandwidth of cosine": (
            (x, 2),
            {"bandwidth": 1.0},
            ValueError,
            "bandwidth must not be given for kernel 'cosine', got 1.0",
        ),
        "weights negative": ((x, 2), {"weights": one}, ValueError, "weights must not be negative, got -0.5 in row 5"),
        "weights all zero": (
            (x, 2),
            {"weights": torch.zeros(20)},
            ValueError,
            "weights must have a sum above zero.*got 0",
        ),
        "weights NaN": ((x, 2), {"weights": nan}, ValueError, "weights must be finite, got nan in row 4"),
        "weights too few": (
            (x, 2),
            {"weights": [1.0] * 19},
            ValueError,
            r"weights must have one element a row of features.*got \(19,\)",
        ),
        "weights a matrix": ((x, 2), {"weights": x}, ValueError, r"weights must have one element a row.*got \(20, 3\)"),
        "weights a mask": (
            (x, 2),
            {"weights": one > 0},
            TypeError,
            "weights must hold real numbers, got dtype torch.bool",
        ),
        "weights complex": (
            (x, 2),
            {"weights": torch.complex(one, one)},
            TypeError,
            "weights must hold real numbers, got dtype torch.complex64",
        ),
        "weights text": ((x, 2), {"weights": "equal"}, TypeError, "weights must .*got"),
        "weights ragged": ((x, 2), {"weights": [[1.0], [1.0, 2.0]]}, (TypeError, ValueError), "weights must .*got"),
        "weights that overflow": (
            (x, 2),
            {"weights": torch.full((20,), 1e308, dtype=torch.float64)},
            ValueError,
            "weights must have a sum .*finite, got inf",
        ),
        "covered NaN": ((x, 2), {"covered": nan}, ValueError, "covered must be finite, got nan in row 4"),
        "covered too few": (
            (x, 2),
            {"covered": [0.0]},
            ValueError,
            r"covered must have one element a row of features.*got \(1,\)",
        ),
        "candidates above": (
            (x, 2),
            {"candidates": [1, 20]},
            ValueError,
            "candidates must be rows of features, between 0 and 19, got 20",
        ),
        "candidates negative": (
            (x, 2),
            {"candidates": [1, -1]},
            ValueError,
            "candidates must be rows of features, between 0 and 19, got -1",
        ),
        "candidates repeated": (
            (x, 2),
            {"candidates": [3, 1, 3]},
            ValueError,
            "candidates must name each row once, got row 3 more than once",
        ),
        "candidates not whole": (
            (x, 2),
            {"candidates": [0.0, 1.0]},
            TypeError,
            "candidates must be a mask or a vector of row numbers.*torch.float64",
        ),
        "candidates a matrix": (
            (x, 2),
            {"candidates": [[0, 1]]},
            TypeError,
            "candidates must be a mask or a vector of row numbers, got 2 dimensions",
        ),
        "candidates a short mask": (
            (x, 2),
            {"candidates": [True] * 19},
            ValueError,
            r"candidates must be a mask of shape \(20,\).*got a mask of shape \(19,\)",
        ),
        "candidates text": ((x, 2), {"candidates": "all"}, TypeError, "candidates must .*got"),
        "width of labeled": (
            (x, 2),
            {"labeled": x[:, :2]},
            ValueError,
            "labeled must be as wide as features, got width 2 and 3",
        ),
        "NaN in labeled": (
            (x, 2),
            {"labeled": torch.full((2, 3), torch.nan)},
            ValueError,
            "labeled must be finite, got nan in row 0",
        ),
        "pair": (((x, x), 2), {}, TypeError, "features must be one array, got a pair"),
        "pair of labeled": ((x, 2), {"labeled": (x, x)}, (TypeError, ValueError), "labeled must be"),
        "integers": ((x.int(), 2), {}, TypeError, "features must be of dtype .*got torch.int32"),
        "list": (
            ([[1.0], [2.0], [3.0]], 2),
            {},
            TypeError,
            "features must be a torch.Tensor or a numpy.ndarray.*got list",
        ),
        "one dimension": ((x[0], 2), {}, ValueError, r"features must be two-dimensional.*got shape \(3,\)"),
        "no rows": ((x[:0], 0), {}, ValueError, r"features must have at least one row, got shape \(0, 3\)"),
        "no columns": ((x[:, :0], 2), {}, ValueError, "features must have at least one column"),
        "sparse": ((x.to_sparse(), 2), {}, TypeError, "features must be a dense tensor"),
        "meta": ((x.to("meta"), 2), {}, ValueError, "features is on meta"),
    }


@pytest.mark.parametrize("case", list(bad(torch.Generator())))
def test_bad_input(case, rng):
    args, options, error, message = bad(rng)[case]
    with pytest.raises(error, match=message):
        alk.greedy_coverage(*args, **options)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_non_finite(kernel, dtype, value, rng):
    x = torch.randn(50, 3, generator=rng).to(dtype)
    x[7, 2] = value
    for k in (0, 5):
        with pytest.raises(ValueError, match=r"features must be finite, got -?(nan|inf) in row 7, column 2"):
            alk.greedy_coverage(x, k, kernel=kernel)


# ---- memory ----


@pytest.mark.parametrize(
    ("n", "d", "k", "kernel", "option"),
    [
        (20_000, 64, 20, "tophat", "bandwidth=9.0"),
        pytest.param(20_000, 64, 20, "cosine", "", marks=pytest.mark.slow),
        pytest.param(20_000, 64, 20, "rbf", "bandwidth=9.0", marks=pytest.mark.slow),
    ],
)
def test_memory_beyond_the_pool(n, d, k, kernel, option):
    """At most 64 MB + 64 bytes a row, as measured on the process."""
    out = run_python(
        MEASURE
        + "alk.greedy_coverage(torch.randn(500, 4), 20)\n"
        + f"x = torch.randn({n}, {d})\n"
        + f"print(extra(lambda: alk.greedy_coverage(x, {k}, kernel={kernel!r}, return_covered=True, {option})))"
    )
    assert int(out) <= 64e6 + 64 * n


@pytest.mark.parametrize(("n", "d", "few"), [(1_000_000, 2, 9), (4000, 4096, 100)])
def test_memory_of_few_candidates(n, d, few):
    """Many rows, and wide ones: the state a row, and the packed tiles."""
    out = run_python(
        MEASURE
        + "alk.greedy_coverage(torch.randn(500, 4), 20)\n"
        + f"x = torch.randn({n}, {d})\n"
        + f"print(extra(lambda: alk.greedy_coverage(x, 4, candidates=range({few}), kernel='rbf', bandwidth=9.0)))"
    )
    assert int(out) <= 64e6 + 64 * n
