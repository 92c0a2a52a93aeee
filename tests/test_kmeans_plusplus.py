import itertools

import numpy as np
import pytest
import torch
from conftest import as_double, true_squared
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

import alkernels as alk


def integers(rng, *shape, high=8):
    return torch.randint(-high, high + 1, shape, generator=rng).float()


def sequence_law(points, length, labeled=None):
    """The probability of every ordered draw of distinct rows under the D² rule, by enumeration."""
    d = torch.cdist(points.double(), points.double()) ** 2
    start = torch.cdist(points.double(), labeled.double()).min(1).values ** 2 if labeled is not None else None
    law = {}
    for picks in itertools.permutations(range(len(points)), length):
        p, w = 1.0, start
        for i in picks:
            p *= 1 / len(points) if w is None else float(w[i] / w.sum())
            w = d[i] if w is None else torch.minimum(w, d[i])
        law[picks] = p
    return law


@pytest.mark.parametrize("with_labeled", [False, True])
def test_follows_the_law_on_ordered_triples(with_labeled):
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [4.0, 4.0], [4.5, 4.0]])
    labeled = torch.tensor([[1.0, 1.0]]) if with_labeled else None
    law = sequence_law(points, 3, labeled)
    assert sum(law.values()) == pytest.approx(1)
    draws = 10000
    rng = torch.Generator().manual_seed(1)
    counts = dict.fromkeys(law, 0)
    for _ in range(draws):
        counts[tuple(alk.kmeans_plusplus(points, 3, labeled=labeled, generator=rng).indices.tolist())] += 1
    assert all(counts[s] == 0 for s in law if law[s] == 0)
    kept = [s for s in law if law[s] * draws > 5]
    rest = draws - sum(counts[s] for s in kept)
    observed = [counts[s] for s in kept] + [rest]
    expected = [law[s] * draws for s in kept]
    expected.append(draws - sum(expected))
    observed, expected = (v if expected[-1] > 5 else v[:-1] for v in (observed, expected))
    scale = sum(observed) / sum(expected)
    assert chisquare(observed, [e * scale for e in expected]).pvalue > 1e-4


def test_the_second_pick_knows_nothing_of_how_the_first_was_drawn():
    """On a ring each second pick has the same law relative to the first, for every first."""
    n = 2**16
    angle = torch.arange(n, dtype=torch.float64) * (2 * torch.pi / n)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    picks = torch.stack([alk.kmeans_plusplus(ring, 2, generator=seed).indices for seed in range(400)])
    turn = ((picks[:, 1] - picks[:, 0]) % n).double() / n
    # density 1 - cos(2 pi t) on [0, 1): its distribution function turns it into a uniform variable
    uniform = turn - torch.sin(2 * torch.pi * turn) / (2 * torch.pi)
    assert kstest(uniform.numpy(), "uniform").pvalue > 1e-4
    assert kstest((picks[:, 0].double() / n).numpy(), "uniform").pvalue > 1e-4


def test_later_picks_follow_the_law_given_the_earlier():
    """Conditional on the first 20 picks of a real run, the 21st: many draws with the picks as labelled rows."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=rng)
    known = x[alk.kmeans_plusplus(x, 20, generator=3).indices]
    w = (torch.cdist(x.double(), known.double()).min(1).values ** 2).clamp(min=0)
    draws = 6000
    counts = np.zeros(100)
    for _ in range(draws):
        counts[int(alk.kmeans_plusplus(x, 1, labeled=known, generator=rng).indices)] += 1
    expected = (w / w.sum() * draws).numpy()
    order = expected.argsort()[::-1]
    big = expected[order] > 5
    observed = np.append(counts[order][big], counts[order][~big].sum())
    wanted = np.append(expected[order][big], expected[order][~big].sum())
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_blocks_cost_as_little_as_the_sequential_rule():
    """The final k-means cost over many runs: blocked and sequential means agree within their standard errors."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 8, generator=rng)[torch.randint(30, (2000,), generator=rng)] + 0.3 * torch.randn(
        2000, 8, generator=rng
    )
    ours, plain = [], []
    for seed in range(40):
        ours.append(float(alk.kmeans_plusplus(x, 120, generator=seed, return_distances=True).distances.sum()))
        picks = alk.reference.kmeans_plusplus(x, 120, generator=torch.Generator().manual_seed(seed)).indices
        plain.append(float(torch.cdist(x, x[picks]).min(1).values.square().sum()))
    ours, plain = np.array(ours), np.array(plain)
    error = np.sqrt(ours.var(ddof=1) / 40 + plain.var(ddof=1) / 40)
    assert abs(ours.mean() - plain.mean()) < 4 * error


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (5, 2, 5), (129, 7, 129), (3000, 5, 800), (5000, 33, 600)])
@pytest.mark.parametrize("labels", [0, 7])
def test_scores_are_squared_distances_when_drawn(n, d, k, labels, rng, device):
    x = integers(rng, n, d)
    known = integers(rng, labels, d) if labels else None
    out = alk.kmeans_plusplus(
        x.to(device), k, labeled=None if known is None else known.to(device), generator=0, return_distances=True
    )
    picks = out.indices.cpu().tolist()
    assert len(set(picks)) == k
    d2 = torch.full((n,), torch.inf, dtype=torch.float64)
    for j in range(labels):
        d2 = torch.minimum(d2, true_squared(x.double(), known[j].double()))
    for step, pick in enumerate(picks):
        assert float(out.scores[step]) == float(d2[pick]), step
        d2 = torch.minimum(d2, true_squared(x.double(), x[pick].double()))
    assert torch.equal(out.distances.cpu().double(), d2)


def test_outer_products(rng, device):
    a, h = integers(rng, 400, 5, high=3), integers(rng, 400, 6, high=3)
    explicit = torch.einsum("nc,nd->ncd", a, h).flatten(1)
    for seed in range(5):
        factored = alk.kmeans_plusplus((a.to(device), h.to(device)), 90, generator=seed)
        full = alk.kmeans_plusplus(explicit.to(device), 90, generator=seed)
        assert torch.equal(factored.indices, full.indices)
        assert torch.equal(factored.scores, full.scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_layouts_draw_the_same_on_integers(dtype, rng, device):
    x = integers(rng, 900, 11)
    expected = alk.kmeans_plusplus(x.double(), 300, generator=5).indices
    assert torch.equal(alk.kmeans_plusplus(x.to(device, dtype), 300, generator=5).indices.cpu(), expected)
    transposed = x.to(device, dtype).t().contiguous().t()
    assert torch.equal(alk.kmeans_plusplus(transposed, 300, generator=5).indices.cpu(), expected)


def test_the_same_for_any_number_of_threads(rng):
    x = torch.randn(20000, 24, generator=rng)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = alk.kmeans_plusplus(x, 300, generator=4)
        torch.set_num_threads(2)
        two = alk.kmeans_plusplus(x, 300, generator=4)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.indices, two.indices)


def test_numpy_and_memmap(rng, tmp_path):
    x = integers(rng, 3000, 20)
    np.save(tmp_path / "x.npy", x.numpy())
    expected = alk.kmeans_plusplus(x, 200, generator=2).indices.numpy()
    for array in (x.numpy(), np.load(tmp_path / "x.npy", mmap_mode="r")):
        out = alk.kmeans_plusplus(array, 200, generator=2)
        assert isinstance(out.scores, np.ndarray) and np.array_equal(out.indices, expected)


def test_no_weight_left_fills_up_in_index_order():
    x = torch.tensor([[0.0], [5.0]]).repeat(6, 1)
    out = alk.kmeans_plusplus(x, 12, start=3)
    assert out.indices[0] == 3 and out.scores[1] == 25 and out.scores[2:].eq(0).all()
    assert sorted(out.indices.tolist()) == list(range(12))
    assert out.indices[2:].tolist() == sorted(out.indices[2:].tolist())
    labelled = alk.kmeans_plusplus(x, 3, labeled=torch.tensor([[0.0], [5.0]]))
    assert labelled.indices.tolist() == [0, 1, 2] and labelled.scores.eq(0).all()


HARD = {
    "tight clusters far apart": lambda g: (
        1e3 * torch.randn(20, 6, generator=g)[torch.arange(1000) % 20] + 1e-3 * torch.randn(1000, 6, generator=g)
    ),
    "far from the origin": lambda g: torch.randn(1000, 6, generator=g) + 3e4,
    "one huge row": lambda g: torch.cat([torch.randn(999, 8, generator=g), torch.full((1, 8), 1e9)]),
    "squares underflow float32": lambda g: 1e-25 * torch.randn(500, 8, generator=g),
    "squares overflow float32": lambda g: 1e25 * torch.randn(500, 8, generator=g),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_data(name, rng, device):
    """Weights are within 1e-4 of the mean weight: seen through the scores, which are the weights of the picks."""
    x = HARD[name](rng)
    out = alk.kmeans_plusplus(x.to(device, torch.float32), 200, start=0)
    x64 = as_double(x)
    d2 = true_squared(x64, x64[0])
    for pick, score in zip(out.indices.tolist()[1:], out.scores.tolist()[1:], strict=True):
        assert score == pytest.approx(float(d2[pick]), rel=1e-5, abs=1e-4 * float(d2.mean()))
        assert d2[pick] > 0
        d2 = torch.minimum(d2, true_squared(x64, x64[pick]))


@pytest.mark.parametrize("widths", [(10, 70), (3, 129), (100, 513)])
def test_duplicates_of_outer_products_have_no_weight(widths, rng):
    pair = tuple(torch.randn(40, w, generator=rng).repeat(10, 1) for w in widths)
    out = alk.kmeans_plusplus(pair, 400, generator=0)
    assert int((out.scores > 0).sum()) == 40
    assert out.indices[40:].tolist() == sorted(out.indices[40:].tolist())


def test_sum_of_weights_that_overflows(rng):
    x = 3e152 * torch.randn(2000, 2, generator=rng, dtype=torch.float64)
    with pytest.raises(ValueError, match="squared distances whose sum float64 can hold"):
        alk.kmeans_plusplus(x, 5, generator=0)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    n = data.draw(st.integers(1, 90), "n")
    d = data.draw(st.integers(1, 30), "d")
    k = data.draw(st.integers(0, n), "k")
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    x = torch.randn(n, d, generator=rng)
    if data.draw(st.booleans(), "duplicates"):
        x = x[torch.randint(max(1, n // 5), (n,), generator=rng)]
    before = x.clone()
    out = alk.kmeans_plusplus(x, k, generator=1, return_distances=True)
    assert torch.equal(x, before)
    assert len(set(out.indices.tolist())) == k == len(out.scores)
    distinct = len(torch.unique(x, dim=0))
    assert int((out.scores > 0).sum()) == min(k, distinct)
    again = alk.kmeans_plusplus(x, k, generator=1)
    assert torch.equal(out.indices, again.indices)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((torch.zeros(4, 2), 5), {}, ValueError, "k must be between 0 and 4"),
        ((torch.zeros(4, 2), 2), {"start": 4}, ValueError, "start must be a row of features"),
        ((torch.zeros(4, 2), 2), {"labeled": torch.zeros(1, 3)}, ValueError, "labeled must be as wide as features"),
        ((torch.zeros(4, 2).long(), 2), {}, TypeError, "features must be of dtype"),
        ((torch.full((4, 2), torch.nan), 2), {}, ValueError, "features must be finite, got nan in row 0, column 0"),
        ((torch.zeros(4, 2), 2), {"generator": 0.5}, TypeError, "generator must be"),
        ((torch.zeros(4, 2), 2), {"generator": 2**64}, ValueError, "generator must be a seed of 64 bits, got 1844"),
    ],
)
def test_bad_input(args, options, error, message):
    with pytest.raises(error, match=message):
        alk.kmeans_plusplus(*args, **options)


def test_reference_draws_by_the_same_law():
    points = torch.tensor([[0.0], [1.0], [3.0]])
    law = sequence_law(points, 2)
    rng = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(law, 0)
    for _ in range(6000):
        counts[tuple(alk.reference.kmeans_plusplus(points, 2, generator=rng).indices.tolist())] += 1
    assert chisquare(list(counts.values()), [p * 6000 for p in law.values()]).pvalue > 1e-4
