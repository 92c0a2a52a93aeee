"""Scores of predictions, of committees and of draws: by hand, by identities, and beside other packages."""

import math

import modAL.disagreement
import modAL.uncertainty
import numpy as np
import pytest
import torch
from skactiveml.pool import average_kl_divergence, uncertainty_scores, vote_entropy

import alkernels as alk
from alkernels.strategies import bayesian, committee, uncertainty

LOG2, LOG3 = math.log(2), math.log(3)


def draws(n, k, c, seed=0, peak=2.0):
    g = torch.Generator().manual_seed(seed)
    return (peak * torch.randn(n, k, c, generator=g, dtype=torch.float64)).softmax(-1)


class TestByHand:
    probs = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)

    def test_uncertainty(self):
        assert uncertainty.least_confident(self.probs).tolist() == pytest.approx([0.5, 0, 2 / 3])
        assert uncertainty.margin(self.probs).tolist() == pytest.approx([0.75, 0, 1])
        assert uncertainty.entropy(self.probs).tolist() == pytest.approx([1.5 * LOG2, 0, LOG3])
        assert uncertainty.entropy(self.probs, normalize=True).tolist() == pytest.approx([1.5 * LOG2 / LOG3, 0, 1])

    def test_one_class_is_certain(self):
        for score in (uncertainty.least_confident, uncertainty.margin, uncertainty.entropy):
            assert score(torch.ones(4, 1)).tolist() == [0.0] * 4
        assert uncertainty.entropy(torch.ones(4, 1), normalize=True).tolist() == [0.0] * 4

    def test_committee(self):
        p = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]]], dtype=torch.float64)
        # votes: 0, 0, 1 and, of equals, 0
        assert float(committee.vote_entropy(p)) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
        assert float(committee.vote_entropy(p, normalize=True)) == pytest.approx(
            (-0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / LOG2
        )
        assert float(committee.variation_ratio(p)) == 0.25
        assert float(committee.variation_ratio(p, mode="mean")) == pytest.approx(1 - 0.55)
        assert float(committee.consensus_entropy(p)) == pytest.approx(-0.55 * math.log(0.55) - 0.45 * math.log(0.45))
        assert float(committee.mean_std(p)) == pytest.approx(np.std([0.9, 0.6, 0.2, 0.5]))
        kl = [sum(x * math.log(x / m) for x, m in zip(q, (0.55, 0.45), strict=True)) for q in p[0].tolist()]
        assert float(committee.max_disagreement(p)) == pytest.approx(max(kl))
        assert float(committee.kl_consensus(p)) == pytest.approx(sum(kl) / 4)

    def test_votes_in_place_of_draws(self):
        p = draws(60, 9, 4)
        votes = p.argmax(-1)
        for name in ("vote_entropy", "variation_ratio"):
            function = getattr(committee, name)
            for some in (votes, votes.int(), votes.numpy()):
                assert np.allclose(function(votes=some), function(p), rtol=1e-12)
        normalized = committee.vote_entropy(votes=votes, normalize=True)
        assert torch.allclose(normalized, committee.vote_entropy(p) / math.log(9))

    def test_many_members_and_classes_in_tiles(self):
        votes = torch.randint(0, 5000, (3000, 40), generator=torch.Generator().manual_seed(0))
        by_hand = [1 - np.bincount(v).max() / 40 for v in votes.numpy()]
        assert committee.variation_ratio(votes=votes).tolist() == pytest.approx(by_hand)


class TestIdentities:
    def test_mean_kl_to_consensus_is_bald(self):
        p = draws(300, 12, 5)
        mean = p.mean(1, keepdim=True)
        direct = (p * (p.log() - mean.log())).sum(-1).mean(1)
        for scores in (committee.kl_consensus(p), bayesian.bald(p), alk.bald(p)):
            assert torch.allclose(scores, direct, rtol=0, atol=1e-10)
        assert torch.equal(committee.kl_consensus(p), bayesian.bald(p))

    def test_two_classes_have_one_order(self):
        p = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        probs = torch.stack([p, 1 - p], 1)
        orders = [
            alk.select(name, 200, probs=probs).indices.tolist() for name in ("least_confident", "margin", "entropy")
        ]
        assert orders[0] == orders[1] == orders[2]

    def test_bounds(self):
        p = draws(500, 6, 4, peak=8.0)
        assert (bayesian.bald(p) <= min(math.log(6), math.log(4)) + 1e-12).all() and (bayesian.bald(p) >= 0).all()
        assert (committee.max_disagreement(p) <= math.log(6) + 1e-12).all()
        assert (committee.max_disagreement(p) >= committee.kl_consensus(p) - 1e-12).all()
        assert (bayesian.epig(p, draws(9, 6, 4, seed=1)) <= bayesian.bald(p) + 1e-12).all()

    @pytest.mark.parametrize(
        "name", ["vote_entropy", "variation_ratio", "kl_consensus", "max_disagreement", "mean_std", "bald", "epig"]
    )
    def test_one_draw_cannot_disagree(self, name):
        p = draws(20, 1, 4)
        with pytest.warns(UserWarning, match="one draw, which cannot disagree: every score is 0"):
            picked = alk.select(name, 5, mc_probs=p, target_mc_probs=p)
        assert picked.indices.tolist() == [0, 1, 2, 3, 4] and picked.scores.tolist() == [0.0] * 5
        if name in ("vote_entropy", "variation_ratio"):
            with pytest.warns(UserWarning, match="votes has one member"):
                alk.select(name, 5, votes=p.argmax(-1))

    def test_logarithms(self):
        p = draws(50, 4, 3)
        for name in [*alk.strategies.names("committee"), "bald"]:
            direct = alk.select(name, 50, mc_probs=p)
            logs = alk.select(name, 50, mc_probs=p.log(), log_input=True)
            assert torch.allclose(direct.scores, logs.scores, rtol=1e-9, atol=1e-12), name
        for name in alk.strategies.names("uncertainty"):
            direct = alk.select(name, 50, probs=p[:, 0])
            assert torch.allclose(direct.scores, alk.select(name, 50, probs=p[:, 0].log(), log_input=True).scores), name


class TestEnds:
    def test_distributions_that_sum_to_a_little_more_than_one(self):
        probs = torch.tensor([[1.0005, 0.0, 0.0], [0.5, 0.3, 0.2]], dtype=torch.float64)
        for name in alk.strategies.names("uncertainty"):
            assert float(getattr(uncertainty, name)(probs)[0]) == 0.0
            assert alk.select("power", 2, of=name, probs=probs, generator=0).indices.tolist() == [1, 0]

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int16, torch.int64])
    def test_votes_of_any_integers(self, dtype):
        votes = torch.randint(0, 200, (40, 7), generator=torch.Generator().manual_seed(0))
        expected = committee.vote_entropy(votes=votes)
        assert torch.equal(committee.vote_entropy(votes=votes.to(dtype)), expected)

    def test_votes_as_lists(self):
        assert committee.vote_entropy(votes=[[0, 1], [1, 1]], normalize=True).tolist() == [1.0, 0.0]

    def test_votes_of_large_class_numbers(self):
        votes = torch.tensor([[2**40, 1, 1], [2**62, 2**62, 2**62]])
        assert committee.variation_ratio(votes=votes).tolist() == pytest.approx([1 / 3, 0.0])


class TestOthers:
    """Packages that are right about these (scikit-activeml to within its clipping at 1e-7)."""

    def test_modal(self):
        p = draws(80, 7, 4)
        probs = p[:, 0]

        class Classifier:
            def predict_proba(self, X):
                return probs.numpy()

        x = np.zeros((80, 1))
        ours = uncertainty.least_confident(probs).numpy()
        assert np.allclose(ours, modAL.uncertainty.classifier_uncertainty(Classifier(), x))
        assert np.allclose(1 - uncertainty.margin(probs), modAL.uncertainty.classifier_margin(Classifier(), x))
        assert np.allclose(uncertainty.entropy(probs), modAL.uncertainty.classifier_entropy(Classifier(), x))

        class Committee:
            classes_ = np.arange(4)

            def __len__(self):
                return 7

            def __iter__(self):
                return iter(range(7))

            def vote(self, X, **_):
                return p.argmax(-1).numpy()

            def vote_proba(self, X, **_):
                return p.numpy()

            def predict_proba(self, X, **_):
                return p.mean(1).numpy()

        assert np.allclose(committee.vote_entropy(p), modAL.disagreement.vote_entropy(Committee(), x))
        assert np.allclose(committee.consensus_entropy(p), modAL.disagreement.consensus_entropy(Committee(), x))
        assert np.allclose(committee.max_disagreement(p), modAL.disagreement.KL_max_disagreement(Committee(), x))

    def test_scikit_activeml(self):
        p = draws(80, 7, 4)
        probs = p[:, 0].numpy()
        for name, method in (
            ("least_confident", "least_confident"),
            ("margin", "margin_sampling"),
            ("entropy", "entropy"),
        ):
            assert np.allclose(getattr(uncertainty, name)(probs), uncertainty_scores(probs, method=method)), name
        votes = p.argmax(-1).numpy()
        theirs = vote_entropy(votes, np.arange(4))
        assert np.allclose(committee.vote_entropy(votes=votes), theirs)
        assert np.allclose(committee.kl_consensus(p), average_kl_divergence(p.transpose(0, 1).numpy()), atol=1e-6)


class TestBadInput:
    def test_committee(self):
        p = draws(5, 3, 2)
        with pytest.raises(ValueError, match="either mc_probs or votes must be given, got none"):
            committee.vote_entropy()
        with pytest.raises(ValueError, match="either mc_probs or votes must be given, got both"):
            committee.variation_ratio(p, votes=p.argmax(-1))
        with pytest.raises(ValueError, match="mode must be 'votes' or 'mean', got 'soft'"):
            committee.variation_ratio(p, mode="soft")
        with pytest.raises(ValueError, match="mode must be 'votes' where votes are given, got 'mean'"):
            committee.variation_ratio(votes=p.argmax(-1), mode="mean")
        with pytest.raises(TypeError, match="votes must hold class numbers, integers, got dtype torch"):
            committee.vote_entropy(votes=p[:, :, 0])
        with pytest.raises(ValueError, match="votes must be two-dimensional"):
            committee.vote_entropy(votes=torch.zeros(4, dtype=torch.int64))
        with pytest.raises(ValueError, match="votes must not be negative, got -1 in row 2"):
            committee.vote_entropy(votes=torch.tensor([[0], [1], [-1]]))
        with pytest.raises(ValueError, match="mc_probs must be three-dimensional"):
            committee.mean_std(p[0])
        with pytest.raises(ValueError, match="target_mc_probs must have as many draws as mc_probs, got 2 and 3"):
            bayesian.epig(p, p[:, :2])
        with pytest.raises(ValueError, match="target_mc_probs must have at least one row"):
            bayesian.epig(p, p[:0])
        with pytest.raises(ValueError, match=r"batch_size must be between 0 and 5 \(rows of mc_probs\), got 6"):
            bayesian.batchbald(p, 6)
