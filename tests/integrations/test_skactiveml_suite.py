# ruff: noqa: E402, RUF012 - what needs the host comes after it; the classes below are only read
"""scikit-activeml's own suite for query strategies, run on ours.

Its packages leave the suite out since 0.6.2: it is taken from the wheel of 0.6.1, beside the version that is installed.
"""

from __future__ import annotations

import os
import unittest
from pathlib import Path

import numpy as np
import pytest

skactiveml = pytest.importorskip("skactiveml")

_FOLDER = Path(
    os.environ.get("ALKERNELS_SKACTIVEML_TESTS")
    or Path(__file__).parents[2] / "build" / "hosts" / "scikit-activeml-0.6.1"
)
if not (_FOLDER / "skactiveml" / "tests").is_dir():
    pytest.skip(
        f"no suite in {_FOLDER}: pip download scikit-activeml==0.6.1 --no-deps -d build/hosts && "
        f"unzip build/hosts/scikit_activeml-0.6.1-py3-none-any.whl -d {_FOLDER}",
        allow_module_level=True,
    )
skactiveml.__path__.append(str(_FOLDER / "skactiveml"))

from skactiveml.classifier import ParzenWindowClassifier, SklearnClassifier
from skactiveml.regressor import NICKernelRegressor
from skactiveml.tests.template_query_strategy import TemplateSingleAnnotatorPoolQueryStrategy as _Template
from skactiveml.tests.utils import ParzenWindowClassifierEmbedding
from skactiveml.utils import MISSING_LABEL
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.svm import SVC

from alkernels.integrations import skactiveml as ours

pytestmark = pytest.mark.filterwarnings(
    "ignore:the purity of the smallest radius",
    "ignore:Graph is not fully connected",
    "ignore:mc_probs holds one draw",
    "ignore:after .* picks the batch holds",
    "ignore::FutureWarning:sklearn",
    "ignore:The 'base_estimator' could not be fitted",
    "ignore:Since the 'base_estimator' could not be fitted",
)

X = np.linspace(0, 1, 20).reshape(10, 2)
Y = np.hstack([[0, 1], np.full(8, MISSING_LABEL)])
_EPS = [(0, ValueError), (1e-3, None), (0.1, None), ("1", TypeError), (1, ValueError)]
_FLAGS = [(1, TypeError), (None, None), (False, TypeError), (True, TypeError), ("return_embeddings", None)]


def _classifier():
    return ParzenWindowClassifier(classes=[0, 1], random_state=0)


def _forest():
    return SklearnClassifier(RandomForestClassifier(3, random_state=0), classes=[0, 1], random_state=0)


class _Suite(_Template):
    name = ""
    init: dict = {}
    query: dict = {}

    def setUp(self):
        super().setUp(
            qs_class=getattr(ours, self.name),
            init_default_params=dict(self.init),
            query_default_params_clf={"X": X.copy(), "y": Y.copy(), **{k: make() for k, make in self.query.items()}},
        )

    def test_query(self):
        """Picks are of the largest utility, but where they are drawn; without utilities they are the same."""
        params = {**self.query_default_params_clf, "batch_size": 4}
        strategy = self.qs_class(**self.init_default_params)
        indices, utilities = strategy.query(**params, return_utilities=True)
        np.testing.assert_array_equal(indices, strategy.query(**params))
        self.assertEqual(len(set(indices)), 4)
        self.assertTrue((indices >= 2).all())
        for step, pick in enumerate(indices):
            self.assertTrue(np.isnan(utilities[step, [0, 1, *indices[:step]]]).all())
            self.assertEqual(np.isnan(utilities[step]).sum(), 2 + step)
            if self.name == "Badge" and step:
                self.assertGreater(utilities[step, pick], 0)
            else:
                np.testing.assert_allclose(utilities[step, pick], np.nanmax(utilities[step]), atol=1e-12)


class _WithClassifier(_Suite):
    query = {"clf": _classifier}

    def test_query_param_clf(self):
        super().test_query_param_clf(
            test_cases=[
                (SVC(), TypeError),
                (SklearnClassifier(SVC()), AttributeError),
                (SklearnClassifier(LogisticRegression(), classes=[0, 1]), None),
            ]
        )


class _WithEmbeddings(_WithClassifier):
    def test_init_param_clf_embedding_flag_name(self):
        more = {"clf": ParzenWindowClassifierEmbedding(classes=[0, 1])}
        self._test_param("init", "clf_embedding_flag_name", list(_FLAGS), replace_query_params=more)


class _WithEnsemble(_Suite):
    query = {"ensemble": _forest}

    def test_query_param_ensemble(self):
        cases = [
            (None, TypeError),
            ("string", TypeError),
            (1, TypeError),
            ([_classifier(), _classifier()], None),
            ([_classifier(), 1], TypeError),
            (LogisticRegression(), TypeError),
        ]
        self._test_param("query", "ensemble", cases)

    def test_query_param_fit_ensemble(self):
        self._test_param("query", "fit_ensemble", [("string", TypeError), (None, TypeError), (True, None)])

    def test_init_param_eps(self):
        self._test_param("init", "eps", list(_EPS))

    def test_init_param_sample_predictions_method_name(self):
        cases = [(0, TypeError), (0.1, TypeError), ("Test", ValueError)]
        self._test_param("init", "sample_predictions_method_name", cases)
        more = {"ensemble": _classifier()}
        cases = [("sample_proba", None), ("predict_proba", ValueError)]
        self._test_param("init", "sample_predictions_method_name", cases, replace_query_params=more)

    def test_init_param_sample_predictions_dict(self):
        cases = [(None, None), ({}, None), ({"n_samples": 100}, None), ("Test", ValueError), ({"Test": 2}, TypeError)]
        self._test_param(
            "init",
            "sample_predictions_dict",
            cases,
            replace_init_params={"sample_predictions_method_name": "sample_proba"},
            replace_query_params={"ensemble": _classifier()},
        )
        self._test_param("init", "sample_predictions_dict", [({}, ValueError)])


class _WithSamples(_WithEnsemble):
    def test_init_param_n_MC_samples(self):
        cases = [(0, ValueError), (1.2, TypeError), (1, None), (None, None)]
        self._test_param("init", "n_MC_samples", cases)


class _WithClusters(_Suite):
    init = {"cluster_algo_dict": {"random_state": 0, "n_init": 1}}

    def test_init_param_cluster_algo(self):
        cases = [(1, TypeError), ("string", TypeError), (None, TypeError), (ours.CoreSet, TypeError)]
        cases += [(SpectralClustering, None), (KMeans, None)]
        self._test_param("init", "cluster_algo", cases, replace_init_params={"random_state": 0})

    def test_init_param_cluster_algo_dict(self):
        cases = [(1, TypeError), ("string", TypeError), (None, None), ({}, None), ({"n_init": 2}, None)]
        cases += [({"n_init": "auto", "random_state": 0}, None), ({"n_inits": 2}, TypeError)]
        self._test_param("init", "cluster_algo_dict", cases)

    def test_init_param_n_cluster_param_name(self):
        cases = [(1, TypeError), ("string", TypeError), (None, TypeError), ("n_clusters", None)]
        self._test_param("init", "n_cluster_param_name", cases)


class TestCoreSet(_Suite, unittest.TestCase):
    name = "CoreSet"

    def test_init_param_metric(self):
        cases = [("euclidean", None), ("cosine", None), ("manhattan", None), ("l2", None)]
        cases += [(lambda a, b: abs(a - b).max(), None), ("Test", ValueError), (1, ValueError), (None, ValueError)]
        self._test_param("init", "metric", cases)

    def test_init_param_metric_dict(self):
        cases = [(None, None), ({}, None), ("Test", ValueError), (1, ValueError)]
        self._test_param("init", "metric_dict", cases)


class TestBadge(_WithEmbeddings, unittest.TestCase):
    name = "Badge"


class TestBatchBALD(_WithSamples, unittest.TestCase):
    name = "BatchBALD"


class TestGreedyBALD(_WithSamples, unittest.TestCase):
    name = "GreedyBALD"


class TestQueryByCommittee(_WithEnsemble, unittest.TestCase):
    name = "QueryByCommittee"

    def test_init_param_method(self):
        cases = [("KL_divergence", None), ("vote_entropy", None), ("variation_ratios", None)]
        self._test_param("init", "method", [*cases, (1, TypeError), ("string", TypeError)])


class TestQueryByCommitteeOfRegressors(TestQueryByCommittee):
    def setUp(self):
        super().setUp()
        reg = [NICKernelRegressor(metric_dict={"gamma": g}) for g in (0.1, 1.0, 5.0)]
        self.query_default_params_clf["ensemble"] = reg

    # what classifiers sample, and labels of other types
    test_init_param_eps = test_init_param_sample_predictions_method_name = None
    test_init_param_sample_predictions_dict = test_query_param_y = test_init_param_missing_label = None
    test_param_test_availability = None


class TestUncertaintySampling(_WithClassifier, unittest.TestCase):
    name = "UncertaintySampling"

    def test_init_param_method(self):
        cases = [(1, TypeError), ("string", ValueError), (None, TypeError)]
        names = ["least_confident", "margin_sampling", "entropy", "expected_average_precision"]
        self._test_param("init", "method", cases + [(name, None) for name in names])

    def test_init_param_cost_matrix(self):
        cases = [(None, None), (1 - np.eye(2), None), (np.ones((2, 3)), ValueError), ("string", ValueError)]
        cases += [(np.ones((1, 1)), ValueError)]
        self._test_param("init", "cost_matrix", cases)
        more = {"method": "entropy"}
        self._test_param("init", "cost_matrix", [(1 - np.eye(2), ValueError)], replace_init_params=more)


class TestContrastiveAL(_WithEmbeddings, unittest.TestCase):
    name = "ContrastiveAL"

    def test_init_param_eps(self):
        self._test_param("init", "eps", list(_EPS))

    def test_init_param_nearest_neighbors_dict(self):
        cases = [(1, TypeError), ("string", TypeError), (None, None), ({}, None), ({"n_neighbors": 2}, None)]
        cases += [({"n_neighbors": 0}, ValueError), ({"neighbors": 2}, TypeError), ({"metric": "string"}, ValueError)]
        cases += [({"metric": "manhattan"}, None), ({"p": 1}, None), ({"metric": "cosine"}, None)]
        self._test_param("init", "nearest_neighbors_dict", cases)


class TestTypiClust(_WithClusters, unittest.TestCase):
    name = "TypiClust"

    def test_init_param_k(self):
        cases = [("string", TypeError), (None, TypeError), (10, None), (1, None), (1.5, TypeError), (0, ValueError)]
        self._test_param("init", "k", cases)


class TestProbCover(_WithClusters, unittest.TestCase):
    name = "ProbCover"

    def test_init_param_n_classes(self):
        cases = [(None, None), (2, None), (10, None), ("string", TypeError), (1.5, TypeError), (1, ValueError)]
        self._test_param("init", "n_classes", cases)

    def test_init_param_deltas(self):
        cases = [([0.5], None), ([0.0, 1.0, 2.0], None), ([500], None), (np.array([0.0, 1.0]), None), ([], ValueError)]
        cases += [([-1], ValueError), (0.5, ValueError), ("string", ValueError), ([np.nan, 1.0], ValueError)]
        self._test_param("init", "deltas", cases)

    def test_init_param_alpha(self):
        cases = [(0.5, None), (0.01, None), (0.99, None), (1.0, ValueError), (0.0, ValueError), ("string", TypeError)]
        self._test_param("init", "alpha", cases)

    def test_init_param_distance_func(self):
        cases = [(pairwise_distances, None), (euclidean_distances, None), (1, TypeError), ("string", TypeError)]
        cases += [(lambda x: pairwise_distances(x, metric="manhattan"), None), (lambda x: x, ValueError)]
        self._test_param("init", "distance_func", cases)

    def test_query_param_update(self):
        self._test_param("query", "update", [(False, None), (True, None), (1, TypeError), ("string", TypeError)])


class TestMaxHerding(_Suite, unittest.TestCase):
    name = "MaxHerding"

    def test_init_param_normalize_samples(self):
        self._test_param("init", "normalize_samples", [(True, None), (False, None), (1, TypeError), (None, TypeError)])

    def test_init_param_metric(self):
        cases = [("rbf", None), ("cosine", None), ("linear", None), (lambda a, b: a @ b, None), ("laplacian", None)]
        cases += [("Test", ValueError), (1, ValueError), ("precomputed", ValueError)]
        self._test_param("init", "metric", cases)

    def test_init_param_metric_dict(self):
        cases = [(None, None), ({}, None), ({"gamma": 2.0}, None), ("Test", TypeError), ({"Test": 1}, TypeError)]
        self._test_param("init", "metric_dict", cases)
