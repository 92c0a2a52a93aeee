"""baal's heuristics: equal scores where baal is right, its loop, and what it gets wrong."""

# ruff: noqa: NPY002 (the host draws from NumPy's global state)

import importlib
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import special

pytest.importorskip("baal")

from baal.active import ActiveLearningDataset, ActiveLearningLoop, heuristics
from baal.active.heuristics import stochastics
from torch.utils.data import TensorDataset

import alkernels as alk
from alkernels.integrations import baal as ours

SCORES = ["BALD", "Entropy", "Margin", "Certainty"]
SAMPLERS = ["PowerSampling", "GibbsSampling", "RankBasedSampling"]


def logits(shape=(40, 4, 10), seed=0, dtype=np.float64):
    return (2 * np.random.RandomState(seed).randn(*shape)).astype(dtype)


def probs(shape=(40, 4, 10), seed=0, dtype=np.float64):
    return special.softmax(logits(shape, seed), 1).astype(dtype)


def chunks(array, size=7):
    return (array[begin : begin + size] for begin in range(0, len(array), size))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("shape", [(40, 4, 10), (12, 3, 5, 6, 7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_baal_s_scores_and_ranks(name, shape, dtype):
    given = probs(shape, dtype=dtype)
    kept = given.copy()
    theirs, mine = (getattr(m, name)(reduction="mean") for m in (heuristics, ours))
    wanted, scores = theirs.get_ranks(given), mine.get_ranks(given, None)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(scores[1], wanted[1], atol=tolerance)
    np.testing.assert_allclose(mine.compute_score(given), theirs.compute_score(given), atol=tolerance)
    assert mine.compute_score(given).shape == (shape[0], *shape[2:-1])
    if dtype == np.float64:
        assert scores[0].tolist() == wanted[0].tolist()
    assert np.array_equal(given, kept)
    assert mine.reversed == theirs.reversed and isinstance(mine, heuristics.AbstractHeuristic)


@pytest.mark.parametrize("name", SCORES)
def test_chunks_tensors_and_lists_of_one_give_the_same(name):
    given = probs()
    heuristic = getattr(ours, name)()
    ranks, scores = heuristic.get_ranks(given)
    for same in (chunks(given), torch.from_numpy(given), [given]):
        other = heuristic.get_ranks(same)
        assert other[0].tolist() == ranks.tolist()
        np.testing.assert_allclose(other[1], scores, atol=1e-14)
    assert heuristic(given).tolist() == ranks.tolist()


@pytest.mark.parametrize("name", ["Entropy", "Margin", "Certainty"])
def test_one_prediction_a_row_is_enough_but_not_for_bald(name):
    given = probs((20, 4))
    wanted = getattr(heuristics, name)().get_uncertainties(given)
    np.testing.assert_allclose(getattr(ours, name)().get_uncertainties(given), wanted, atol=1e-12)
    with pytest.raises(ValueError, match=r"predictions must have shape \[N, C, ..., K\], got \(20, 4\)"):
        ours.BALD().get_uncertainties(given)


def test_logits_become_probabilities_before_they_are_averaged():
    given = logits()
    turned = special.softmax(given, 1)
    for name in SCORES:
        heuristic = getattr(ours, name)()
        np.testing.assert_allclose(heuristic.compute_score(given), heuristic.compute_score(turned), atol=1e-12)
    np.testing.assert_allclose(ours.BALD().compute_score(given), heuristics.BALD().compute_score(given), atol=1e-12)
    mean = turned.mean(-1)
    wanted = -(mean * np.log(mean)).sum(1)
    np.testing.assert_allclose(ours.Entropy().compute_score(given), wanted, atol=1e-12)
    assert np.abs(heuristics.Entropy().compute_score(given) - wanted).max() > 0.1  # theirs averages logits


def test_one_class_is_a_sigmoid_with_both_its_outcomes():
    given = probs((30, 2, 6))
    one = given[:, 1:]
    np.testing.assert_allclose(ours.BALD().compute_score(one), heuristics.BALD().compute_score(given), atol=1e-12)
    np.testing.assert_allclose(ours.Margin().compute_score(one), heuristics.Margin().compute_score(given), atol=1e-12)
    as_logits = special.logit(one)
    np.testing.assert_allclose(ours.Entropy().compute_score(as_logits), ours.Entropy().compute_score(one), atol=1e-12)
    assert np.abs(heuristics.BALD().compute_score(one) - heuristics.BALD().compute_score(given)).max() > 0.01


def test_half_precision_probabilities_are_no_logits():
    given = probs((50, 10, 4))
    wanted = heuristics.Entropy().compute_score(given)
    assert np.abs(heuristics.Entropy().compute_score(given.astype(np.float16)) - wanted).max() > 0.1
    np.testing.assert_allclose(ours.Entropy().compute_score(given.astype(np.float16)), wanted, atol=5e-3)
    narrow = torch.from_numpy(given).bfloat16()
    np.testing.assert_allclose(ours.Entropy().compute_score(narrow), wanted, atol=2e-2)


@pytest.mark.parametrize(("name", "last"), [("BALD", 0), ("Margin", 10000)])
def test_what_is_not_finite_comes_last_with_baal_s_warning(name, last):
    given = probs()
    given[3, 1, 2] = np.nan
    given[5] = np.nan
    with pytest.warns(UserWarning, match=f"Invalid value in the score, will be put to {last}"):
        ranks, scores = getattr(ours, name)().get_ranks(given)
    assert scores[3] == scores[5] == last
    assert set(ranks[-2:]) == {3, 5}
    rest = [row for row in range(40) if row not in (3, 5)]
    np.testing.assert_allclose(scores[rest], getattr(ours, name)().get_uncertainties(probs())[rest], atol=1e-14)


def test_equal_scores_come_in_the_order_of_the_pool():
    given = np.full((20, 3, 4), 1 / 3)
    assert ours.BALD()(given).tolist() == ours.Margin()(given).tolist() == list(range(20))


def test_shuffling_is_baal_s():
    with pytest.warns(DeprecationWarning, match="shuffle_prop"):
        heuristic = ours.BALD(shuffle_prop=0.9)
    ranks = heuristic(probs((200, 3, 4)))
    assert sorted(ranks) == list(range(200))
    assert ranks.tolist() != ours.BALD()(probs((200, 3, 4))).tolist()


def test_a_reduction_that_is_missing_is_named():
    with pytest.raises(ValueError, match="scores must be one a row to be ordered, got 3 dimensions; reduction"):
        ours.BALD()(probs((6, 3, 4, 4, 5)))
    with pytest.raises(ValueError, match="reduction must bring"):
        ours.Variance(reduction="none")


def test_variance_takes_what_comes():
    for given in (logits((15, 3, 4, 6)), logits((15, 1, 6), dtype=np.float32)):
        wanted = heuristics.Variance().get_ranks(given)
        scores = ours.Variance().get_ranks(given)
        np.testing.assert_allclose(scores[1], wanted[1], rtol=1e-5)
        assert scores[0].tolist() == wanted[0].tolist()


def test_heuristics_combine():
    both = heuristics.CombineHeuristics([ours.BALD(), ours.Entropy()], weights=[0.5, 0.5])
    theirs = heuristics.CombineHeuristics([heuristics.BALD(), heuristics.Entropy()], weights=[0.5, 0.5])
    given = [probs(), probs(seed=1)]
    assert both.get_ranks(given)[0].tolist() == theirs.get_ranks(given)[0].tolist()


def test_epig_is_baal_s():
    given, targets = probs((25, 3, 8)), probs((6, 3, 8), seed=1)
    wanted = heuristics.EPIG().get_ranks(given, targets)
    ranks, scores = ours.EPIG().get_ranks(given, targets)
    np.testing.assert_allclose(scores, wanted[1], atol=1e-5)  # theirs is float32
    assert isinstance(ours.EPIG(), heuristics.EPIG) and ranks[0] == wanted[0][0]
    with pytest.raises(ValueError, match=r"target_predictions must have shape \[N, C, K\], got \(6, 3\)"):
        ours.EPIG().compute_score(given, targets[:, :, 0])


# ---- BatchBALD ----


def test_batchbald_ranks_its_batch_first_best_first():
    given = probs((60, 3, 12))
    ranks, scores = ours.BatchBALD(num_samples=4).get_ranks(given, None)
    wanted = alk.batchbald(np.ascontiguousarray(given.transpose(0, 2, 1)), 4)
    assert ranks[:4].tolist() == wanted.indices.tolist()
    assert sorted(ranks) == list(range(60))
    np.testing.assert_allclose(scores[ranks[:4]], wanted.scores, atol=1e-12)
    assert np.count_nonzero(scores) == 4
    rest = heuristics.BALD().get_uncertainties(given)[ranks[4:]]
    assert np.all(np.diff(rest) <= 1e-12)


def test_baal_loses_the_best_row_of_its_batch_and_this_one_does_not():
    given = probs((60, 3, 12))
    best = int(heuristics.BALD()(given)[0])
    torch.manual_seed(0)
    assert best not in heuristics.BatchBALD(num_samples=4)(given)[:4]
    assert best == ours.BatchBALD(num_samples=4)(given)[0]


def test_batchbald_joins_chunks_takes_logits_and_takes_a_small_pool_whole():
    given = probs((30, 3, 12))
    ranks = ours.BatchBALD(5)(given)
    with pytest.raises(ValueError, match="generators"):
        heuristics.BatchBALD(5)(chunks(given))
    assert ours.BatchBALD(5)(chunks(given)).tolist() == ranks.tolist()
    assert ours.BatchBALD(5)(np.log(given)).tolist() == ranks.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sorted(ours.BatchBALD(50)(given)) == list(range(30))


def test_batchbald_draws_configurations_by_torch_s_global_generator():
    given = probs((40, 4, 12))
    heuristic = ours.BatchBALD(4, num_draw=2, max_configurations=4)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(heuristic.get_uncertainties(given).tolist())
    assert runs[0] == runs[1] != runs[2]


def test_batchbald_puts_rows_that_are_not_finite_last():
    given = probs((20, 3, 12))
    given[4] = np.nan
    with pytest.warns(UserWarning, match="Invalid value"):
        ranks, scores = ours.BatchBALD(3).get_ranks(given)
    assert ranks[-1] == 4 and scores[4] == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.BatchBALD(0), ValueError, "num_samples must be at least 1, got 0"),
        (lambda: ours.BatchBALD(2, num_draw=0), ValueError, "num_draw must be at least 1"),
        (lambda: ours.BatchBALD(2)(probs((4, 3, 2, 5))), ValueError, r"\[N, C, K\] for BatchBALD, got \(4, 3, 2, 5\)"),
        (lambda: ours.BatchBALD(2)(x for x in ()), ValueError, "at least one chunk"),
        (lambda: ours.BALD()([probs(), probs()]), ValueError, "got 2; for models of several outputs"),
        (lambda: ours.BALD()(np.ones((2, 3, 4), int)), TypeError, "predictions must be floating-point"),
        (lambda: ours.PowerSampling(ours.BALD(), -1), ValueError, "query_size must not be negative"),
        (lambda: ours.PowerSampling(ours.BALD(), 2, temperature=0), ValueError, "temperature must be above 0"),
        (lambda: ours.PowerSampling(heuristics.Precomputed(), 1)(np.array([2.0])), ValueError, "no negative scores"),
        (lambda: ours.PowerSampling(ours.BALD(), 1)(probs((4, 3, 2, 5))), ValueError, "set its reduction"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- sampling ----


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_give_baal_s_distribution_and_take_two_arguments(name):
    given = probs()
    theirs = getattr(stochastics, name)(heuristics.BALD(), 5, temperature=0.5)
    mine = getattr(ours, name)(ours.BALD(), 5, temperature=0.5)
    with pytest.raises(TypeError):
        theirs.get_ranks(given, None)
    picks, shares = mine.get_ranks(given, None)
    np.testing.assert_allclose(shares, theirs.get_ranks(given)[1], atol=1e-9)
    assert len(set(picks)) == 5 and isinstance(mine, heuristics.AbstractHeuristic)
    assert mine.get_ranks(chunks(given))[1] == pytest.approx(shares, abs=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_are_drawn_by_the_distribution_that_is_returned(name):
    scores = np.array([0.1, 0.5, 0.5, 1.0])
    heuristic = getattr(ours, name)(heuristics.Precomputed(reverse=True), 1, temperature=0.7)
    np.random.seed(0)
    first = np.bincount([heuristic(scores)[0] for _ in range(2000)], minlength=4) / 2000
    _, shares = heuristic.get_ranks(scores)
    assert shares.sum() == pytest.approx(1) and shares[1] == pytest.approx(shares[2])
    np.testing.assert_allclose(first, shares, atol=0.035)  # over three standard deviations
    assert scores.tolist() == [0.1, 0.5, 0.5, 1.0]  # baal's Gibbs sampling changes them


def test_samplers_follow_numpy_s_global_state():
    heuristic = ours.PowerSampling(ours.BALD(), 8)
    runs = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        runs.append(heuristic(probs()).tolist())
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("name", SAMPLERS)
def test_low_scores_that_mean_uncertain_are_turned_round(name):
    certain, unsure = [[0.98, 0.98], [0.02, 0.02]], [[0.51, 0.51], [0.49, 0.49]]
    given = np.array([certain, unsure])
    assert getattr(stochastics, name)(heuristics.Margin(), 1, 0.5).get_ranks(given)[1].argmax() == 0
    assert getattr(ours, name)(heuristics.Margin(), 1, 0.5).get_ranks(given)[1].argmax() == 1


def test_few_rows_with_a_score_come_first_and_a_small_pool_is_taken_whole():
    scores = np.zeros(30)
    scores[[4, 9]] = 1.0
    heuristic = ours.PowerSampling(heuristics.Precomputed(reverse=True), 5)
    picks = heuristic(scores)
    assert set(picks[:2]) == {4, 9} and len(set(picks)) == 5
    assert sorted(heuristic(scores[:3])) == [0, 1, 2]
    assert len(heuristic(np.zeros(7))) == 5


@pytest.mark.parametrize(
    "heuristic",
    [
        ours.BatchBALD(4),
        ours.BALD(),
        ours.EPIG(),
        ours.PowerSampling(ours.BALD(), 4),
        ours.RankBasedSampling(ours.Margin(), 4),
    ],
)
def test_the_loop_labels_what_is_ranked_first(heuristic):
    given = probs((30, 3, 12))
    dataset = ActiveLearningDataset(TensorDataset(torch.arange(30)))
    dataset.label([0, 1])
    rows = lambda part: np.array([int(part[i][0]) for i in range(len(part))])  # noqa: E731
    loop = ActiveLearningLoop(dataset, lambda pool: given[rows(pool)], heuristic, query_size=4)
    while loop.step():
        assert dataset.n_labelled <= 30
    assert dataset.n_labelled == 30


def test_the_loop_labels_the_best_row():
    given = probs((30, 3, 12))
    dataset = ActiveLearningDataset(TensorDataset(torch.arange(30)))
    loop = ActiveLearningLoop(dataset, lambda pool: given, ours.BatchBALD(3), query_size=3)
    assert loop.step()
    wanted = alk.batchbald(np.ascontiguousarray(given.transpose(0, 2, 1)), 3).indices
    assert set(np.flatnonzero(dataset.labelled)) == set(wanted)


def test_a_missing_host_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "alkernels.integrations.baal")
    monkeypatch.setitem(sys.modules, "baal.active", None)
    with pytest.raises(ImportError, match=r"needs the package baal: pip install 'alkernels\[baal\]'"):
        importlib.import_module("alkernels.integrations.baal")
