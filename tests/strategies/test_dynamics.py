"""Forgetting events and label dispersion: hand-made sequences, and trackers against stored histories."""

import numpy as np
import pytest
import torch

import alkernels as alk
from alkernels.strategies import committee, dynamics

SEQUENCES = {"0101": 1, "1110": 1, "0000": float("inf"), "0111": 0, "1010": 2}


def rows(words):
    return torch.tensor([[int(c) for c in w] for w in words])


class TestForgetting:
    def test_hand_made_sequences(self):
        history = rows(SEQUENCES)
        assert dynamics.forgetting(history).tolist() == list(SEQUENCES.values())
        assert dynamics.forgetting(history.bool().numpy(), never="T").tolist() == [1, 1, 4, 0, 2]
        tracker = alk.strategies.ForgettingTracker(5)
        for right in history.T:
            tracker.update(torch.arange(5), right, labels=torch.ones(5, dtype=torch.int64))
        assert tracker.scores().tolist() == list(SEQUENCES.values())
        assert tracker.scores(never="T").tolist() == [1, 1, 4, 0, 2]
        assert tracker.unforgettable.tolist() == [False, False, False, True, False]

    def test_the_tracker_counts_minibatches_in_any_order(self, rng):
        right = torch.rand(40, 12, generator=rng) < 0.6
        tracker = alk.strategies.ForgettingTracker(40)
        for epoch in range(12):
            for some in torch.randperm(40, generator=rng).split(7):
                logits = torch.stack([~right[some, epoch], right[some, epoch]], 1).float()
                tracker.update(some, logits, labels=torch.ones(len(some), dtype=torch.int64))
        assert torch.equal(tracker.scores(), dynamics.forgetting(right))

    def test_an_example_that_is_in_a_batch_twice(self):
        tracker = alk.strategies.ForgettingTracker(3)
        tracker.update([1, 1, 2, 1], predictions=[1, 0, 1, 1], labels=[1, 1, 1, 1])
        assert tracker.events.tolist() == [0, 1, 0] and tracker.presentations.tolist() == [0, 3, 1]
        assert tracker.scores().isnan().tolist() == [True, False, False]
        # rows that were never presented cannot be picked, and do not stand in the way of others
        assert alk.strategies.top_scores(tracker.scores(), 1, candidates=[1, 2]).indices.tolist() == [1]
        with pytest.raises(ValueError, match="scores must not be NaN, got NaN in row 0"):
            alk.strategies.top_scores(tracker.scores(), 1)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
    def test_integers_of_any_kind(self, dtype):
        tracker = alk.strategies.ForgettingTracker(3)
        tracker.update(np.array([0, 2], dtype), np.array([1, 0], dtype), labels=np.array([1, 1], dtype))
        assert tracker.learned.tolist() == [True, False, False]

    def test_state_goes_with_a_checkpoint(self, tmp_path):
        tracker = alk.strategies.ForgettingTracker(3)
        tracker.update([0, 1], [1, 0], labels=[1, 1])
        torch.save(tracker.state_dict(), tmp_path / "tracker.pt")
        again = alk.strategies.ForgettingTracker(3)
        again.load_state_dict(torch.load(tmp_path / "tracker.pt", weights_only=True))
        for t in (tracker, again):
            t.update([0], [0], labels=[1])
        assert again.events.tolist() == tracker.events.tolist() == [1, 0, 0]
        with pytest.raises(ValueError, match="state must hold events"):
            alk.strategies.ForgettingTracker(4).load_state_dict(tracker.state_dict())

    def test_bad_input(self):
        with pytest.raises(ValueError, match="never must be 'inf' or 'T', got 'always'"):
            dynamics.forgetting(rows(["01"]), never="always")
        with pytest.raises(ValueError, match="correct must hold 0 and 1, got 2 in row 1"):
            dynamics.forgetting(torch.tensor([[0, 1], [2, 0]]))
        with pytest.raises(ValueError, match="at least one column"):
            dynamics.forgetting(torch.zeros(3, 0))
        tracker = alk.strategies.ForgettingTracker(2)
        with pytest.raises(ValueError, match="indices must be between 0 and 1, got 2"):
            tracker.update([2], [0], labels=[0])
        with pytest.raises(ValueError, match="indices must be 1 row numbers"):
            tracker.update([0, 1], [0], labels=[0])
        with pytest.raises(ValueError, match="labels must be of shape"):
            tracker.update([0], [0], labels=[0, 1])
        with pytest.raises(ValueError, match="predictions must not be NaN"):
            tracker.update([0], [[0.0, float("nan")]], labels=[0])
        with pytest.raises(ValueError, match="predictions must be classes"):
            tracker.update([0, 1], [[0.3], [0.7]], labels=[0, 1])
        with pytest.raises(ValueError, match="count must be at least 1"):
            alk.strategies.ForgettingTracker(0)


class TestDispersion:
    def test_is_the_variation_ratio_of_epochs(self, rng):
        history = torch.randint(0, 4, (50, 9), generator=rng)
        scores = dynamics.label_dispersion(history)
        assert torch.equal(scores, committee.variation_ratio(votes=history))
        by_hand = [1 - np.bincount(h).max() / 9 for h in history.numpy()]
        assert scores.tolist() == pytest.approx(by_hand)
        tracker = alk.strategies.DispersionTracker(50, 4)
        for epoch in history.T:
            tracker.update(epoch)
        assert torch.equal(tracker.scores(), scores)

    def test_burn_in_and_partial_updates(self):
        tracker = alk.strategies.DispersionTracker(3, 2, start_epoch=1)
        tracker.update([1, 1], indices=[0, 2])
        tracker.update([[0.9, 0.1], [0.2, 0.8]], indices=[0, 2])
        tracker.update([1, 1], indices=[0, 2])
        assert tracker.scores()[[0, 2]].tolist() == [0.5, 0.0]
        assert tracker.scores()[1].isnan()

    def test_bad_input(self):
        with pytest.raises(ValueError, match="at least one column"):
            dynamics.label_dispersion(torch.zeros(3, 0, dtype=torch.int64))
        with pytest.raises(ValueError, match="predictions must not be negative, got -1 in row 1"):
            dynamics.label_dispersion(torch.tensor([[0], [-1]]))
        with pytest.raises(TypeError, match="predictions must hold class numbers"):
            dynamics.label_dispersion(torch.zeros(3, 2))
        tracker = alk.strategies.DispersionTracker(3, 2)
        with pytest.raises(ValueError, match="predictions must be of all 3 rows"):
            tracker.update([0])
        with pytest.raises(ValueError, match="predictions must be between 0 and 1, got 2"):
            tracker.update([0, 1, 2])
        with pytest.raises(ValueError, match="indices must name each row once"):
            tracker.update([0, 1], indices=[1, 1])
        with pytest.raises(ValueError, match="num_classes must be at least 1"):
            alk.strategies.DispersionTracker(3, 0)
