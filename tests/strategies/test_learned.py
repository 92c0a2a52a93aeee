"""Scores of learned acquisition: what is made of a module's word."""

import math

import numpy as np
import pytest
import torch

import alkernels as alk
from alkernels.strategies import learned


def test_predicted_losses_as_they_are():
    losses = torch.tensor([0.5, -2.0, 3.0])
    scores = learned.loss_prediction(losses)
    assert scores.tolist() == [0.5, -2.0, 3.0] and scores.dtype == torch.float64
    scores[0] = 9.0  # a result of the caller's own
    assert losses[0] == 0.5 and isinstance(learned.loss_prediction(losses.numpy()), np.ndarray)
    same = losses.double()
    learned.loss_prediction(same)[0] = 9.0
    assert same[0] == 0.5
    assert alk.select("loss_prediction", 2, predicted_losses=losses).indices.tolist() == [2, 0]


def test_the_smallest_probability_of_being_labelled_first():
    seen = torch.tensor([0.9, 1e-20, 1e-12, 0.4])  # 1 - D would not tell the middle ones apart
    assert alk.select("vaal", 4, discriminator=seen).indices.tolist() == [1, 2, 3, 0]
    assert torch.equal(learned.vaal(seen), -seen.double())


def entropy(*p):
    return -sum(q * math.log(q) for q in p if q > 0)


def test_mal_filters_and_fills_up():
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    seen = torch.tensor([0.6, 0.2, 0.4, 0.5, 0.1], dtype=torch.float64)
    picked = alk.select("mal", 5, probs=probs, discriminator=seen)
    # 2, 1 and 4 look unlabelled, by entropy; then 3 (.5) before 0 (.6): the surer of being labelled, the later
    assert picked.indices.tolist() == [2, 1, 4, 3, 0]
    expected = [entropy(0.6, 0.4), entropy(0.9, 0.1), 0.0, -0.5, -0.6]
    assert picked.scores.tolist() == pytest.approx(expected, abs=1e-12)
    product = alk.select("mal", 5, probs=probs, discriminator=seen, combine="product")
    scores = [(1 - d) * entropy(*p) / math.log(2) for d, p in zip(seen.tolist(), probs.tolist(), strict=True)]
    assert learned.mal(probs, seen, combine="product").tolist() == pytest.approx(scores, abs=1e-12)
    assert product.indices.tolist() == sorted(range(5), key=lambda i: -scores[i])


def test_one_class_has_no_entropy():
    assert learned.mal(torch.ones(2, 1), [0.2, 0.3], combine="product").tolist() == [0, 0]


def test_what_is_refused():
    probs = torch.full((3, 2), 0.5)
    for bad, said in (([0.1, 1.2, 0.3], "got 1.2 in row 1"), ([0.1, 0.2, -0.5], "got -0.5 in row 2")):
        with pytest.raises(ValueError, match=f"discriminator must hold probabilities, between 0 and 1, {said}"):
            learned.vaal(bad)
        with pytest.raises(ValueError, match="discriminator must hold probabilities"):
            learned.mal(probs, bad)
    with pytest.raises(ValueError, match=r"discriminator must be of shape \(3,\), one a row, got shape \(2,\)"):
        learned.mal(probs, [0.1, 0.2])
    with pytest.raises(ValueError, match="combine must be 'filter' or 'product', got 'sum'"):
        learned.mal(probs, [0.1, 0.2, 0.3], combine="sum")
    with pytest.raises(ValueError, match="predicted_losses must be finite, got inf in row 1"):
        learned.loss_prediction([0.0, float("inf")])
