"""modAL's query strategies: its own scores, the pair that its learners need, and what it has not."""

# ruff: noqa: NPY002 (the host draws from NumPy's global state)

import importlib
import sys

import numpy as np
import pytest

pytest.importorskip("modAL.models")

import modAL.disagreement
import modAL.uncertainty
from modAL.models import ActiveLearner, Committee
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import alkernels as alk
from alkernels.integrations import modal as ours

UNCERTAINTY = ["uncertainty_sampling", "margin_sampling", "entropy_sampling"]
DISAGREEMENT = ["vote_entropy_sampling", "consensus_entropy_sampling", "max_disagreement_sampling"]
OTHERS = ["k_center_sampling", "kmeans_plusplus_sampling", "badge_sampling"]
DRAWS = np.random.RandomState(0)
X, Y = DRAWS.randn(80, 4), DRAWS.randint(0, 3, 80)
POOL = X[30:]


def learner(strategy=modAL.uncertainty.uncertainty_sampling, x=X[:30], labels=Y[:30], **options):
    return ActiveLearner(LogisticRegression(), strategy, x, labels, **options)


def committee(strategy=modAL.disagreement.vote_entropy_sampling, labels=Y):
    members = [learner(x=X[5 * i : 5 * i + 18], labels=labels[5 * i : 5 * i + 18]) for i in range(5)]
    return Committee(members, strategy)


def both(name):
    theirs = modAL.uncertainty if name in UNCERTAINTY else modAL.disagreement
    model = learner() if name in UNCERTAINTY else committee()
    return getattr(ours, name), getattr(theirs, name), model


@pytest.mark.parametrize("name", [*UNCERTAINTY, *DISAGREEMENT])
def test_scores_are_modal_s_and_come_best_first(name):
    mine, theirs, model = both(name)
    every, all_scores = theirs(model, POOL, n_instances=50)
    indices, scores = mine(model, POOL, n_instances=12)
    by_row = np.empty(50)
    by_row[every] = all_scores
    np.testing.assert_allclose(scores, by_row[indices], atol=1e-12)
    best = by_row if name == "margin_sampling" else -by_row
    assert np.allclose(np.sort(best)[:12], best[indices])
    assert len(set(indices)) == 12 and indices.dtype == np.int64


@pytest.mark.parametrize("name", UNCERTAINTY)
def test_without_ties_the_picks_are_modal_s(name):
    mine, theirs, model = both(name)
    assert set(mine(model, POOL, n_instances=9)[0]) == set(theirs(model, POOL, n_instances=9)[0])
    assert mine(model, POOL)[0].tolist() == theirs(model, POOL)[0].tolist()


@pytest.mark.parametrize("name", [*UNCERTAINTY, *OTHERS])
def test_a_learner_gets_its_rows_and_metrics(name):
    model = learner(getattr(ours, name))
    indices, rows, metrics = model.query(POOL, n_instances=5, return_metrics=True)
    assert indices.shape == metrics.shape == (5,) and len(set(indices)) == 5
    assert np.array_equal(rows, POOL[indices])


@pytest.mark.parametrize("name", [*DISAGREEMENT, "bald_sampling", "k_center_sampling"])
def test_a_committee_gets_its_rows(name):
    indices, rows = committee(getattr(ours, name)).query(POOL, n_instances=5)
    assert len(set(indices)) == 5 and np.array_equal(rows, POOL[indices])


def test_the_strategy_is_run_once():
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return ours.margin_sampling(*arguments, **options)

    learner(counted).query(POOL, n_instances=2)
    assert len(calls) == 1


def test_bald_is_the_mean_divergence_to_the_consensus():
    model = committee()
    indices, scores = ours.bald_sampling(model, POOL, n_instances=50)
    np.testing.assert_allclose(scores, np.sort(alk.bald(model.vote_proba(POOL)))[::-1], atol=1e-14)
    assert sorted(indices) == list(range(50))


def test_votes_for_names_are_counted():
    names = np.array(["ant", "bee", "cow"])[Y]
    wanted = ours.vote_entropy_sampling(committee(), POOL, n_instances=50)
    found = ours.vote_entropy_sampling(committee(labels=names), POOL, n_instances=50)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-12)
    with pytest.raises(ValueError, match="could not convert string"):
        modAL.disagreement.vote_entropy_sampling(committee(labels=names), POOL)


def test_ties_are_broken_by_numpy_s_global_state_only_when_asked():
    same = np.zeros((20, 4))
    model = learner()
    assert ours.entropy_sampling(model, same, n_instances=4)[0].tolist() == [0, 1, 2, 3]
    runs = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        runs.append(ours.entropy_sampling(model, same, n_instances=4, random_tie_break=True)[0].tolist())
    assert runs[0] == runs[1] != runs[2]
    np.random.seed(0)
    ordered = ours.entropy_sampling(model, POOL, n_instances=9, random_tie_break=True)
    assert ordered[0].tolist() == ours.entropy_sampling(model, POOL, n_instances=9)[0].tolist()


@pytest.mark.parametrize("name", UNCERTAINTY)
def test_a_model_that_is_not_fitted_finds_all_rows_the_same(name):
    model = ActiveLearner(LogisticRegression(), getattr(ours, name))
    indices, metrics = getattr(ours, name)(model, POOL, n_instances=3)
    assert indices.tolist() == [0, 1, 2] and len(set(metrics)) == 1


def test_k_center_is_the_kernel_s_on_labeled_rows():
    indices, scores = ours.k_center_sampling(learner(), POOL, n_instances=6)
    wanted = alk.k_center_greedy(POOL, 6, labeled=X[:30])
    assert indices.tolist() == wanted.indices.tolist()
    np.testing.assert_allclose(scores, wanted.scores)
    assert scores[0] == pytest.approx(np.linalg.norm(POOL[:, None] - X[:30], axis=2).min(1).max())
    sparse = learner(x=csr_matrix(X[:30]))
    assert ours.k_center_sampling(sparse, csr_matrix(POOL), n_instances=6)[0].tolist() == indices.tolist()
    other = ours.k_center_sampling(learner(), POOL, n_instances=6, metric="cosine")[0]
    assert other.tolist() == alk.k_center_greedy(POOL, 6, labeled=X[:30], metric="cosine").indices.tolist()


def test_k_center_of_nothing_labeled_begins_anywhere():
    model = ActiveLearner(LogisticRegression(), ours.k_center_sampling)
    starts = []
    for seed in (0, 0, 1, 2):
        np.random.seed(seed)
        indices, scores = ours.k_center_sampling(model, POOL, n_instances=3)
        starts.append(int(indices[0]))
        assert scores[0] == np.inf
    assert starts[0] == starts[1] and len(set(starts)) > 1


def test_features_are_the_pipeline_s_or_those_asked_for():
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    scaled = X * [1, 10, 100, 1000]
    model = ActiveLearner(pipeline, ours.k_center_sampling, scaled[:30], Y[:30], on_transformed=True)
    indices, _ = model.query(scaled[30:], n_instances=6)
    scaler = StandardScaler().fit(scaled[:30])
    wanted = alk.k_center_greedy(scaler.transform(scaled[30:]), 6, labeled=scaler.transform(scaled[:30]))
    assert indices.tolist() == wanted.indices.tolist()
    first = ours.k_center_sampling(learner(), POOL, n_instances=6, features=lambda x: x[:, :1])[0]
    assert first.tolist() == alk.k_center_greedy(POOL[:, :1].copy(), 6, labeled=X[:30, :1].copy()).indices.tolist()


def test_badge_is_the_catalogue_s():
    model = learner()
    np.random.seed(3)
    seed = int(np.random.randint(2**31 - 1))
    np.random.seed(3)
    indices, _ = ours.badge_sampling(model, POOL, n_instances=7)
    wanted = alk.select("badge", 7, probs=model.predict_proba(POOL), features=POOL, generator=seed)
    assert indices.tolist() == wanted.indices.tolist()


def test_integer_rows_are_taken():
    rows = (10 * POOL).astype(int)
    model = learner(x=(10 * X[:30]).astype(int))
    assert len(ours.k_center_sampling(model, rows, n_instances=4)[0]) == 4


@pytest.mark.parametrize("name", [*UNCERTAINTY, *OTHERS])
def test_bad_counts_are_named(name):
    function = getattr(ours, name)
    with pytest.raises(ValueError, match=r"n_instances must be between 0 and 50 \(rows of X\), got 51"):
        function(learner(), POOL, n_instances=51)
    with pytest.raises(TypeError, match="n_instances must be"):
        function(learner(), POOL, n_instances=1.5)


def test_probabilities_that_are_none_are_refused():
    class Strange:
        def predict_proba(self, x):
            return np.full((len(x), 3), 0.9)

    with pytest.raises(ValueError, match="probs must hold probabilities that sum to 1"):
        ours.margin_sampling(Strange(), POOL)
    with pytest.raises(TypeError, match="random_tie_break must be"):
        ours.margin_sampling(learner(), POOL, random_tie_break="yes")


def test_a_missing_host_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "alkernels.integrations.modal")
    monkeypatch.setitem(sys.modules, "sklearn.exceptions", None)
    with pytest.raises(ImportError, match=r"needs the package scikit-learn: pip install 'alkernels\[modal\]'"):
        importlib.import_module("alkernels.integrations.modal")
