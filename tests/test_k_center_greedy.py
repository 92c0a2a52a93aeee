import numpy as np
import pytest
import torch
from conftest import as_double, assert_farthest_first, row, true_squared
from hypothesis import given, settings
from hypothesis import strategies as st

import alkernels as alk

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def integers(rng, *shape, high=8):
    return torch.randint(-high, high + 1, shape, generator=rng).float()


SHAPES = [
    (1, 1, 1),
    (2, 1, 2),
    (5, 2, 5),
    (31, 17, 31),
    (129, 7, 129),
    (700, 3, 500),
    (3000, 5, 800),
    (5000, 33, 600),
    (400, 300, 100),
]


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_equals_sequential_rule_on_integers(n, d, k, rng, device):
    x = integers(rng, n, d)
    ours = alk.k_center_greedy(x.to(device), k, start=n // 2)
    plain = alk.reference.k_center_greedy(x.double(), k, start=n // 2)
    assert torch.equal(ours.indices.cpu(), plain.indices)
    assert torch.equal(ours.scores.cpu(), plain.scores)


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("labels", [1, 7, 90])
def test_equals_sequential_rule_with_labeled_rows(n, d, k, labels, rng, device):
    x, known = integers(rng, n, d), integers(rng, labels, d)
    ours = alk.k_center_greedy(x.to(device), k, labeled=known.to(device))
    plain = alk.reference.k_center_greedy(x.double(), k, labeled=known.double())
    assert torch.equal(ours.indices.cpu(), plain.indices)


@pytest.mark.parametrize(("n", "c", "d", "k"), [(1, 1, 1, 1), (60, 3, 5, 60), (900, 4, 9, 300), (2000, 20, 40, 200)])
def test_equals_sequential_rule_for_outer_products(n, c, d, k, rng, device):
    pair = (integers(rng, n, c, high=3), integers(rng, n, d, high=3))
    known = (integers(rng, 5, c, high=3), integers(rng, 5, d, high=3))
    ours = alk.k_center_greedy(tuple(f.to(device) for f in pair), k, labeled=tuple(f.to(device) for f in known))
    explicit = torch.einsum("nc,nd->ncd", *as_double(pair)).flatten(1)
    explicit_known = torch.einsum("nc,nd->ncd", *as_double(known)).flatten(1)
    plain = alk.reference.k_center_greedy(explicit, k, labeled=explicit_known)
    assert torch.equal(ours.indices.cpu(), plain.indices)
    factored = alk.reference.k_center_greedy(as_double(pair), k, labeled=as_double(known))
    assert torch.equal(factored.indices, plain.indices)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_agree_on_integers(dtype, rng, device):
    x = integers(rng, 900, 11)
    ours = alk.k_center_greedy(x.to(device, dtype), 300, start=0)
    assert torch.equal(ours.indices.cpu(), alk.reference.k_center_greedy(x.double(), 300, start=0).indices)
    assert ours.scores.dtype == torch.float64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", ["transposed", "every third column", "every other row", "reversed by flip", "expanded"]
)
def test_layouts_agree(dtype, layout, rng, device):
    x = integers(rng, 300, 19).to(device, dtype)
    if layout == "transposed":
        x = x.t().contiguous().t()
    elif layout == "every third column":
        x = x.repeat_interleave(3, dim=1)[:, 1::3]
    elif layout == "every other row":
        x = x.repeat_interleave(2, dim=0)[::2]
    elif layout == "expanded":
        x = x[:, :1].expand(300, 19)
    else:
        x = x.flip(0)
    expected = alk.k_center_greedy(x.contiguous(), 120, start=3)
    assert torch.equal(alk.k_center_greedy(x, 120, start=3).indices, expected.indices)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_values(metric, dtype, rng, device):
    x = torch.randn(2000, 40, generator=rng).to(device, dtype)
    ours = alk.k_center_greedy(x, 400, start=5, metric=metric)
    assert_farthest_first(x, ours, start=5, metric=metric)


def test_real_values_of_outer_products(rng, device):
    pair = (torch.randn(1500, 10, generator=rng).to(device), torch.randn(1500, 70, generator=rng).to(device))
    assert_farthest_first(pair, alk.k_center_greedy(pair, 300, start=5), start=5)


def clusters(rng, n=1500, d=12, spread=1e-3, far=1e3):
    return far * torch.randn(20, d, generator=rng)[torch.randint(20, (n,), generator=rng)] + spread * torch.randn(
        n, d, generator=rng
    )


HARD = {
    "far from the origin": lambda g: torch.randn(2000, 30, generator=g) + 30,
    "very far from the origin": lambda g: torch.randn(2000, 30, generator=g) + 3e4,
    "tight clusters far apart": clusters,
    "uniform square, many picks": lambda g: torch.rand(6000, 2, generator=g),
    "a line": lambda g: torch.randn(3000, 1, generator=g) * torch.ones(1, 200),
    "one huge row": lambda g: torch.cat([torch.randn(999, 8, generator=g), torch.full((1, 8), 1e9)]),
    "one huge row in front": lambda g: torch.cat([torch.full((1, 8), 1e18), torch.randn(999, 8, generator=g)]),
    "squares overflow float32": lambda g: 1e25 * torch.randn(500, 8, generator=g),
    "norms near the end of float32": lambda g: 1.1e19 * torch.randn(500, 2, generator=g),
    "norms just inside float32": lambda g: 1.2e19 * torch.nn.functional.normalize(torch.randn(400, 2, generator=g)),
    "squares underflow float32": lambda g: 1e-25 * torch.randn(500, 8, generator=g),
    "subnormal": lambda g: 1e-40 * torch.randn(500, 8, generator=g),
    "constant columns": lambda g: torch.cat([torch.randn(800, 3, generator=g), torch.full((800, 50), 7.7)], 1),
    "random walk": lambda g: torch.randn(2000, 20, generator=g).cumsum(0),
    "heavy tails": lambda g: torch.randn(2000, 20, generator=g) * torch.randn(2000, 1, generator=g).exp() ** 2,
    "wide": lambda g: torch.randn(300, 5000, generator=g),
}


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("name", HARD)
def test_hard_data(name, metric, rng, device):
    x = HARD[name](rng)
    k = min(len(x), 2000 if x.shape[1] == 2 else 300)
    for labeled, start in ((None, 0), (x[::97].clone(), None)):
        known = None if labeled is None else labeled.to(device)
        ours = alk.k_center_greedy(x.to(device), k, start=start, labeled=known, metric=metric)
        if metric == "cosine" and name == "a line":
            # one direction and its opposite: after both are there, what is left is rounding around zero
            decided = 2 if start is not None else 0
            assert (ours.scores[decided:] < 1e-12).all()
            ours = alk.Selection(ours.indices[:decided], ours.scores[:decided])
        assert_farthest_first(x, ours, labeled=labeled, start=start, metric=metric)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "outer"])
def test_distances_and_nearest(metric, rng, device):
    x = torch.randn(800, 6, generator=rng) + 3
    known = torch.randn(9, 6, generator=rng)
    if metric == "outer":
        x, known = (x, torch.randn(800, 4, generator=rng)), (known, torch.randn(9, 4, generator=rng))
    move = (lambda t: tuple(f.to(device) for f in t)) if metric == "outer" else (lambda t: t.to(device))
    option = {} if metric == "outer" else {"metric": metric}
    out = alk.k_center_greedy(move(x), 70, labeled=move(known), return_distances=True, **option)
    x, known = as_double(x), as_double(known)
    all_d2 = torch.stack(
        [true_squared(x, row(known, j), metric) for j in range(9)]
        + [true_squared(x, row(x, i), metric) for i in out.indices.tolist()]
    )
    all_d = all_d2 / 2 if metric == "cosine" else all_d2.sqrt()
    radius = all_d.min(0).values.max()
    torch.testing.assert_close(out.distances.cpu().double(), all_d.min(0).values, rtol=1e-5, atol=1e-6 * float(radius))
    assert (out.distances[out.indices] == 0).all()
    assert torch.equal(out.nearest[out.indices].cpu(), 9 + torch.arange(70))
    of_nearest = all_d.gather(0, out.nearest.cpu()[None])[0]
    torch.testing.assert_close(of_nearest, all_d.min(0).values, rtol=1e-5, atol=1e-6 * float(radius))
    plain = alk.k_center_greedy(move(x), 70, labeled=move(known), **option)
    assert isinstance(plain, alk.Selection) and len(plain) == 2


@pytest.mark.parametrize("k", [0, 1, 20])
def test_distances_after_a_fall(k, rng):
    """Labelled rows in each of some far clusters: the distances left are 1e-12 of what the norms are."""
    x = clusters(rng)
    x, known = x[300:], x[:300]
    out = alk.k_center_greedy(x, k, labeled=known, return_distances=True)
    d2 = assert_farthest_first(x, out, labeled=known)
    torch.testing.assert_close(out.distances, d2.sqrt(), rtol=1e-5, atol=1e-5 * float(d2.max().sqrt()))
    centers = torch.cat([known, x[out.indices]]).double()
    of_nearest = (x.double() - centers[out.nearest]).norm(dim=1)
    torch.testing.assert_close(of_nearest, out.distances, rtol=1e-9, atol=0)


def test_near_ties_of_labeled_rows_in_two_blocks(rng):
    """A row whose nearest labelled row is nearly tied with one of a later block, and then decides."""
    known = torch.randn(1025, 64, generator=rng)
    known[-1] = known[0] * (1 + 2.0**-20)
    near = known[0] + 1e-3 * torch.randn(2000, 64, generator=rng)
    x = torch.cat([near, 30 * torch.randn(3, 64, generator=rng)])
    for order in (torch.arange(1025), torch.arange(1024, -1, -1)):
        out = alk.k_center_greedy(x, 40, labeled=known[order])
        assert_farthest_first(x, out, labeled=known[order])


@pytest.mark.parametrize("pool", [torch.float16, torch.float32])
@pytest.mark.parametrize("labels", [torch.float32, torch.float64])
def test_labeled_rows_keep_their_precision(pool, labels, rng):
    x = (torch.randn(400, 6, generator=rng) + 30).to(pool)
    known = torch.cat([torch.randn(40, 6, generator=rng).to(labels) + 30, torch.full((1, 6), 1e5, dtype=labels)])
    out = alk.k_center_greedy(x, 30, labeled=known, return_distances=True)
    d2 = assert_farthest_first(x, out, labeled=known)
    torch.testing.assert_close(out.distances, d2.sqrt(), rtol=1e-5, atol=1e-6)


def test_factors_whose_norms_under_and_overflow_together(rng):
    for small, large in ((1e-20, 1e19), (1e-22, 1e15)):
        pair = (small * torch.randn(300, 4, generator=rng), large * torch.randn(300, 3, generator=rng))
        assert_farthest_first(pair, alk.k_center_greedy(pair, 40, start=0), start=0)
    zero = (torch.zeros(300, 4), torch.randn(300, 3, generator=rng))
    assert alk.k_center_greedy(zero, 3, start=1).indices.tolist() == [1, 0, 2]


def test_close_outer_products_in_float64(rng):
    pair = tuple(
        torch.randn(1, w, generator=rng).double() + 1e-7 * torch.randn(300, w, generator=rng).double() for w in (5, 9)
    )
    assert_farthest_first(pair, alk.k_center_greedy(pair, 60, start=0), start=0)


def test_ties_nearest_is_the_first_centre():
    x = torch.tensor([[0.0], [2.0], [4.0], [2.0]])
    out = alk.k_center_greedy(x, 2, start=0, return_distances=True)
    assert out.indices.tolist() == [0, 2] and out.nearest.tolist() == [0, 0, 1, 0]
    assert out.distances.tolist() == [0, 2, 0, 2]


def test_labeled_rows_only(rng):
    x, known = torch.randn(50, 4, generator=rng), torch.randn(6, 4, generator=rng)
    out = alk.k_center_greedy(x, 0, labeled=known, return_distances=True)
    assert out.indices.shape == (0,) and out.indices.dtype == torch.int64
    torch.testing.assert_close(out.distances, torch.cdist(x.double(), known.double()).min(1).values, rtol=1e-6, atol=0)
    assert torch.equal(out.nearest, torch.cdist(x, known).argmin(1))


def test_duplicates_fill_up_in_index_order():
    x = torch.tensor([[1.0, 2.0]]).repeat(9, 1)
    assert alk.k_center_greedy(x, 9, start=4).indices.tolist() == [4, 0, 1, 2, 3, 5, 6, 7, 8]
    assert alk.k_center_greedy(x, 3, labeled=x[:1]).indices.tolist() == [0, 1, 2]
    many = torch.zeros(5000, 3)
    assert torch.equal(alk.k_center_greedy(many, 5000, start=0).indices, torch.arange(5000))


def test_zero_rows_under_cosine():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    out = alk.k_center_greedy(x, 4, start=0, metric="cosine")
    assert out.indices.tolist() == [0, 3, 1, 2]
    assert out.scores.tolist() == [float("inf"), 2.0, 1.0, 0.0]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    n = data.draw(st.integers(1, 80), "n")
    d = data.draw(st.integers(1, 40), "d")
    k = data.draw(st.integers(0, n), "k")
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    kind = data.draw(st.sampled_from(["integers", "duplicates", "constant", "huge row", "subnormal", "normal"]), "kind")
    x = torch.randn(n, d, generator=rng)
    if kind == "integers":
        x = integers(rng, n, d, high=3)
    elif kind == "duplicates":
        x = x[torch.randint(max(1, n // 5), (n,), generator=rng)]
    elif kind == "constant":
        x[:, :: data.draw(st.integers(1, 3))] = 5.3
    elif kind == "huge row":
        x[data.draw(st.integers(0, n - 1))] *= 1e12
    elif kind == "subnormal":
        x *= 1e-41
    labeled = x[torch.randint(n, (data.draw(st.integers(0, 5)),), generator=rng)] if data.draw(st.booleans()) else None
    labeled = None if labeled is None or len(labeled) == 0 else labeled
    start = data.draw(st.one_of(st.none(), st.integers(0, n - 1)), "start")
    before = x.clone()
    out = alk.k_center_greedy(x, k, labeled=labeled, start=start, generator=1)
    assert torch.equal(x, before) and out.indices.shape == (k,)
    if start is None and labeled is None and k:
        start = int(out.indices[0])
    if kind == "integers":
        plain = alk.reference.k_center_greedy(
            x.double(), k, labeled=None if labeled is None else labeled.double(), start=start
        )
        assert torch.equal(out.indices, plain.indices)
    assert_farthest_first(x, out, labeled=labeled, start=start)


@pytest.mark.parametrize("pool", ["normal", "clusters"])
def test_the_same_for_any_number_of_threads(pool, rng):
    x = torch.randn(20000, 24, generator=rng) if pool == "normal" else clusters(rng, n=20000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = alk.k_center_greedy(x, 300, start=0, return_distances=True)
        torch.set_num_threads(2)
        two = alk.k_center_greedy(x, 300, start=0, return_distances=True)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_first_pick_comes_from_the_generator(rng):
    x = torch.randn(1000, 3, generator=rng)
    picks = {int(alk.k_center_greedy(x, 1, generator=seed).indices) for seed in range(40)}
    assert len(picks) > 30
    assert torch.equal(alk.k_center_greedy(x, 5, generator=7).indices, alk.k_center_greedy(x, 5, generator=7).indices)
    a = alk.k_center_greedy(x, 5, generator=torch.Generator().manual_seed(3))
    b = alk.k_center_greedy(x, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(a.indices, b.indices)
    torch.manual_seed(11)
    c = alk.k_center_greedy(x, 5)
    torch.manual_seed(11)
    assert torch.equal(c.indices, alk.k_center_greedy(x, 5).indices)
    state = torch.get_rng_state()
    alk.k_center_greedy(x, 5, start=0)  # nothing to draw
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_are_not_asked_for(rng):
    x = torch.randn(30, 3, generator=rng, requires_grad=True)
    out = alk.k_center_greedy(x, 5, start=0, return_distances=True)
    assert not out.scores.requires_grad and not out.distances.requires_grad


def test_progress_bar(rng, capsys):
    alk.k_center_greedy(torch.randn(300, 3, generator=rng), 50, start=0, progress=True)
    assert "50/50" in capsys.readouterr().err


# ---- symmetric KL ----


def dyadic(rng, n, c, parts=64):
    """Multiples of 1 / parts that sum to exactly 1, zeros among them."""
    draws = torch.randint(c, (n, parts), generator=rng)
    return torch.zeros(n, c).scatter_add_(1, draws, torch.ones(n, parts)) / parts


def positive(rng, n, c, parts=128):
    """Multiples of 1 / parts without zeros: bfloat16 holds them exactly."""
    return (dyadic(rng, n, c, parts - c) * (parts - c) + 1) / parts


def softmax(rng, n, c, scale):
    return (scale * torch.randn(n, c, generator=rng, dtype=torch.float64)).softmax(1)


def few_supports(rng, n, c):
    """Some classes ruled out, by one of a few patterns: finite distances inside each, infinite ones between."""
    mask = (torch.rand(4, c, generator=rng) < 0.6)[torch.randint(4, (n,), generator=rng)]
    mask[:, 0] |= ~mask.any(1)
    x = softmax(rng, n, c, 2.0) * mask
    return x / x.sum(1, keepdim=True)


DISTRIBUTIONS = {
    "real": lambda g, n: softmax(g, n, 10, 1.0),
    "peaked": lambda g, n: softmax(g, n, 10, 12.0),
    "very peaked": lambda g, n: softmax(g, n, 10, 60.0),
    "flat": lambda g, n: softmax(g, n, 10, 1e-3),
    "nearly equal": lambda g, n: softmax(g, n, 10, 1e-6),
    "many classes": lambda g, n: softmax(g, n, 200, 2.0),
    "two classes": lambda g, n: softmax(g, n, 2, 3.0),
    "few supports": lambda g, n: few_supports(g, n, 6),
    "supports of 70 classes": lambda g, n: few_supports(g, n, 70),
    "dyadic": lambda g, n: dyadic(g, n, 4).double(),
    "positive": lambda g, n: positive(g, n, 7).double(),
    "subnormal in float32": lambda g, n: torch.cat(
        [10.0 ** -torch.randint(20, 44, (n, 2), generator=g).double(), positive(g, n, 3).double()], 1
    ),
    "duplicates": lambda g, n: softmax(g, 30, 5, 1.0)[torch.randint(30, (n,), generator=g)],
}


def sequential(x, k, labeled=None, start=None):
    """The rule, one pick a pass, from explicit float64 terms."""
    x = as_double(x)
    d = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for known in () if labeled is None else as_double(labeled):
        d = torch.minimum(d, true_squared(x, known, "symmetric_kl"))
    picks, scores = [], []
    for _ in range(k):
        picks.append(start if not picks and start is not None else int(d.argmax()))
        scores.append(float(d[picks[-1]]))
        d = torch.minimum(d, true_squared(x, x[picks[-1]], "symmetric_kl"))
        d[picks] = -1
    return picks, torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["start", "labeled", "both"])
def test_symmetric_kl(name, dtype, way, rng, device):
    x = DISTRIBUTIONS[name](rng, 700).to(dtype)
    known = DISTRIBUTIONS[name](rng, 9).to(dtype) if way != "start" else None
    start = None if way == "labeled" else 5
    moved = None if known is None else known.to(device)
    ours = alk.k_center_greedy(
        x.to(device), 300, labeled=moved, start=start, metric="symmetric_kl", return_distances=True
    )
    assert ours.scores.dtype == torch.float64
    left = assert_farthest_first(x, ours, labeled=known, start=start, metric="symmetric_kl")
    radius = float(left[torch.isfinite(left)].max())
    torch.testing.assert_close(ours.distances.cpu(), left, rtol=2e-5, atol=2e-5 * radius)
    centers = as_double(torch.cat([*(() if known is None else (known,)), x[ours.indices.cpu()]]))
    nearest = ours.nearest.cpu()
    assert torch.equal(nearest < 0, torch.isinf(left))
    for i in range(0, 700, 13):
        if nearest[i] >= 0:
            true = true_squared(as_double(x[i : i + 1]), centers[nearest[i]], "symmetric_kl")
            assert float(true) == pytest.approx(float(left[i]), rel=2e-5, abs=2e-5 * radius)


@pytest.mark.parametrize("name", ["real", "peaked", "many classes", "two classes", "few supports"])
@pytest.mark.parametrize("labels", [0, 1, 40])
def test_symmetric_kl_equals_the_sequential_rule(name, labels, rng, device):
    x, known = DISTRIBUTIONS[name](rng, 500), DISTRIBUTIONS[name](rng, labels) if labels else None
    start = None if labels else 250
    moved = None if known is None else known.to(device)
    ours = alk.k_center_greedy(x.to(device), 500, labeled=moved, start=start, metric="symmetric_kl")
    picks, scores = sequential(x, 500, known, start)
    assert ours.indices.tolist() == picks
    torch.testing.assert_close(ours.scores.cpu(), scores, rtol=1e-5, atol=0)
    plain = alk.reference.k_center_greedy(x, 60, labeled=known, start=start, metric="symmetric_kl")
    assert torch.equal(plain.indices, ours.indices[:60].cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_symmetric_kl_in_each_dtype(dtype, rng, device):
    x, known = positive(rng, 400, 6), positive(rng, 5, 6)
    ours = alk.k_center_greedy(x.to(device, dtype), 100, labeled=known.to(device, dtype), metric="symmetric_kl")
    wide = alk.k_center_greedy(x.double(), 100, labeled=known.double(), metric="symmetric_kl")
    assert torch.equal(ours.indices.cpu(), wide.indices) and torch.equal(ours.scores.cpu(), wide.scores)
    assert_farthest_first(x, ours, labeled=known, metric="symmetric_kl")


def test_symmetric_kl_by_hand():
    x = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0], [0.75, 0.25, 0.0], [0.5, 0.5, 0.0]])
    out = alk.k_center_greedy(x, 5, start=0, metric="symmetric_kl", return_distances=True)
    half = 0.25 * np.log(3) / 2  # (1/4 log 2 + 1/4 log 3/2) / 2
    assert out.indices.tolist()[:2] == [0, 2] and out.indices.tolist()[4] == 4
    torch.testing.assert_close(
        out.scores, torch.tensor([torch.inf, torch.inf, half, half, 0.0]).double(), rtol=1e-7, atol=0
    )
    one = alk.k_center_greedy(x, 1, start=0, metric="symmetric_kl", return_distances=True)
    assert one.nearest.tolist() == [0, 0, -1, 0, 0]
    assert one.distances[2] == torch.inf and one.distances[0] == one.distances[4] == 0


def test_infinitely_far_rows_are_picked_in_index_order():
    """One-hot rows: all distances are infinite or 0."""
    x = torch.eye(40)[torch.arange(400) * 7 % 40]
    out = alk.k_center_greedy(x, 400, start=11, metric="symmetric_kl", return_distances=True)
    distinct = [11, *(i for i in range(40) if i != 11)]
    assert out.indices.tolist() == distinct + list(range(40, 400))
    assert torch.isinf(out.scores[:40]).all() and (out.scores[40:] == 0).all()
    few = alk.k_center_greedy(x, 3, labeled=x[:2], metric="symmetric_kl", return_distances=True)
    assert few.indices.tolist() == [2, 3, 4]
    kinds = torch.arange(400) * 7 % 40
    of_centers = [int(kinds[j]) for j in (0, 1, 2, 3, 4)]
    expected = torch.tensor([of_centers.index(int(kind)) if kind in of_centers else -1 for kind in kinds])
    expected[few.indices] = torch.arange(2, 5)
    assert torch.equal(few.nearest, expected)
    assert torch.equal(torch.isinf(few.distances), expected < 0)
    nothing = alk.k_center_greedy(x, 0, metric="symmetric_kl", return_distances=True)
    assert torch.isinf(nothing.distances).all() and (nothing.nearest == -1).all()


@pytest.mark.parametrize("tiny", [1e-10, 1e-30, 1e-45, 1e-290, 1e-300, 5e-324])
def test_a_class_allowed_ever_so_little_is_not_ruled_out(tiny):
    x = torch.tensor([[1.0, 0.0], [1.0, tiny], [0.5, 0.5]], dtype=torch.float64)
    for start in range(3):
        out = alk.k_center_greedy(x, 3, start=start, metric="symmetric_kl", return_distances=True)
        picks, scores = sequential(x, 3, start=start)
        assert out.indices.tolist() == picks
        torch.testing.assert_close(out.scores, scores, rtol=1e-9, atol=0)


def test_one_class_leaves_nothing_to_choose():
    out = alk.k_center_greedy(torch.ones(50, 1), 50, start=7, metric="symmetric_kl")
    assert out.indices.tolist() == [7, *(i for i in range(50) if i != 7)] and (out.scores[1:] == 0).all()


def test_symmetric_kl_of_numpy_and_memmap(rng, tmp_path):
    x = few_supports(rng, 900, 6).float()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = alk.k_center_greedy(x[100:], 80, labeled=x[:100], metric="symmetric_kl", return_distances=True)
    for array in (x.numpy(), mapped, np.asfortranarray(x.numpy())):
        out = alk.k_center_greedy(array[100:], 80, labeled=array[:100], metric="symmetric_kl", return_distances=True)
        for a, b in zip(out, expected, strict=True):
            assert isinstance(a, np.ndarray) and np.array_equal(a, b.numpy())


def test_first_pick_under_symmetric_kl_comes_from_the_generator(rng):
    x = softmax(rng, 500, 4, 1.0)
    picks = {int(alk.k_center_greedy(x, 1, generator=seed, metric="symmetric_kl").indices) for seed in range(30)}
    assert len(picks) > 20
    one, two = (alk.k_center_greedy(x, 9, generator=3, metric="symmetric_kl") for _ in range(2))
    assert torch.equal(one.indices, two.indices)


@pytest.mark.parametrize("name", ["real", "few supports", "flat"])
def test_symmetric_kl_is_the_same_for_any_number_of_threads(name, rng):
    x = DISTRIBUTIONS[name](rng, 6000)
    known = DISTRIBUTIONS[name](rng, 300)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3, 2, 3):
            torch.set_num_threads(count)
            results.append(alk.k_center_greedy(x, 150, labeled=known, metric="symmetric_kl", return_distances=True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_compile_of_symmetric_kl(rng):
    x = few_supports(rng, 200, 5)
    function = lambda x: alk.k_center_greedy(x, 20, start=2, metric="symmetric_kl", return_distances=True)  # noqa: E731
    torch._dynamo.reset()
    for ours, eager in zip(torch.compile(function, fullgraph=True)(x), function(x), strict=True):
        assert torch.equal(ours, eager)


def no_distributions():
    x = torch.full((9, 2), 0.5)
    wrong, negative, nan = x.clone(), x.clone(), x.clone()
    wrong[4, 0], nan[6, 1] = 0.7, torch.nan
    negative[3] = torch.tensor([1.5, -0.5])
    return {
        "sum": ((wrong,), {}, "features must hold probabilities that sum to 1 within 0.001, got 1.2 in row 4"),
        "negative": ((negative,), {}, "features must hold probabilities, got -0.5 in row 3"),
        "NaN": ((nan,), {}, "features must hold probabilities, got nan in row 6"),
        "logarithms": ((x.log(),), {}, "features must hold probabilities, got -0.693147 in row 0"),
        "labeled sum": ((x,), {"labeled": wrong}, "labeled must hold probabilities that sum to 1 .*got 1.2 in row 4"),
        "labeled negative": ((x,), {"labeled": negative}, "labeled must hold probabilities, got -0.5 in row 3"),
        "labeled NaN": ((x,), {"labeled": nan}, "labeled must be finite, got nan in row 6, column 1"),
        "width": ((x,), {"labeled": torch.ones(2, 1)}, "labeled must be as wide as features, got width 1 and 2"),
        "pair": (((x, x),), {}, "metric must be 'euclidean' for a pair of factors, got 'symmetric_kl'"),
    }


@pytest.mark.parametrize("case", no_distributions())
@pytest.mark.parametrize("k", [0, 3])
def test_rows_that_are_no_distributions(case, k):
    args, options, message = no_distributions()[case]
    with pytest.raises(ValueError, match=message):
        alk.k_center_greedy(*args, k, metric="symmetric_kl", generator=0, **options)


def test_kmeans_plusplus_has_no_symmetric_kl():
    with pytest.raises(TypeError):
        alk.kmeans_plusplus(torch.ones(5, 1), 2, metric="symmetric_kl")


# ---- arrays of NumPy ----


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "layout", ["C", "F", "reversed rows", "reversed columns", "read-only", "other byte order", "unaligned"]
)
def test_numpy(dtype, layout, rng):
    x = integers(rng, 200, 7).numpy().astype(dtype)
    expected = alk.k_center_greedy(torch.from_numpy(x), 60, start=0).indices.numpy()
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "reversed rows":
        x = x[::-1].copy()[::-1]
    elif layout == "reversed columns":
        x = x[:, ::-1].copy()[:, ::-1]
    elif layout == "read-only":
        x.flags.writeable = False
    elif layout == "other byte order":
        x = x.astype(x.dtype.newbyteorder())
    elif layout == "unaligned":
        record = np.zeros(200, dtype=[("pad", "u1"), ("x", dtype, 7)])
        record["x"] = x
        x = record["x"]
    out = alk.k_center_greedy(x, 60, start=0, return_distances=True)
    assert all(isinstance(o, np.ndarray) for o in out)
    assert out.indices.dtype == np.int64 and np.array_equal(out.indices, expected)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memmap(mode, order, rng, tmp_path):
    x = integers(rng, 3000, 40)
    np.save(tmp_path / "x.npy", np.array(x.numpy(), order=order))
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode == "c":
        mapped[5] = x[5] = 9.0  # a private change must survive
    out = alk.k_center_greedy(mapped, 200, start=0)
    assert np.array_equal(out.indices, alk.k_center_greedy(x, 200, start=0).indices.numpy())
    part = alk.k_center_greedy(mapped[100:2100], 50, start=0)
    assert np.array_equal(part.indices, alk.k_center_greedy(x[100:2100], 50, start=0).indices.numpy())
    assert np.array_equal(np.asarray(mapped), x.numpy())


# ---- bad input ----


def bad(rng):
    x = torch.randn(20, 3, generator=rng)
    return {
        "k above N": ((x, 21), {}, ValueError, "k must be between 0 and 20 .*got 21"),
        "k negative": ((x, -1), {}, ValueError, "k must be between 0 and 20 .*got -1"),
        "k not whole": ((x, 2.0), {}, TypeError, "k must be an integer, got float"),
        "k a bool": ((x, True), {}, TypeError, "k must be an integer"),
        "start outside": ((x, 2), {"start": 20}, ValueError, "start must be a row of features.*got 20"),
        "start negative": ((x, 2), {"start": -1}, ValueError, "start must be a row of features.*got -1"),
        "start text": ((x, 2), {"start": "random"}, TypeError, "start must be an integer"),
        "metric": (
            (x, 2),
            {"metric": "manhattan"},
            ValueError,
            "metric must be 'euclidean', 'cosine' or 'symmetric_kl', got 'manhattan'",
        ),
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
        "integers": (
            (x.int(), 2),
            {},
            TypeError,
            "features must be of dtype float16, bfloat16, float32 or float64, got torch.int32",
        ),
        "booleans": ((x > 0, 2), {}, TypeError, "got torch.bool"),
        "complex": ((torch.complex(x, x), 2), {}, TypeError, "got torch.complex64"),
        "numpy integers": ((x.int().numpy(), 2), {}, TypeError, "features must be of dtype .*got int32"),
        "list": (
            ([[1.0], [2.0], [3.0]], 2),
            {},
            TypeError,
            "features must be a torch.Tensor or a numpy.ndarray.*got list",
        ),
        "one dimension": ((x[0], 2), {}, ValueError, r"features must be two-dimensional.*got shape \(3,\)"),
        "three dimensions": ((x[None], 2), {}, ValueError, r"features must be two-dimensional.*got shape \(1, 20, 3\)"),
        "no rows": ((x[:0], 0), {}, ValueError, r"features must have at least one row, got shape \(0, 3\)"),
        "no columns": ((x[:, :0], 2), {}, ValueError, "features must have at least one column"),
        "sparse": ((x.to_sparse(), 2), {}, TypeError, "features must be a dense tensor"),
        "pair of unequal lengths": (
            ((x, x[:5]), 2),
            {},
            ValueError,
            "two factors of features must have as many rows, got 20 and 5",
        ),
        "pair under cosine": (((x, x), 2), {"metric": "cosine"}, ValueError, "metric must be 'euclidean' for a pair"),
        "pair and single": (
            ((x, x), 2),
            {"labeled": x},
            ValueError,
            "labeled must be as wide as features, got width 3 and 3 and 3",
        ),
        "generator": (
            (x, 2),
            {"generator": "seed"},
            TypeError,
            "generator must be a torch.Generator, an integer seed or None, got str",
        ),
        "device": ((x.to("meta"), 2), {}, ValueError, "features is on meta"),
    }


@pytest.mark.parametrize("case", list(bad(torch.Generator())))
def test_bad_input(case, rng):
    args, options, error, message = bad(rng)[case]
    with pytest.raises(error, match=message):
        alk.k_center_greedy(*args, **options)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 7, 49])
@pytest.mark.parametrize("k", [0, 1, 10])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_non_finite(value, dtype, place, k, metric, rng):
    x = torch.randn(50, 3, generator=rng).to(dtype)
    x[place, 2] = value
    with pytest.raises(ValueError, match=f"features must be finite, got -?(nan|inf) in row {place}, column 2"):
        alk.k_center_greedy(x, k, start=0, metric=metric)
    with pytest.raises(ValueError, match=f"features.1. must be finite, got -?(nan|inf) in row {place}, column 2"):
        alk.k_center_greedy((torch.ones(50, 2), x), k, start=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("column", [0, 31, 70, 99])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "outer"])
def test_non_finite_in_wide_rows(value, dtype, column, metric, rng):
    """Wherever it stands: a warp of a GPU shares out a row's columns, and must agree on what it found."""
    x = torch.randn(50, 100, generator=rng, dtype=dtype)
    x[7, column] = value
    with pytest.raises(ValueError, match=f"must be finite, got (nan|inf) in row 7, column {column}"):
        if metric == "outer":
            alk.k_center_greedy((torch.ones(50, 2, dtype=dtype), x), 10, start=0)
        else:
            alk.k_center_greedy(x, 10, start=0, metric=metric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "outer"])
def test_rows_of_zeros(dtype, metric, rng):
    x = torch.randn(300, 80, generator=rng, dtype=dtype)
    x[::3] = 0
    rows = (x, torch.randn(300, 5, generator=rng, dtype=dtype)) if metric == "outer" else x
    ours = alk.k_center_greedy(rows, 250, start=1, metric="euclidean" if metric == "outer" else metric)
    assert_farthest_first(rows, ours, start=1, metric=metric)


def test_squares_that_overflow_float64():
    x = torch.tensor([[0.0], [1e200], [1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="squared distances that float64 can hold, got an overflow in row 1"):
        alk.k_center_greedy(x, 2, start=0)
