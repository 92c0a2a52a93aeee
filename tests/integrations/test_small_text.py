"""small-text's strategies: its contract of a query, equal picks where it is right, and what it gets wrong."""

# ruff: noqa: NPY002 (the host draws from NumPy's global state)

import importlib
import sys
import warnings

import numpy as np
import pytest
from scipy.sparse import csr_matrix

pytest.importorskip("small_text")

from small_text import (
    EmptyPoolException,
    PoolBasedActiveLearner,
    PoolExhaustedException,
    SklearnDataset,
    SubsamplingQueryStrategy,
    query_strategies,
)

import alkernels as alk
from alkernels.integrations import small_text as ours

CLASSES, DRAWS = 3, 8


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Classifier:
    """Embeddings are the rows themselves, probabilities those of a fixed linear layer."""

    def __init__(self):
        self.weight = np.random.RandomState(3).randn(6, CLASSES)
        self.embedded = []

    def embed(self, dataset, return_proba=False, pbar="tqdm", **options):
        self.embedded.append(options)
        rows = dataset.x.toarray()
        return (rows, softmax(rows @ self.weight)) if return_proba else rows

    def predict(self, dataset):
        return self.predict_proba(dataset).argmax(1)

    def predict_proba(self, dataset, dropout_sampling=1):
        rows = dataset.x.toarray()
        if dropout_sampling == 1:
            return softmax(rows @ self.weight)
        noise = 0.5 * np.random.RandomState(5).randn(dropout_sampling, *self.weight.shape)
        return softmax(np.stack([rows @ (self.weight + some) for some in noise], 1))

    def fit(self, dataset, **options):
        return self


class Factory:
    def new(self):
        return Classifier()


class WithoutProba(Classifier):
    def embed(self, dataset, pbar="tqdm"):
        return dataset.x.toarray()


def dataset(count=60, seed=0):
    draws = np.random.RandomState(seed)
    return SklearnDataset(csr_matrix(draws.randn(count, 6)), draws.randint(0, CLASSES, count), np.arange(CLASSES))


def split(count=60, labeled=12):
    """Unlabelled and labelled rows, mixed."""
    order = np.random.RandomState(1).permutation(count)
    return np.sort(order[labeled:]), np.sort(order[:labeled])


STRATEGIES = [
    ours.GreedyCoreset(),
    ours.GreedyCoreset(distance_metric="cosine", normalize=False),
    ours.BADGE(CLASSES),
    ours.ContrastiveActiveLearning(k=5),
    ours.EmbeddingKMeans(),
    ours.BALD(DRAWS),
]


def query(strategy, count=60, labeled=12, clf=None, **options):
    texts = dataset(count)
    unlabeled, known = split(count, labeled)
    return strategy.query(clf or Classifier(), texts, unlabeled, known, texts.y[known], **options)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
class TestContract:
    """What small-text asks of every strategy."""

    @pytest.mark.parametrize("options", [{"n": 5}, {}, {"n": 1}])
    def test_as_many_distinct_unlabeled_rows_as_asked_for(self, strategy, options):
        picks = query(strategy, **options)
        assert isinstance(picks, np.ndarray) and picks.dtype.kind == "i"
        assert len(picks) == len(set(picks.tolist())) == options.get("n", 10)
        assert set(picks.tolist()) <= set(split()[0].tolist())

    def test_the_whole_pool(self, strategy):
        assert sorted(query(strategy, n=48)) == split()[0].tolist()

    def test_more_than_the_pool(self, strategy):
        with pytest.raises(PoolExhaustedException, match="48 available / 49 requested"):
            query(strategy, n=49)

    def test_an_empty_pool(self, strategy):
        texts = dataset(10)
        with pytest.raises(EmptyPoolException):
            strategy.query(Classifier(), texts, np.array([], int), np.arange(10), texts.y, n=1)

    def test_numpy_s_global_state_decides(self, strategy):
        runs = []
        for _ in range(2):
            np.random.seed(4)
            runs.append(query(strategy).tolist())
        assert runs[0] == runs[1]

    def test_nothing_given_is_changed(self, strategy):
        texts = dataset()
        unlabeled, known = split()
        kept = [a.copy() for a in (texts.x.toarray(), unlabeled, known, texts.y)]
        strategy.query(Classifier(), texts, unlabeled, known, texts.y[known], n=5)
        for now, before in zip((texts.x.toarray(), unlabeled, known, texts.y), kept, strict=True):
            assert np.array_equal(now, before)

    def test_inside_the_active_learner_and_a_subsample(self, strategy):
        for wrapped in (strategy, SubsamplingQueryStrategy(strategy, 30)):
            texts = dataset()
            learner = PoolBasedActiveLearner(Factory(), wrapped, texts)
            given = np.arange(0, 60, 5)
            if hasattr(learner, "initialize_data"):
                learner.initialize_data(given, texts.y[given])
            else:
                learner.initialize(given, texts.y[given])
            picks = learner.query(num_samples=4)
            learner.update(texts.y[picks])
            assert len(set(picks.tolist()) | set(given.tolist())) == 16


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_coreset_is_small_text_s(metric, normalize):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a default of old, and arccos of rounding
        theirs = query_strategies.GreedyCoreset(distance_metric=metric, normalize=normalize)
        wanted = query(theirs)
    strategy = ours.GreedyCoreset(distance_metric=metric, normalize=normalize)
    assert query(strategy).tolist() == wanted.tolist()


def test_the_coreset_of_no_labeled_text_begins_anywhere():
    texts = dataset(30)
    starts = set()
    for seed in range(8):
        np.random.seed(seed)
        picks = ours.GreedyCoreset().query(Classifier(), texts, np.arange(30), np.array([], int), texts.y[:0], n=4)
        starts.add(int(picks[0]))
    assert len(starts) > 3


def test_badge_draws_among_the_gradients_of_the_paper():
    unlabeled, _ = split()
    rows = dataset().x.toarray()[unlabeled]
    proba = softmax(rows @ Classifier().weight)
    np.random.seed(2)
    seed = int(np.random.randint(2**31 - 1))
    np.random.seed(2)
    picks = query(ours.BADGE(CLASSES), n=6)
    wanted = alk.select("badge", 6, probs=proba, features=rows, generator=seed)
    assert picks.tolist() == unlabeled[wanted.indices].tolist()
    # the first is the longest gradient (p - e_y) ⊗ h
    a = proba - np.eye(CLASSES)[proba.argmax(1)]
    assert picks[0] == unlabeled[(np.linalg.norm(a, axis=1) * np.linalg.norm(rows, axis=1)).argmax()]


def test_badge_of_two_classes_looks_at_the_predictions():
    class Two(Classifier):
        def embed(self, texts, return_proba=False, pbar="tqdm"):
            rows = texts.x.toarray()
            sure = np.full(len(rows), 1.0)
            sure[[4, 8]] = 0.5
            return rows, np.stack([sure, 1 - sure], 1)

    texts = dataset(30)
    picks = ours.BADGE(2).query(Two(), texts, np.arange(30), np.array([], int), texts.y[:0], n=1)
    assert picks[0] in (4, 8)  # the gradients of all others are 0, however long their embeddings


def test_a_classifier_whose_embed_gives_no_probabilities_is_asked_for_them():
    for strategy in (ours.BADGE(CLASSES), ours.ContrastiveActiveLearning()):
        np.random.seed(0)
        wanted = query(strategy).tolist()
        np.random.seed(0)
        assert query(strategy, clf=WithoutProba()).tolist() == wanted


def test_embeddings_may_be_given():
    order = np.concatenate(split())
    for strategy in (ours.GreedyCoreset(), ours.BADGE(CLASSES), ours.ContrastiveActiveLearning()):
        clf = Classifier()
        np.random.seed(0)
        picks = query(strategy, clf=clf, embeddings=dataset().x.toarray()[order])
        np.random.seed(0)
        assert picks.tolist() == query(strategy).tolist() and not clf.embedded
        with pytest.raises(ValueError, match=r"embeddings must have a row for each .*\(60, D\), got \(48, 6\)"):
            query(strategy, embeddings=dataset().x.toarray()[split()[0]])


@pytest.mark.parametrize("normalize", [True, False])
def test_cal_compares_with_labeled_texts_only(normalize):
    unlabeled, known = split()
    rows = dataset().x.toarray()
    proba = softmax(rows @ Classifier().weight)
    if normalize:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = []
    for row in unlabeled:
        near = known[np.argsort(((rows[known] - rows[row]) ** 2).sum(1))[:4]]
        wanted.append(np.mean([(proba[i] * np.log(proba[i] / proba[row])).sum() for i in near]))
    strategy = ours.ContrastiveActiveLearning(k=4, normalize=normalize)
    picks = query(strategy, n=7)
    np.testing.assert_allclose(strategy.scores_, wanted, atol=1e-10)
    assert picks.tolist() == unlabeled[np.argsort(-np.array(wanted))[:7]].tolist()


def test_cal_passes_its_options_to_embed_and_needs_a_labeled_text():
    clf = Classifier()
    query(ours.ContrastiveActiveLearning(embed_kwargs={"module": "pooled"}), clf=clf)
    assert clf.embedded == [{"module": "pooled"}]
    texts = dataset(10)
    with pytest.raises(ValueError, match="indices_labeled must hold a text at least"):
        ours.ContrastiveActiveLearning().query(clf, texts, np.arange(10), np.array([], int), texts.y[:0], n=2)


def test_kmeans_takes_one_text_a_cluster():
    draws = np.random.RandomState(0)
    centers = 10 * np.eye(6)[:5] + 5
    rows = np.repeat(centers, 8, 0) + 0.1 * draws.randn(40, 6)
    texts = SklearnDataset(csr_matrix(rows), draws.randint(0, CLASSES, 40), np.arange(CLASSES))
    for normalize in (True, False):
        picks = ours.EmbeddingKMeans(normalize).query(
            Classifier(), texts, np.arange(40), np.array([], int), texts.y[:0], n=5
        )
        assert sorted(picks // 8) == [0, 1, 2, 3, 4]
        middle = rows.reshape(5, 8, 6).mean(1)
        nearest = ((rows.reshape(5, 8, 6) - middle[:, None]) ** 2).sum(2).argmin(1) + 8 * np.arange(5)
        assert normalize or sorted(picks) == nearest.tolist()


def test_bald_is_small_text_s_best_first_in_nats():
    unlabeled, _ = split()
    theirs = query_strategies.BALD(DRAWS)
    strategy = ours.BALD(DRAWS)
    picks = query(strategy, n=6)
    assert set(picks) == set(query(theirs, n=6))
    draws = Classifier().predict_proba(dataset(), dropout_sampling=DRAWS)
    np.testing.assert_allclose(strategy.scores_, alk.bald(draws), atol=1e-12)
    bits = query_strategies.bayesian._bald(draws)
    np.testing.assert_allclose(strategy.last_scores / np.log(2), bits, atol=1e-6)
    assert picks.tolist() == unlabeled[np.argsort(-strategy.scores_[unlabeled])[:6]].tolist()


def test_scoring_is_small_text_2_s():
    strategy = ours.BALD(DRAWS)
    # small-text 1 has no such class
    assert isinstance(strategy, getattr(query_strategies, "ScoringMixin", ours.BALD)) and strategy.last_scores is None
    texts = dataset()
    scores = strategy.score(Classifier(), texts, *split(), texts.y[split()[1]])
    assert scores.shape == (60,) and strategy.last_scores is scores


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.GreedyCoreset("manhattan"), ValueError, "distance_metric must be 'euclidean' or 'cosine'"),
        (lambda: ours.GreedyCoreset(normalize=None), TypeError, "normalize must be"),
        (lambda: ours.BADGE("3"), TypeError, "num_classes must be"),
        (lambda: ours.BADGE(3, first="last"), ValueError, "first must be"),
        (lambda: query(ours.BADGE(5)), ValueError, r"num_classes must be that .* got 5 and \(48, 3\)"),
        (lambda: ours.ContrastiveActiveLearning(k=0), ValueError, "k must be at least 1, got 0"),
        (lambda: ours.BALD(0), ValueError, "dropout_samples must be at least 1"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_strategies_say_what_they_are():
    assert str(ours.GreedyCoreset()) == "GreedyCoreset(distance_metric=euclidean, normalize=True, batch_size=100)"
    assert str(ours.BADGE(3)) == "BADGE(num_classes=3)"


def test_a_missing_host_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "alkernels.integrations.small_text")
    monkeypatch.setitem(sys.modules, "small_text", None)
    with pytest.raises(ImportError, match=r"needs the package small-text: pip install 'alkernels\[small-text\]'"):
        importlib.import_module("alkernels.integrations.small_text")
