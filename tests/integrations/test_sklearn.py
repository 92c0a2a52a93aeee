"""scikit-learn's k-means++: its signature and contract, the plain law, and as an init of its estimators."""

# ruff: noqa: NPY002 (the host draws from NumPy's global state)

import importlib
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import cluster

from alkernels.integrations.sklearn import kmeans_init, kmeans_plusplus


def points(count=400, width=5, seed=0, dtype=np.float64):
    draws = np.random.RandomState(seed)
    return (draws.randn(count, width) + 8 * draws.randint(0, 4, (count, 1))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_centers_are_rows_of_x_in_its_dtype_as_in_scikit_learn(dtype):
    x = points(dtype=dtype)
    centers, indices = kmeans_plusplus(x, 7, random_state=0)
    theirs, their_indices = cluster.kmeans_plusplus(x, 7, random_state=0)
    assert np.array_equal(centers, x[indices]) and len(set(indices)) == 7
    assert (centers.dtype, centers.shape, indices.shape) == (theirs.dtype, theirs.shape, their_indices.shape)


def test_lists_are_taken():
    centers, indices = kmeans_plusplus([[0.0], [9.0]], 2, random_state=1)
    assert sorted(centers[:, 0]) == [0.0, 9.0] and sorted(indices) == [0, 1]


def test_random_state_follows_scikit_learn_s_rules():
    x = points()
    pick = lambda state: kmeans_plusplus(x, 5, random_state=state)[1].tolist()  # noqa: E731
    assert pick(3) == pick(3) != pick(4)
    assert pick(np.random.RandomState(3)) == pick(3)
    state = np.random.RandomState(3)
    assert pick(state) != pick(state)
    np.random.seed(5)
    first = pick(None)
    np.random.seed(5)
    assert first == pick(None)


def test_the_law_is_that_of_one_local_trial():
    x = np.array([[0.0], [1.0], [3.0]])
    ours = np.zeros((3, 3))
    theirs = np.zeros((3, 3))
    for seed in range(1500):
        ours[tuple(kmeans_plusplus(x, 2, random_state=seed, n_local_trials=1)[1])] += 1 / 1500
        theirs[tuple(cluster.kmeans_plusplus(x, 2, random_state=seed, n_local_trials=1)[1])] += 1 / 1500
    exact = np.array([[0, 1 / 30, 9 / 30], [1 / 15, 0, 4 / 15], [9 / 39, 4 / 39, 0]])
    assert np.abs(ours - exact).max() < 0.045  # over three standard deviations
    assert np.abs(theirs - exact).max() < 0.045


def test_seeds_are_distinct_where_points_coincide():
    x = np.zeros((6, 2))
    with np.errstate(all="ignore"):
        assert len(set(cluster.kmeans_plusplus(x, 6, random_state=0)[1])) < 6  # theirs repeats rows
    assert sorted(kmeans_plusplus(x, 6, random_state=0)[1]) == list(range(6))
    assert len(set(kmeans_plusplus(np.repeat([[0.0], [1.0]], 20, 0), 7, random_state=0)[1])) == 7


@pytest.mark.parametrize("clusters", [6, 40])
def test_seeds_are_as_good_as_scikit_learn_s(clusters):
    x = points(2000, 8)

    def cost(function, **options):
        all_seeds = [function(x, clusters, random_state=seed, **options)[0] for seed in range(10)]
        return np.mean([((x[:, None] - seeds) ** 2).sum(2).min(1).sum() for seeds in all_seeds])

    theirs, plain = cost(cluster.kmeans_plusplus), cost(kmeans_plusplus, n_local_trials=1)
    assert cost(kmeans_plusplus) < 1.02 * theirs < plain


@pytest.mark.parametrize("estimator", [cluster.KMeans, cluster.MiniBatchKMeans, cluster.BisectingKMeans])
def test_estimators_start_from_it(estimator):
    x = points()
    given = x.copy()
    model = estimator(4, init=kmeans_init, n_init=3, random_state=0).fit(x)
    usual = estimator(4, n_init=3, random_state=0).fit(x)
    assert np.array_equal(x, given)
    assert model.inertia_ <= 1.1 * usual.inertia_


def test_equal_weights_are_none():
    x = points()
    plain = kmeans_plusplus(x, 5, random_state=0)[1].tolist()
    options = {"sample_weight": np.full(400, 2.0), "x_squared_norms": (x**2).sum(1)}
    assert kmeans_plusplus(x, 5, random_state=0, **options)[1].tolist() == plain
    assert kmeans_plusplus(x, 5, random_state=0, sample_weight=3)[1].tolist() == plain


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_clusters": 401}, ValueError, "n_clusters must be between 1 and n_samples=400, got 401"),
        ({"n_clusters": 0}, ValueError, "n_clusters must be between 1"),
        ({"n_clusters": 2.5}, TypeError, "n_clusters must be"),
        ({"sample_weight": np.arange(1, 401)}, ValueError, "sample_weight must be the same above 0"),
        ({"sample_weight": np.ones(3)}, ValueError, r"sample_weight must have one number a row of X, shape \(400,\)"),
        ({"x_squared_norms": np.ones(3)}, ValueError, "x_squared_norms must have one number a row"),
        ({"n_local_trials": 4}, ValueError, "n_local_trials must be None or 1"),
        ({"random_state": "seed"}, ValueError, "cannot be used to seed"),
        ({"X": np.full((400, 2), np.nan)}, ValueError, "NaN"),
        ({"X": np.zeros(400)}, ValueError, "2D array"),
    ],
)
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        kmeans_plusplus(**{"X": points(), "n_clusters": 3} | options)


def test_sparse_matrices_are_refused_as_scikit_learn_refuses_them():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="dense data is required"):
        kmeans_plusplus(sparse.csr_matrix(points()), 3)


def test_a_missing_host_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "alkernels.integrations.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.utils", None)
    with pytest.raises(ImportError, match=r"needs the package scikit-learn: pip install 'alkernels\[strategies\]'"):
        importlib.import_module("alkernels.integrations.sklearn")
