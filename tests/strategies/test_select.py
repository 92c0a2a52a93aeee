"""What select does around a strategy: scores of others, prefilters, ties, pools of any kind."""

import numpy as np
import pytest
import torch

import alkernels as alk
from alkernels.strategies import top_scores
from alkernels.strategies._select import _derived


@pytest.fixture
def probs(rng):
    return torch.randn(200, 5, generator=rng, dtype=torch.float64).softmax(1)


@pytest.fixture
def features(rng):
    return torch.randn(200, 6, generator=rng, dtype=torch.float64)


class TestTopScores:
    def test_the_highest_first_ties_by_index(self, rng):
        scores = torch.randint(0, 9, (500,), generator=rng).double()
        for b in (0, 1, 7, 120, 499, 500):
            picked = top_scores(scores, b)
            expected = sorted(range(500), key=lambda i: (-float(scores[i]), i))[:b]
            assert picked.indices.tolist() == expected
            assert picked.scores.tolist() == [float(scores[i]) for i in expected]

    def test_random_ties_are_uniform_among_equals_only(self):
        scores = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 2.0])
        counts = np.zeros(6)
        for seed in range(800):
            picked = top_scores(scores, 3, tie_break="random", generator=seed).indices.tolist()
            assert picked[0] == 1 and 0 not in picked
            counts[picked] += 1
        assert ((counts[2:] - 400) ** 2 / 400).sum() < 16.3  # 0.999 of chi-square, 3 degrees
        again = [top_scores(scores, 3, tie_break="random", generator=9).indices.tolist() for _ in range(2)]
        assert again[0] == again[1]

    def test_infinities_and_kinds_of_numbers(self):
        assert top_scores(np.array([-np.inf, 0, np.inf]), 3).indices.tolist() == [2, 1, 0]
        assert isinstance(top_scores(np.array([1, 2]), 1).indices, np.ndarray)
        assert top_scores(torch.tensor([1, 5, 3]), 2).indices.tolist() == [1, 2]
        assert top_scores(torch.tensor([1.0, 2.0]).half(), 1).scores.tolist() == [2.0]

    def test_bad_input(self):
        scores = torch.tensor([1.0, torch.nan, 2.0])
        with pytest.raises(ValueError, match="scores must not be NaN, got NaN in row 1"):
            top_scores(scores, 1)
        assert top_scores(scores, 1, candidates=[0, 2]).indices.tolist() == [2]
        with pytest.raises(ValueError, match="scores must not be NaN, got NaN in row 1"):
            top_scores(scores, 1, candidates=[1, 2])
        with pytest.raises(ValueError, match=r"batch_size must be between 0 and 2 \(candidates\), got 3"):
            top_scores(scores, 3, candidates=[0, 2])
        with pytest.raises(ValueError, match="tie_break must be 'index' or 'random', got 'last'"):
            top_scores(scores, 1, tie_break="last")
        with pytest.raises(ValueError, match=r"scores must be one-dimensional \[N\], got shape \(1, 3\)"):
            top_scores(scores[None], 1)
        with pytest.raises(TypeError, match="scores must hold real numbers"):
            top_scores(torch.tensor([True, False]), 1)


class TestComposition:
    def test_scores_of_another_strategy_or_of_ones_own(self, probs):
        scores = alk.strategies.uncertainty.entropy(probs)
        of = alk.select("softmax", 20, of="entropy", probs=probs, generator=0)
        own = alk.select("softmax", 20, scores=scores, generator=0)
        assert torch.equal(of.indices, own.indices) and torch.equal(of.scores, own.scores)

    def test_options_go_where_they_belong(self, probs):
        a = alk.select("softmax", 20, of="entropy", probs=probs, normalize=True, beta=3.0, generator=0)
        scores = alk.strategies.uncertainty.entropy(probs, normalize=True)
        assert torch.equal(a.indices, alk.select("softmax", 20, scores=scores, beta=3.0, generator=0).indices)

    def test_a_score_as_a_weight(self, probs, features):
        weights = alk.strategies.uncertainty.margin(probs)
        a = alk.select("facility_location", 10, features=features, probs=probs, of="margin")
        b = alk.select("facility_location", 10, features=features, scores=weights)
        assert torch.equal(a.indices, b.indices)
        assert not torch.equal(a.indices, alk.select("facility_location", 10, features=features, probs=probs).indices)

    def test_prefilter(self, probs, features):
        best = top_scores(alk.strategies.uncertainty.entropy(probs), 40).indices.sort().values
        more = {"prefilter": "entropy", "keep": 40, "start": int(best[3])}
        picked = alk.select("k_center_greedy", 8, features=features, probs=probs, **more)
        inner = alk.select("k_center_greedy", 8, features=features[best], start=3)
        assert torch.equal(picked.indices, best[inner.indices])
        # more than there are: nothing is filtered
        all_kept = alk.select("margin", 8, probs=probs, prefilter="entropy", keep=900)
        assert torch.equal(all_kept.indices, alk.select("margin", 8, probs=probs).indices)

    def test_candidates_and_prefilter_together(self, probs, features):
        mask = torch.zeros(200, dtype=torch.bool)
        mask[50:150] = True
        picked = alk.select("badge", 8, features=features, probs=probs, candidates=mask, prefilter="margin", keep=20)
        best = 50 + top_scores(alk.strategies.uncertainty.margin(probs[50:150]), 20).indices
        assert set(picked.indices.tolist()) <= set(best.tolist())

    def test_refusals(self, probs, features):
        with pytest.raises(ValueError, match="prefilter and keep must be given together"):
            alk.select("badge", 3, probs=probs, features=features, prefilter="margin")
        with pytest.raises(ValueError, match="keep must be at least batch_size, 3, got 2"):
            alk.select("badge", 3, probs=probs, features=features, prefilter="margin", keep=2)
        with pytest.raises(ValueError, match="prefilter must be a strategy that scores each row, got 'badge'"):
            alk.select("badge", 3, probs=probs, features=features, prefilter="badge", keep=10)
        with pytest.raises(ValueError, match="of must not be given for badge, which takes no scores, got 'margin'"):
            alk.select("badge", 3, probs=probs, features=features, of="margin")
        with pytest.raises(ValueError, match="of must not be given together with scores"):
            alk.select("power", 3, of="margin", probs=probs, scores=probs[:, 0])
        with pytest.raises(ValueError, match=r"power needs of=, the strategy whose scores it takes, or scores= \[N\]"):
            alk.select("power", 3, probs=probs)
        with pytest.raises(ValueError, match="bald needs mc_probs="):
            alk.select("power", 3, of="bald", probs=probs)
        with pytest.raises(
            ValueError, match="of must be a name in the catalogue, got 'margins'; did you mean 'margin'"
        ):
            alk.select("power", 3, of="margins", probs=probs)
        with pytest.raises(TypeError, match="strategy must be a name, got function"):
            alk.select(alk.bald, 3, probs=probs)
        with pytest.raises(ValueError, match="device must be None for forgetting"):
            alk.select("forgetting", 3, correct=torch.zeros(5, 3, dtype=torch.int64), device="cuda")
        with pytest.raises(ValueError, match=r"probs must be two-dimensional \[rows, columns\], got shape \(200,\)"):
            alk.select("margin", 3, probs=probs[:, 0])
        with pytest.raises(TypeError, match=r"probs must be an array \[N, C\], got list"):
            alk.select("margin", 3, probs=[[0.5, 0.5]])
        with pytest.raises(ValueError, match=r"features must have at least one row, got shape \(0, 6\)"):
            alk.select("lcmd", 0, features=features[:0])


class TestSeeds:
    def test_stages_draw_independently(self):
        """Rows behind a random prefilter are as likely as each other to be drawn; so are scores at random."""
        counts = np.zeros(8)
        for seed in range(1600):
            more = {"scores": torch.ones(8), "prefilter": "random", "keep": 4, "generator": seed}
            counts[int(alk.select("power", 1, probs=torch.ones(8, 1), **more).indices)] += 1
        assert ((counts - 200) ** 2 / 200).sum() < 24.3  # 0.999 of chi-square, 7 degrees

    def test_scores_are_drawn_apart_from_the_picks(self):
        """Of five scores at random the softmax picks the best in 28 of 100 cases; never with one stream for both."""
        pool, best = torch.ones(5, 1), 0
        for seed in range(1000):
            of = {"of": "random", "prefilter": "random", "keep": 5} if seed % 2 else {"of": "random"}
            picked = alk.select("softmax", 1, probs=pool, generator=seed, **of)
            drawn = alk.select("softmax", 5, probs=pool, generator=seed, beta=1e9, **of).indices
            best += int(picked.indices[0]) == int(drawn[0])
        assert 220 <= best <= 340

    def test_each_stage_has_a_seed_of_its_own(self):
        assert len({_derived(7, 1), _derived(7, 2), _derived(8, 1), _derived(8, 2), 7, 8}) == 6

    def test_a_seed_is_the_functions(self, probs, features):
        for name in ("badge", "kmeans_plusplus", "random"):
            entry = alk.strategies.info(name)
            given = {"probs": probs, "features": features}
            own = {k: v for k, v in given.items() if k in entry.arrays}
            if entry.each_row:
                direct = top_scores(entry.function(probs, generator=4), 6).indices
            else:
                direct = entry.function(**own, batch_size=6, generator=4).indices
            assert torch.equal(alk.select(name, 6, **given, generator=4).indices, direct)


class TestPools:
    def test_start_is_a_row_of_the_whole_pool(self, features):
        rows = [40, 41, 44, 90]
        picked = alk.select("k_center_greedy", 2, features=features, start=44, candidates=rows)
        assert int(picked.indices[0]) == 44
        with pytest.raises(ValueError, match="start must be one of the candidates that are left, got 1"):
            alk.select("k_center_greedy", 2, features=features, start=1, candidates=rows)

    def test_arrays_that_stand_for_each_other(self, rng):
        draws = torch.rand(30, 4, 3, generator=rng).softmax(-1)
        other = torch.randint(0, 3, (30, 4), generator=rng)
        both = alk.select("variation_ratio", 30, mc_probs=draws, votes=other)
        assert torch.equal(both.indices, alk.select("variation_ratio", 30, mc_probs=draws).indices)

    def test_a_list_of_two_is_a_pair(self, probs, features):
        assert len(alk.select("random", 5, features=[probs, features]).indices) == 5

    def test_pairs(self, probs, features):
        pair = (probs, features)
        picked = alk.select("k_center_greedy", 9, features=pair, start=0)
        assert torch.equal(picked.indices, alk.k_center_greedy(pair, 9, start=0).indices)
        rows = torch.arange(3, 180, 2)
        some = alk.select("k_center_greedy", 9, features=pair, start=3, candidates=rows)
        expected = alk.k_center_greedy((probs[rows], features[rows]), 9, start=0)
        assert torch.equal(some.indices, rows[expected.indices])

    def test_candidates_of_a_file_are_read_as_they_are_needed(self, tmp_path, rng):
        x = torch.randn(30_000, 20, generator=rng).numpy()
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        for rows in (np.arange(0, 30_000, 2), np.arange(100, 29_000, 700), np.arange(5, 9000)):
            picked = alk.select("k_center_greedy", 12, features=mapped, candidates=rows, start=rows[1])
            assert np.array_equal(picked.indices, rows[alk.k_center_greedy(x[rows], 12, start=1).indices])

    def test_the_last_round_of_a_loop(self, probs):
        left = torch.tensor([3, 9, 100])
        with pytest.warns(UserWarning, match="batch_size is 10: all 3 candidates are picked") as warned:
            picked = alk.select("margin", 10, probs=probs, candidates=left)
        assert sorted(picked.indices.tolist()) == left.tolist()
        assert warned[0].filename == __file__

    @pytest.mark.parametrize("call", ["function", "select", "of"])
    def test_warnings_point_at_the_users_line(self, probs, call):
        draws = probs[:, None]
        with pytest.warns(UserWarning, match="holds one draw") as warned:
            if call == "function":
                alk.strategies.committee.mean_std(draws)
            elif call == "select":
                alk.select("bald", 5, mc_probs=draws)
            else:
                alk.select("power", 5, of="max_disagreement", mc_probs=draws)
        assert {w.filename for w in warned} == {__file__}

    def test_without_a_seed_draws_differ(self, probs):
        drawn = {tuple(alk.select("random", 5, probs=probs).indices.tolist()) for _ in range(5)}
        assert len(drawn) > 1
