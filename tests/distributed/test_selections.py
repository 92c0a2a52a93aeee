"""Picks of several ranks beside those of one process that holds all shards."""

from __future__ import annotations

import harness
import numpy as np
import pytest
import torch
from conftest import assert_farthest_first
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import alkernels as alk

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    processes = harness.Processes(4, tmp_path_factory.mktemp("ranks"))
    yield processes
    processes.end()


def integers(rng, *shape, high=8):
    return torch.randint(-high, high + 1, shape, generator=rng).float()


def cuts_of(n):
    """Two, three and four ranks; uneven and empty shards, at the front, in the middle and at the end."""
    return [[n // 2], [0, n // 3], [n // 5, n // 5, n]]


def select(ranks, name, x, k, cuts, *, local=None, **options):
    """Shared results of all ranks, which must agree, and what each returns of its own, one behind the other."""
    pieces = harness.shards(x, cuts)
    locals_ = [
        {key: harness.shards(value, cuts)[r] for key, value in (local or {}).items()} for r in range(len(pieces))
    ]
    each = [((name, piece, k), {**options, **mine}) for piece, mine in zip(pieces, locals_, strict=True)]
    out = ranks.run(harness.with_options, each=each, size=len(pieces))
    for other in out:
        assert torch.equal(torch.as_tensor(other[0]), torch.as_tensor(out[0][0]))
        assert torch.equal(torch.as_tensor(other[1]), torch.as_tensor(out[0][1]))
    own = [torch.cat([torch.as_tensor(o[i]) for o in out]) for i in range(2, len(out[0]))]
    return (torch.as_tensor(out[0][0]), torch.as_tensor(out[0][1]), *own)


def assert_same(ours, one):
    assert len(ours) == len(one)
    for mine, its in zip(ours, one, strict=True):
        assert torch.equal(mine, torch.as_tensor(its))


SEEDING = ["k_center_greedy", "kmeans_plusplus"]


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (5, 2, 5), (129, 7, 129), (2000, 3, 700), (600, 300, 100)])
@pytest.mark.parametrize("name", SEEDING)
def test_picks_and_distances_on_integers_are_those_of_one_process(name, n, d, k, rng, ranks):
    x = integers(rng, n, d)
    for options in ({"generator": 5}, {"start": n // 2, "generator": 7}):
        one = getattr(alk, name)(x, k, return_distances=True, **options)
        for cuts in cuts_of(n):
            assert_same(select(ranks, name, x, k, cuts, return_distances=True, **options), one)


@pytest.mark.parametrize("labels", [1, 90])
@pytest.mark.parametrize("name", SEEDING)
def test_labeled_rows(name, labels, rng, ranks):
    x, known = integers(rng, 700, 5), integers(rng, labels, 5)
    for start in (None, 30):
        one = getattr(alk, name)(x, 300, labeled=known, start=start, generator=1, return_distances=True)
        for cuts in cuts_of(700):
            options = {"labeled": known, "start": start, "generator": 1, "return_distances": True}
            assert_same(select(ranks, name, x, 300, cuts, **options), one)


@pytest.mark.parametrize("name", SEEDING)
def test_pairs_stand_for_outer_products(name, rng, ranks):
    x = (integers(rng, 500, 3, high=3), integers(rng, 500, 6, high=3))
    known = (integers(rng, 4, 3, high=3), integers(rng, 4, 6, high=3))
    for labeled in (None, known):
        one = getattr(alk, name)(x, 200, labeled=labeled, generator=2, return_distances=True)
        for cuts in cuts_of(500):
            options = {"labeled": labeled, "generator": 2, "return_distances": True}
            assert_same(select(ranks, name, x, 200, cuts, **options), one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SEEDING)
def test_dtypes(name, dtype, rng, ranks):
    x = integers(rng, 900, 11).to(dtype)
    one = getattr(alk, name)(x, 300, start=0, generator=0)
    for cuts in ([100, 640], [0, 0, 899]):
        assert_same(select(ranks, name, x, 300, cuts, start=0, generator=0), one)


@pytest.mark.parametrize("name", SEEDING)
def test_few_distinct_rows_of_which_more_are_wanted(name, ranks):
    # ties everywhere, then rows that coincide with centres, in their order
    x = torch.arange(7.0).repeat(30)[:, None] * torch.ones(1, 3)
    one = getattr(alk, name)(x, 180, start=11, generator=0, return_distances=True)
    for cuts in cuts_of(210):
        options = {"start": 11, "generator": 0, "return_distances": True}
        assert_same(select(ranks, name, x, 180, cuts, **options), one)
    same = torch.ones(40, 2)
    one = getattr(alk, name)(same, 40, labeled=same[:1], generator=0, return_distances=True)
    for cuts in cuts_of(40):
        options = {"labeled": same[:1], "generator": 0, "return_distances": True}
        assert_same(select(ranks, name, same, 40, cuts, **options), one)


@pytest.mark.parametrize("name", SEEDING)
def test_no_picks_and_all_picks(name, rng, ranks):
    x = integers(rng, 50, 4)
    for k in (0, 50):
        one = getattr(alk, name)(x, k, generator=4, return_distances=True)
        for cuts in cuts_of(50):
            assert_same(select(ranks, name, x, k, cuts, generator=4, return_distances=True), one)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sharding_of_any_integers(data, ranks):
    n, d = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 4))
    k, seed = data.draw(st.integers(0, n)), data.draw(st.integers(0, 2**31))
    high = data.draw(st.sampled_from([1, 3, 50]))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), min_size=1, max_size=3)))
    x = integers(torch.Generator().manual_seed(seed), n, d, high=high)
    name = data.draw(st.sampled_from(SEEDING))
    one = getattr(alk, name)(x, k, generator=seed, return_distances=True)
    assert_same(select(ranks, name, x, k, cuts, generator=seed, return_distances=True), one)


HARD = {
    "gaussian": lambda g: torch.randn(1500, 30, generator=g),
    "far from the origin": lambda g: torch.randn(1500, 30, generator=g) + 3e4,
    "tight clusters far apart": lambda g: (
        1e3 * torch.randn(20, 12, generator=g)[torch.arange(1500) // 75] + 1e-3 * torch.randn(1500, 12, generator=g)
    ),
    "a tight cluster on one rank, a wide one on the other": lambda g: torch.cat(
        [1e-4 * torch.randn(700, 9, generator=g) + 50, torch.randn(800, 9, generator=g)]
    ),
    "one huge row": lambda g: torch.cat([torch.randn(999, 8, generator=g), torch.full((1, 8), 1e9)]),
    "uniform square, many picks": lambda g: torch.rand(3000, 2, generator=g),
}


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", HARD)
def test_real_values_within_the_bound(kind, metric, rng, ranks):
    x = HARD[kind](rng)
    for cuts in ([700], [0, 300, 1000]):
        out = select(ranks, "k_center_greedy", x, 400, cuts, start=5, metric=metric, return_distances=True)
        assert_farthest_first(x, alk.Selection(*out[:2]), start=5, metric=metric)


@pytest.mark.parametrize("metric", ["cosine", "symmetric_kl"])
def test_metrics_of_one_process(metric, rng, ranks):
    x = torch.randn(800, 7, generator=rng, dtype=torch.float64).softmax(-1)
    x[3] = x[500] = torch.eye(7, dtype=torch.float64)[2]  # infinitely far from most, under the KL divergence
    one = alk.k_center_greedy(x, 200, metric=metric, start=9, return_distances=True)
    for cuts in ([300], [4, 4, 501]):
        ours = select(ranks, "k_center_greedy", x, 200, cuts, metric=metric, start=9, return_distances=True)
        assert torch.equal(ours[0], one.indices)
        torch.testing.assert_close(ours[1], one.scores, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours[2], one.distances, rtol=1e-10, atol=1e-12)


def test_draws_follow_the_law(ranks):
    # four points on a line, the first given: probabilities 1/14, 4/14 and 9/14
    x = torch.arange(4.0)[:, None]
    counts = torch.zeros(4)
    for seed in range(150):
        counts[select(ranks, "kmeans_plusplus", x, 2, [2], start=0, generator=seed)[0][1]] += 1
    expected = 150 * torch.tensor([1.0, 4.0, 9.0]) / 14
    assert counts[0] == 0
    assert float(((counts[1:] - expected) ** 2 / expected).sum()) < 13.8  # one in a thousand, of two degrees of freedom


def test_generators_and_their_state(rng, ranks):
    x = integers(rng, 300, 4)
    one = alk.kmeans_plusplus(x, 50, generator=torch.Generator().manual_seed(8))
    out = ranks.run(
        harness.with_generator, 8, each=[("kmeans_plusplus", p, 50) for p in harness.shards(x, [9, 99])], size=3
    )
    for indices, following in out:
        assert torch.equal(indices, one.indices)
        assert following == out[0][1]
    # none at all: rank 0's decides, and each rank's moves on
    out = ranks.run(harness.unseeded, each=[("kmeans_plusplus", p, 50) for p in harness.shards(x, [9, 99])], size=3)
    torch.manual_seed(100)
    one = alk.kmeans_plusplus(x, 50)
    assert all(torch.equal(indices, one.indices) for indices in out)


def test_numpy_and_files(tmp_path, rng, ranks):
    x = integers(rng, 700, 6).numpy()
    np.save(tmp_path / "x.npy", x)
    one = alk.k_center_greedy(x, 90, start=1, return_distances=True)
    out = ranks.run(
        harness.from_file, "k_center_greedy", str(tmp_path / "x.npy"), 90, {"start": 1, "return_distances": True}
    )
    for indices, scores, _, _ in out:
        assert isinstance(indices, np.ndarray) and np.array_equal(indices, one.indices)
        assert np.array_equal(scores, one.scores)
    assert np.array_equal(np.concatenate([o[2] for o in out]), one.distances)


# ---- BatchBALD ----


def draws_of(rng, n, members=8, classes=3, scale=2.0):
    return (scale * torch.randn(n, members, classes, generator=rng)).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_batchbald_bit_by_bit(dtype, rng, ranks):
    draws = torch.rand(400, 12, 4, generator=rng).mul(4).softmax(-1).to(dtype)
    one = alk.batchbald(draws, 6, generator=0)
    for cuts in cuts_of(400):
        assert_same(select(ranks, "batchbald", draws, 6, cuts, generator=0), one)
    one = alk.batchbald(draws.float().log(), 3, log_input=True)
    assert_same(select(ranks, "batchbald", draws.float().log(), 3, [30, 300], log_input=True), one)


def test_batchbald_of_rows_that_say_nothing_goes_by_bald(rng, ranks):
    # the draws are told apart by two rows: all others add nothing, and follow by their own BALD
    sure = torch.eye(2)[torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])]
    rest = torch.full((20, 4, 2), 0.5)
    rest[3:10] = sure[0]
    draws = torch.cat([rest[:10], sure, rest[10:]])
    with pytest.warns(UserWarning, match="after 2 of 22 picks"):
        one = alk.batchbald(draws, 22)
    for cuts in cuts_of(22):
        assert_same(select(ranks, "batchbald", draws, 22, cuts), one)


def test_batchbald_of_one_draw(rng, ranks):
    draws = draws_of(rng, 30, members=1)
    with pytest.warns(UserWarning, match="one draw"):
        one = alk.batchbald(draws, 5)
    assert_same(select(ranks, "batchbald", draws, 5, [7, 7, 20]), one)


def test_batchbald_samples_the_same_configurations(rng, ranks):
    draws = draws_of(rng, 200, members=16, scale=0.7)
    options = {"max_configurations": 20, "num_samples": 4000, "generator": 3}
    one = alk.batchbald(draws, 6, **options)
    for cuts in cuts_of(200):
        assert_same(select(ranks, "batchbald", draws, 6, cuts, **options), one)


# ---- coverage ----


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_coverage_by_the_top_hat(dtype, rng, ranks):
    x = integers(rng, 500, 3).to(dtype)
    weights = torch.randint(0, 5, (500,), generator=rng).double()
    candidates = torch.rand(500, generator=rng) < 0.5
    covered = (torch.rand(500, generator=rng) < 0.3).double()
    options = {"kernel": "tophat", "bandwidth": 4.5, "return_covered": True}
    for local in ({"weights": weights}, {"weights": weights, "candidates": candidates, "covered": covered}):
        one = alk.greedy_coverage(x, 20, **options, **local)
        for cuts in cuts_of(500)[1:]:
            assert_same(select(ranks, "greedy_coverage", x, 20, cuts, local=local, **options), one)


def test_coverage_when_all_is_covered(rng, ranks):
    x = integers(rng, 60, 2, high=2)
    options = {"kernel": "tophat", "bandwidth": 2.5, "return_covered": True, "labeled": x[:1]}
    one = alk.greedy_coverage(x, 30, **options)
    assert float(one.scores[-1]) == 0
    for cuts in cuts_of(60):
        assert_same(select(ranks, "greedy_coverage", x, 30, cuts, **options), one)


@pytest.mark.parametrize("options", [{}, {"kernel": "rbf", "bandwidth": 3.0}], ids=["cosine", "rbf"])
def test_coverage_of_real_values(options, rng, ranks):
    x = torch.randn(800, 6, generator=rng)
    one = alk.greedy_coverage(x, 12, return_covered=True, **options)
    for cuts in cuts_of(800)[1:]:
        ours = select(ranks, "greedy_coverage", x, 12, cuts, return_covered=True, **options)
        assert torch.equal(ours[0], one.indices)
        torch.testing.assert_close(ours[1], one.scores, rtol=1e-12, atol=0)
        assert torch.equal(ours[2], one.covered)


# ---- neighbours ----


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_neighbours(metric, dtype, rng, ranks):
    queries, points = torch.randn(150, 9, generator=rng).to(dtype), integers(rng, 400, 9, high=2).to(dtype)
    queries[:50] = points[200:250]  # ties among copies
    one = alk.knn(queries, points, 12, metric=metric)
    for cuts, of_queries in zip(cuts_of(400), cuts_of(150), strict=True):
        pieces, asked = harness.shards(points, cuts), harness.shards(queries, of_queries)
        each = [(("knn", q, p, 12), {"metric": metric}) for q, p in zip(asked, pieces, strict=True)]
        out = ranks.run(harness.with_options, each=each, size=len(pieces))
        assert torch.equal(torch.cat([o[1] for o in out]), one.indices)
        assert torch.equal(torch.cat([o[0] for o in out]), one.distances)


def test_points_travel_in_tiles(rng, ranks):
    points = integers(rng, 3000, 40)
    one = alk.knn(points[:20], points, 5)
    each = [({}, points[:20], piece, 5) for piece in harness.shards(points, [100, 2000])]
    out = ranks.run(harness.in_small_tiles, each=each, size=3)
    for (distances, indices), messages in out:
        assert torch.equal(indices, one.indices) and torch.equal(distances, one.distances)
        sent = [size for what, size in messages if what == "points"]
        assert len(sent) == 19 and max(sent) == 100 * 40 * 4 + 32


# ---- devices ----


def test_one_rank_on_each_device(device, tmp_path, rng):
    """NCCL where there is a GPU: messages then never leave it."""
    x, draws = integers(rng, 900, 7), draws_of(rng, 80)
    pair = (integers(rng, 300, 3, high=3), integers(rng, 300, 5, high=3))
    cases = [
        ("k_center_greedy", x, (200,), {"start": 3, "return_distances": True}),
        ("k_center_greedy", pair, (90,), {"generator": 0, "return_distances": True}),
        ("kmeans_plusplus", x, (200,), {"generator": 3, "return_distances": True}),
        ("greedy_coverage", x, (9,), {"kernel": "tophat", "bandwidth": 7.0, "return_covered": True}),
        ("batchbald", draws, (5,), {"generator": 0}),
        ("knn", x[:70], (x, 6), {}),
    ]
    processes = harness.Processes(1, tmp_path, backend="nccl" if device == "cuda" else "gloo")
    try:
        for name, shard, args, options in cases:
            (ours,) = processes.run(harness.on_device, device, name, shard, args, options)
            one = getattr(alk, name)(shard, *args, **options)
            if name == "batchbald":
                assert torch.equal(ours[0], one.indices)
                torch.testing.assert_close(ours[1], one.scores, rtol=1e-9, atol=1e-12)
            else:
                assert_same(ours, one)
    finally:
        processes.end()


# ---- messages ----


def messages_of(ranks, name, x, k, cuts, options):
    each = [(name, options, piece, k) for piece in harness.shards(x, cuts)]
    out = ranks.run(harness.counted, each=each, size=len(cuts) + 1)
    assert all(messages == out[0][1] for _, messages in out)
    return out[0][1]


def test_one_collective_a_block_and_none_as_long_as_the_pool(rng, ranks):
    sizes = {}
    for n in (4000, 40000):
        x = torch.randn(n, 8, generator=rng)
        messages = messages_of(ranks, "k_center_greedy", x, 300, [n // 3], {"start": 0})
        kinds = [what for what, _ in messages]
        assert kinds == ["agreement", "sample", "start", "farthest", *["block"] * kinds.count("block"), "end"]
        assert kinds.count("block") < 25
        largest = max(size for _, size in messages)
        # m rows of 8 numbers, m + 1 values and numbers, and a header
        assert largest <= 1024 * (8 * 4 + 16) + 16 + 32
        sizes[n] = max(size for what, size in messages if what != "block")
    assert sizes[4000] == sizes[40000]  # nothing grows with the pool but m, up to 1024


def test_blocks_are_about_as_many_as_passes_of_one_process(rng, ranks):
    from alkernels._inputs import check_pool
    from alkernels.ops.k_center_greedy import select as select_alone

    x = torch.randn(20000, 16, generator=rng)
    run = select_alone(check_pool(x), 500, None, 0, "euclidean", None, track=False, progress=False)
    messages = messages_of(ranks, "k_center_greedy", x, 500, [5000, 9000, 9000], {"start": 0})
    # the start is a pass, the last block is not
    assert sum(what == "block" for what, _ in messages) <= run.state.passes + 2


def test_two_small_collectives_a_block_of_draws(rng, ranks):
    x = torch.randn(20000, 8, generator=rng)
    messages = messages_of(ranks, "kmeans_plusplus", x, 400, [4000, 4000, 15000], {"start": 0, "generator": 0})
    kinds = [what for what, _ in messages]
    blocks = kinds.count("block")
    # the weights once more where they fell farther than was expected: at the start, and rarely later
    assert blocks < 12 and blocks + 1 <= kinds.count("weights") <= blocks + 3
    assert max(size for what, size in messages if what == "weights") == 48
    assert max(size for _, size in messages) <= 1024 * (8 * 4 + 16) + 32


def test_one_collective_a_pick_of_batchbald(rng, ranks):
    draws = draws_of(rng, 900)
    messages = messages_of(ranks, "batchbald", draws, 7, [100, 200], {})
    assert [what for what, _ in messages] == ["agreement", "walk", *["pick"] * 7, "end"]
    assert {size for what, size in messages if what == "pick"} == {32 + 24 + 16 + 8 * 8 * 3}


def test_coverage_sends_blocks(rng, ranks):
    x = torch.randn(6000, 4, generator=rng)
    messages = messages_of(ranks, "greedy_coverage", x, 10, [2000, 4000], {})
    assert max(size for _, size in messages) <= 32 + 1366 * (4 * 4) + 3 * 8 * 1368
    assert len(messages) < 100  # of 6000 candidates and ten picks


def test_traffic_counts_only_inside(ranks, rng):
    with alk.distributed.traffic() as sent:
        pass
    assert (sent.collectives, sent.bytes, sent.largest, sent.count("block")) == (0, 0, 0, 0)
    x = integers(rng, 90, 3)
    messages = messages_of(ranks, "k_center_greedy", x, 9, [50], {"start": 0})
    total, largest, blocks, all_ = ranks.run(
        harness.totals, each=[("k_center_greedy", p, 9) for p in harness.shards(x, [50])], size=2
    )[0]
    assert all_ == len(messages) and total == sum(size for _, size in messages)
    assert largest == max(size for _, size in messages) and blocks >= 1
