# ruff: noqa: E402, NPY002 - what needs the host comes after it; its random state is the legacy one
"""Ours against scikit-activeml's own strategies: equal where those are right, and without their bugs."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

theirs = pytest.importorskip("skactiveml.pool")

from skactiveml.base import SingleAnnotatorPoolQueryStrategy, SkactivemlClassifier
from skactiveml.classifier import ParzenWindowClassifier
from skactiveml.exceptions import MappingError
from skactiveml.regressor import NICKernelRegressor
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import pairwise_distances

from alkernels.integrations import skactiveml as ours

_RANDOM = np.random.RandomState(0)
X = _RANDOM.randn(60, 4)
Y = np.full(60, np.nan)
Y[:6] = [0, 1, 2, 0, 1, 2]
COSTS = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [5.0, 1.0, 0.0]])
CLF = ParzenWindowClassifier(classes=[0, 1, 2], metric_dict={"gamma": 0.3})
MEMBERS = [ParzenWindowClassifier(classes=[0, 1, 2], metric_dict={"gamma": g}) for g in (0.05, 0.2, 0.5, 1.0, 2.0)]
WITH_CLF = {"Badge", "UncertaintySampling", "ContrastiveAL"}
WITH_ENSEMBLE = {"BatchBALD", "GreedyBALD", "QueryByCommittee"}
CLUSTERED = {"TypiClust", "ProbCover"}
STRATEGIES = [name for name in ours.__all__ if inspect.isclass(getattr(ours, name))]


class Says(SkactivemlClassifier):
    """A classifier that gives the same predictions whatever it is asked about; or those of members."""

    def __init__(self, said=None, classes=None, missing_label=np.nan, random_state=None):
        super().__init__(classes=classes, missing_label=missing_label, random_state=random_state)
        self.said = said

    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.array(self.classes)
        return self

    def predict_proba(self, X):
        return self.said

    def draws(self, X):
        return self.said


class Linear(Says):
    """Softmax of some columns: nothing of the pool's size squared."""

    def predict_proba(self, X):
        e = np.exp(X @ np.asarray(self.said))
        return e / e.sum(1, keepdims=True)


def more(name):
    return {"clf": CLF} if name in WITH_CLF else {"ensemble": MEMBERS} if name in WITH_ENSEMBLE else {}


def both(name, candidates=None, batch_size=4, **options):
    given = {"candidates": candidates, "batch_size": batch_size, "return_utilities": True, **more(name)}
    return [getattr(module, name)(random_state=0, **options).query(X, Y, **given) for module in (ours, theirs)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_names_and_parameters_are_theirs(name):
    mine, host = getattr(ours, name), getattr(theirs, name)
    assert issubclass(mine, SingleAnnotatorPoolQueryStrategy)
    for function in ("__init__", "query"):
        a, b = (inspect.signature(getattr(kind, function)).parameters for kind in (mine, host))
        assert [(p.name, p.kind) for p in a.values()] == [(p.name, p.kind) for p in b.values()]
        for p in a.values():
            assert p.default is b[p.name].default or p.default == b[p.name].default
    strategy = mine(random_state=3)
    assert strategy.get_params() == {**host().get_params(), "random_state": 3}
    assert clone(strategy).get_params() == strategy.get_params()


EQUAL = [
    ("CoreSet", {}),
    ("CoreSet", {"metric": "cosine"}),
    ("CoreSet", {"metric": "manhattan"}),
    ("CoreSet", {"metric": "minkowski", "metric_dict": {"p": 3}}),
    ("BatchBALD", {"n_MC_samples": 1000}),
    ("GreedyBALD", {}),
    ("QueryByCommittee", {}),
    *[("UncertaintySampling", {"method": m}) for m in ("least_confident", "margin_sampling", "entropy")],
    *[("UncertaintySampling", {"method": m, "cost_matrix": COSTS}) for m in ("least_confident", "margin_sampling")],
    ("ContrastiveAL", {}),
    ("ContrastiveAL", {"nearest_neighbors_dict": {"n_neighbors": 3, "metric": "cosine"}}),
    ("ContrastiveAL", {"nearest_neighbors_dict": {"metric": "manhattan"}}),
    ("ContrastiveAL", {"eps": 0.1}),
    ("MaxHerding", {}),
    ("MaxHerding", {"metric": "cosine"}),
    ("MaxHerding", {"metric": "linear", "normalize_samples": False}),
    ("TypiClust", {"cluster_algo": AgglomerativeClustering}),
    ("TypiClust", {"cluster_algo": AgglomerativeClustering, "k": 2}),
]


@pytest.mark.parametrize("name, options", EQUAL)
@pytest.mark.parametrize("kind", ["all", "indices", "samples"])
def test_equal_where_theirs_is_right(name, options, kind):
    candidates = {"all": None, "indices": np.arange(10, 50), "samples": X[10:50] + 0.01}[kind]
    if name in CLUSTERED and kind == "samples":
        with pytest.raises(MappingError):
            both(name, candidates, **options)
        return
    mine, host = both(name, candidates, **options)
    np.testing.assert_array_equal(mine[0], host[0])
    # theirs raises probabilities to 1e-7
    np.testing.assert_allclose(mine[1], host[1], atol=2e-6 if name in WITH_ENSEMBLE else 1e-7)


@pytest.mark.parametrize("name", ["CoreSet", "MaxHerding"])
def test_equal_without_labels(name):
    y = np.full(60, np.nan)
    mine, host = (
        getattr(m, name)(random_state=1).query(X, y, batch_size=1, return_utilities=True)[1] for m in (ours, theirs)
    )
    np.testing.assert_allclose(mine, host, atol=1e-12)
    picks, utilities = getattr(ours, name)(random_state=1).query(X, y, batch_size=5, return_utilities=True)
    if name == "CoreSet":
        apart = pairwise_distances(X)
        for step in range(1, 5):
            nearest = apart[:, picks[:step]].min(1)
            assert nearest[picks[step]] == pytest.approx(nearest.max())
            free = ~np.isnan(utilities[step])
            np.testing.assert_allclose(utilities[step, free], nearest[free])
    else:
        np.testing.assert_array_equal(picks, theirs.MaxHerding(random_state=1).query(X, y, batch_size=5))


@pytest.mark.parametrize("method", ["vote_entropy", "variation_ratios"])
def test_votes_are_scored_alike(method):
    """Votes are tied nearly always: utilities and not picks must agree."""
    mine, host = both("QueryByCommittee", batch_size=1, method=method)
    np.testing.assert_allclose(mine[1], host[1], atol=1e-12)
    assert len(np.unique(mine[1][~np.isnan(mine[1])])) > 2
    named = np.array(["a", "b", "c"], dtype=object)
    y = np.array([None] * 60, dtype=object)
    y[:6] = named[[0, 1, 2, 0, 1, 2]]
    members = [clone(m).set_params(classes=["a", "b", "c"], missing_label=None) for m in MEMBERS]
    strategy = ours.QueryByCommittee(method, missing_label=None, random_state=0)
    utilities = strategy.query(X, y, members, return_utilities=True)[1]
    np.testing.assert_allclose(utilities, host[1], atol=1e-12)


def test_regressors_are_scored_alike():
    y = np.where(np.isnan(Y), np.nan, X[:, 0])
    members = [NICKernelRegressor(metric_dict={"gamma": g}) for g in (0.1, 1.0, 5.0)]
    mine, host = (
        m.QueryByCommittee(random_state=0).query(X, y, members, batch_size=3, return_utilities=True)
        for m in (ours, theirs)
    )
    np.testing.assert_array_equal(mine[0], host[0])
    np.testing.assert_allclose(mine[1], host[1])


def test_average_precision_and_weights():
    few = np.arange(6, 16)
    weights = np.linspace(0.5, 2, 60)
    for options in ({"method": "expected_average_precision"}, {"method": "entropy"}):
        mine, host = (
            m.UncertaintySampling(random_state=0, **options).query(
                X, Y, CLF, utility_weight=weights, candidates=few, batch_size=3, return_utilities=True
            )
            for m in (ours, theirs)
        )
        np.testing.assert_array_equal(mine[0], host[0])
        np.testing.assert_allclose(mine[1], host[1])
    with pytest.raises(ValueError, match=r"utility_weight must be of shape \(n_samples,\) = \(60,\), got \(10,\)"):
        ours.UncertaintySampling().query(X, Y, CLF, utility_weight=weights[:10], candidates=few)


def _cover_by_definition(x, labeled, candidates, picks, delta):
    inside = pairwise_distances(x) <= delta
    covered = inside[labeled].any(0)
    utilities = np.full((len(picks), len(x)), np.nan)
    for step, pick in enumerate(picks):
        free = np.setdiff1d(candidates, picks[:step])
        utilities[step, free] = (inside[free] & ~covered).sum(1)
        covered |= inside[pick]
    return utilities


@pytest.mark.parametrize("distance_func", [pairwise_distances, lambda x: pairwise_distances(x)])
@pytest.mark.parametrize("candidates", [None, np.arange(10, 40)])
def test_probcover_is_greedy_with_closed_balls(distance_func, candidates):
    x = np.arange(60.0)[:, None]  # distances that are equal to the radius
    y = np.full(60, np.nan)
    y[[20, 30]] = 1.0
    strategy = ours.ProbCover(deltas=[2.0], distance_func=distance_func, random_state=0)
    picks, utilities = strategy.query(x, y, candidates=candidates, batch_size=6, return_utilities=True)
    free = np.flatnonzero(np.isnan(y)) if candidates is None else candidates
    expected = _cover_by_definition(x, ~np.isnan(y), free, picks, 2.0)
    np.testing.assert_array_equal(utilities, expected)
    for step, pick in enumerate(picks):
        assert utilities[step, pick] == np.nanmax(utilities[step])
    assert utilities[0, picks[0]] == 5
    np.testing.assert_array_equal(strategy.query(x, y, candidates=candidates, batch_size=6), picks)


@pytest.mark.filterwarnings("ignore:The maximum purity")
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_probcover_chooses_their_radius(alpha):
    options = {"alpha": alpha, "deltas": np.arange(0.1, 3, 0.1), "cluster_algo": AgglomerativeClustering}
    strategies = [m.ProbCover(random_state=0, **options) for m in (ours, theirs)]
    utilities = [s.query(X, Y, return_utilities=True)[1] for s in strategies]
    assert strategies[0].delta_max_ == pytest.approx(strategies[1].delta_max_)
    np.testing.assert_array_equal(*utilities)
    of_manhattan = lambda x: pairwise_distances(x, metric="manhattan")  # noqa: E731
    strategies = [m.ProbCover(random_state=0, distance_func=of_manhattan, **options) for m in (ours, theirs)]
    utilities = [s.query(X, Y, return_utilities=True)[1] for s in strategies]
    assert strategies[0].delta_max_ == pytest.approx(strategies[1].delta_max_)
    np.testing.assert_array_equal(*utilities)


def test_probcover_keeps_the_radius_and_nothing_else():
    strategy = ours.ProbCover(cluster_algo=AgglomerativeClustering, alpha=0.2, random_state=0)
    strategy.query(X, Y)
    before = strategy.delta_max_
    strategy.query(10 * X[:30], Y[:30])  # theirs still holds the distances of the first samples
    assert strategy.delta_max_ == before
    assert not any(isinstance(v, np.ndarray) for v in vars(strategy).values())
    with pytest.warns(UserWarning, match="the purity of the smallest radius in deltas, 5, is"):
        ours.ProbCover(deltas=[5.0, 6.0], random_state=0).query(X, Y)


def test_probcover_warns_of_no_purity_it_did_not_measure(recwarn):
    ours.ProbCover(deltas=[0.5], random_state=0).query(X, Y)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="maximum purity was -1"):
        theirs.ProbCover(deltas=[0.5], random_state=0).query(X, Y)


def test_probcover_is_covered_by_labels_only():
    x, y = np.array([[0.0], [1.0], [1.1], [5.0]]), np.array([0.0, np.nan, np.nan, np.nan])
    given = {"candidates": [1, 3], "return_utilities": True}
    with pytest.warns(UserWarning, match="purity"):
        assert theirs.ProbCover(deltas=[0.5], random_state=0).query(x, y, **given)[1][0, 1] == 0
    assert ours.ProbCover(deltas=[0.5], random_state=0).query(x, y, **given)[1][0, 1] == 2


@pytest.mark.parametrize("name", ["CoreSet", "UncertaintySampling", "ProbCover"])
def test_any_of_tied_candidates_is_as_likely(name):
    x, y = np.repeat(np.arange(5.0), 2).reshape(5, 2), np.full(5, np.nan)
    options = {"deltas": [0.1]} if name == "ProbCover" else {}
    given = {"clf": Says(np.full((5, 2), 0.5), classes=[0, 1]), "fit_clf": True} if name in WITH_CLF else {}
    counts = np.zeros(5)
    for seed in range(500):
        counts[getattr(ours, name)(random_state=seed, **options).query(x, y, **given)] += 1
    assert ((counts - 100) ** 2 / 100).sum() < 23.5  # chi squared of 4 degrees: 1e-4


def test_their_wrappers_take_ours():
    wrapped = theirs.SubSamplingWrapper(ours.CoreSet(random_state=0), max_candidates=20, random_state=0)
    picks, utilities = wrapped.query(X, Y, batch_size=3, return_utilities=True)
    assert len(set(picks)) == 3
    assert np.isfinite(utilities[0]).sum() == 20


# ---- bugs that theirs has ----


def test_badge_picks_nothing_twice():
    """Their issue 586."""
    x, y = np.zeros((10, 2)), np.full(10, np.nan)
    x[5:] = [1.0, 2.0]
    said = Says(np.tile([0.7, 0.3], (10, 1)), classes=[0, 1]).fit(None, None)
    twice = 0
    for seed in range(10):
        given = {"clf": said, "fit_clf": False, "batch_size": 6}
        twice += len(set(theirs.Badge(random_state=seed).query(x, y, **given))) < 6
        assert len(set(ours.Badge(random_state=seed).query(x, y, **given))) == 6
    assert twice


def test_badge_draws_by_its_utilities():
    """Each row of them sums to 1 (587), and the distances are to picks, not to the origin (588)."""
    x, y = np.array([[1.0], [1.1], [2.0], [-3.0]]), np.full(4, np.nan)
    said = Says(np.tile([0.6, 0.4], (4, 1)), classes=[0, 1]).fit(None, None)
    given = {"clf": said, "fit_clf": False, "batch_size": 3, "return_utilities": True}
    squared = np.array([1.0, 1.21, 4.0, 9.0])
    first, second = np.zeros(4), np.zeros(4)
    for seed in range(400):
        picks, utilities = ours.Badge(random_state=seed).query(x, y, **given)
        np.testing.assert_allclose(np.nansum(utilities, 1), 1)
        np.testing.assert_allclose(utilities[0], squared / squared.sum())
        assert picks[0] == 3
        far = np.array([16.0, 16.81, 25.0, np.nan])
        np.testing.assert_allclose(utilities[1], far / np.nansum(far))
        first[picks[1]] += 1
        if picks[1] == 2:
            np.testing.assert_allclose(utilities[2], [1 / 1.81, 0.81 / 1.81, np.nan, np.nan])
            second[picks[2]] += 1
    expected = np.array([16.0, 16.81, 25.0, 0.0]) / 57.81
    assert (np.abs(first / 400 - expected) < 4 * np.sqrt(expected * (1 - expected) / 400) + 1e-9).all()
    n = second.sum()
    assert abs(second[0] / n - 1 / 1.81) < 4 * np.sqrt(0.25 / n)
    rows = theirs.Badge(random_state=0).query(x, y, **given)[1]
    assert rows[1, 2] != pytest.approx(25 / 57.81)


def _ensemble(said):
    return Says(said, classes=list(range(said.shape[2]))).fit(None, None)


def test_batchbald_picks_nothing_twice_among_ties():
    said = np.full((3, 8, 2), 0.5)
    y = np.full(8, np.nan)
    given = {"ensemble": _ensemble(said), "fit_ensemble": False, "batch_size": 4}
    twice, first = 0, set()
    for seed in range(10):
        host = theirs.BatchBALD(sample_predictions_method_name="draws", random_state=seed).query(X[:8], y, **given)
        twice += len(set(host)) < 4
        picks = ours.BatchBALD(sample_predictions_method_name="draws", random_state=seed).query(X[:8], y, **given)
        assert len(set(picks)) == 4
        first.add(picks[0])
    assert twice
    assert len(first) > 2  # ties are broken at random


@pytest.mark.parametrize("name", ["BatchBALD", "GreedyBALD", "QueryByCommittee"])
def test_predictions_stay_as_they_are(name):
    said = np.array([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3])
    before, y = said.copy(), np.full(3, np.nan)
    given = {"ensemble": _ensemble(said), "fit_ensemble": False, "return_utilities": True}
    utilities = getattr(ours, name)(sample_predictions_method_name="draws").query(X[:3], y, **given)[1]
    np.testing.assert_array_equal(said, before)
    np.testing.assert_allclose(utilities, np.log(2))
    getattr(theirs, name)(sample_predictions_method_name="draws").query(X[:3], y, **given)
    assert (said != before).any()


def test_batchbald_with_fewer_samples_than_members():
    said = np.random.RandomState(0).dirichlet(np.ones(3), (6, 20))
    y = np.full(20, np.nan)
    given = {"ensemble": _ensemble(said), "fit_ensemble": False, "batch_size": 3, "return_utilities": True}
    options = {"n_MC_samples": 2, "sample_predictions_method_name": "draws", "random_state": 0}
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        assert np.isnan(theirs.BatchBALD(**options).query(X[:20], y, **given)[1][1]).all()
    picks, utilities = ours.BatchBALD(**options).query(X[:20], y, **given)
    assert len(set(picks)) == 3
    assert np.isnan(utilities).sum() == 1 + 2


def test_batchbald_is_exact_by_default():
    """theirs samples as many configurations as there are members from the second or third pick on."""
    said = np.random.RandomState(1).dirichlet(np.full(3, 0.3), (8, 30))
    y = np.full(30, np.nan)
    given = {"ensemble": _ensemble(said), "fit_ensemble": False, "batch_size": 4, "return_utilities": True}
    exact = theirs.BatchBALD(n_MC_samples=10**4, sample_predictions_method_name="draws", random_state=0)
    host = exact.query(X[:30], y, **{**given, "ensemble": _ensemble(said.copy())})
    picks, utilities = ours.BatchBALD(sample_predictions_method_name="draws", random_state=5).query(X[:30], y, **given)
    np.testing.assert_array_equal(picks, host[0])
    np.testing.assert_allclose(utilities, host[1], atol=1e-4)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def _said(members=4, samples=12, classes=3):
    said = np.random.RandomState(3).dirichlet(np.ones(classes), (members, samples))
    said.flags.writeable = False  # the host's functions clip in place
    return said


@pytest.mark.parametrize("configurations", [27, None])
def test_utilities_of_predictions_are_theirs(configurations):
    said = _said()
    mine = ours.batch_bald(said, 3, n_MC_samples=configurations, random_state=0)
    host = theirs.batch_bald(said.copy(), 3, n_MC_samples=27)
    np.testing.assert_allclose(mine, host, atol=1e-5)
    assert np.isnan(mine).sum() == 1 + 2
    assert ours.batch_bald(said[:, :5], 9).shape == (5, 5)


def test_mean_divergences_of_predictions_are_theirs():
    said = _said()
    np.testing.assert_allclose(ours.average_kl_divergence(said), theirs.average_kl_divergence(said.copy()), atol=1e-9)
    ruled_out = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(ours.average_kl_divergence(ruled_out), np.log(2))


@pytest.mark.parametrize(
    "function", [ours.average_kl_divergence, lambda probas, **kw: ours.batch_bald(probas, 2, **kw)]
)
def test_errors_about_predictions_are_named(function):
    with pytest.raises(
        ValueError, match=r"probas must be of shape \(n_estimators, n_samples, n_classes\), got \(12, 3\)"
    ):
        function(_said()[0])
    with pytest.raises(ValueError, match="eps"):
        function(_said(), eps=0)


def test_typiclust_picks_nothing_twice():
    x, y = np.repeat([[0.0], [5.0]], 6, 0), np.full(12, np.nan)
    twice = 0
    for seed in range(10):
        twice += len(set(theirs.TypiClust(random_state=seed).query(x, y, batch_size=6))) < 6
        picks, utilities = ours.TypiClust(random_state=seed).query(x, y, batch_size=6, return_utilities=True)
        assert len(set(picks)) == 6
        assert x[picks[0]] != x[picks[1]]
        np.testing.assert_array_equal(utilities[2][~np.isnan(utilities[2])], 1)
    assert twice


def test_typiclust_passes_over_clusters_without_candidates():
    x = np.array([[0.0], [0.1], [0.2], [9.0], [9.1]])
    y = np.full(5, np.nan)
    picks, utilities = ours.TypiClust(random_state=0).query(
        x, y, candidates=[3, 4], batch_size=2, return_utilities=True
    )
    assert sorted(picks) == [3, 4]
    # clusters of three and two: the first pick is of the second
    np.testing.assert_allclose(utilities[0, 3:], 1 / 0.1, rtol=1e-5)


# ---- the contract ----


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_that_comes_in_changes(name):
    x, y, before = X.copy(), Y.copy(), np.random.get_state()[1].copy()
    x.flags.writeable = y.flags.writeable = False
    getattr(ours, name)(random_state=np.random.RandomState(0)).query(x, y, **more(name), batch_size=3)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("name", STRATEGIES)
def test_random_state(name):
    """A number gives one answer; nothing given draws from NumPy's global state."""
    make = getattr(ours, name)
    y = np.full(60, np.nan)  # all is tied, or drawn
    x = np.zeros((60, 2)) if name not in CLUSTERED else np.arange(120.0).reshape(60, 2)
    given = {**more(name), "batch_size": 3}
    strategy = make(random_state=np.random.RandomState(3))
    np.testing.assert_array_equal(strategy.query(x, y, **given), strategy.query(x, y, **given))
    state = np.random.get_state()
    try:
        np.random.seed(0)
        a = make().query(x, y, **given)
        b = make().query(x, y, **given)
        np.random.seed(0)
        np.testing.assert_array_equal(a, make().query(x, y, **given))
    finally:
        np.random.set_state(state)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_left_is_an_empty_batch(name):
    with pytest.warns(UserWarning, match="'batch_size=0' was set"):
        indices, utilities = getattr(ours, name)(random_state=0).query(
            X[:6], Y[:6], **more(name), batch_size=2, return_utilities=True
        )
    assert indices.shape == (0,) and utilities.shape == (0, 6)


@pytest.mark.parametrize("name", ["CoreSet", "Badge"])
def test_labeled_candidates_are_left_out(name):
    given = {**more(name), "candidates": [0, 1, 2, 10, 11], "return_utilities": True}
    with pytest.warns(UserWarning, match="batch_size is 3: all 2 candidates without a label are picked"):
        indices, utilities = getattr(ours, name)(random_state=0).query(X, Y, **given, batch_size=3)
    assert sorted(indices) == [10, 11]
    assert (~np.isnan(utilities[0])).nonzero()[0].tolist() == [10, 11]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
@pytest.mark.parametrize("name", ["CoreSet", "Badge", "ContrastiveAL", "TypiClust", "ProbCover", "MaxHerding"])
def test_samples_of_any_type(name, dtype):
    x = np.round(4 * X).astype(dtype)
    picks = getattr(ours, name)(random_state=0).query(x, Y, **more(name), batch_size=3)
    np.testing.assert_array_equal(
        picks, getattr(ours, name)(random_state=0).query(x.astype(np.float64), Y, **more(name), batch_size=3)
    )


def test_classifiers_get_samples_as_they_are():
    seen = []

    class Looks(Says):
        def fit(self, X, y, sample_weight=None):
            seen.append(X.dtype)
            return super().fit(X, y)

        def predict_proba(self, X):
            seen.append(X.dtype)
            return np.full((len(X), 2), 0.5)

    x = np.arange(12).reshape(6, 2)
    y = np.array([0.0, 1.0] + [np.nan] * 4)
    for name in WITH_CLF:
        getattr(ours, name)(random_state=0).query(x, y, Looks(classes=[0, 1]))
    assert set(seen) == {np.dtype(np.int64)} and len(seen) >= 6


@pytest.mark.parametrize("name", ["CoreSet", "UncertaintySampling"])
def test_utilities_are_made_only_when_asked_for(name):
    n, k = 4000, 400
    x = np.random.RandomState(0).randn(n, 2)
    y = np.full(n, np.nan)
    y[:3] = [0, 1, 2]
    clf = Linear(np.random.RandomState(1).randn(2, 3), classes=[0, 1, 2])
    given = {"clf": clf} if name in WITH_CLF else {}
    peaks = {}
    for module in (ours, theirs):
        strategy = getattr(module, name)(random_state=0)
        tracemalloc.start()
        strategy.query(x, y, **given, batch_size=k)
        peaks[module] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[ours] < 0.5 * 8 * n * k < peaks[theirs]


def test_errors_are_named():
    with pytest.raises(ValueError, match="mc_probs must hold probabilities that sum to 1"):
        bad = _ensemble(np.full((2, 3, 2), 0.6))
        ours.BatchBALD(sample_predictions_method_name="draws").query(X[:3], np.full(3, np.nan), bad, fit_ensemble=False)
    with pytest.raises(ValueError, match=r"sampled predictions must be of shape \(members, samples, classes\)"):
        flat = _ensemble(np.full((2, 3, 2), 0.5))
        flat.said = np.full((3, 2), 0.5)
        ours.GreedyBALD(sample_predictions_method_name="draws").query(
            X[:3], np.full(3, np.nan), flat, fit_ensemble=False
        )
    with pytest.raises(ValueError, match="deltas must hold at least one radius"):
        ours.ProbCover(deltas=[]).query(X, Y)
    with pytest.raises(TypeError, match="cluster_algo must be a class of clusterings, got 3"):
        ours.TypiClust(cluster_algo=3).query(X, Y)


def test_a_missing_host_is_named():
    """And the rest of alkernels needs none."""
    code = (
        "import sys; sys.modules['skactiveml'] = None; import alkernels, alkernels.integrations\n"
        "assert 'sklearn' not in sys.modules\n"
        "try:\n    import alkernels.integrations.skactiveml\n"
        "except ImportError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'alkernels[skactiveml]'" in out
